"""Where the samples of a tar lie.

What decides which samples are wanted is their headers and `.json`s; the rest of a tar is not read until it is copied.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from clipdata_jax.data import files, tars

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
PIECE = 1 << 20
_NEAR = 4096  # bytes, a page
_HEADS = 512  # headers checked at a time: they fit into a core's cache
_JSON = b".json\0"
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
# Entries of an extended header that change what the next header says.
_TELLING = (b" path=", b" size=", b" linkpath=", b"GNU.sparse")


class Bytes:
    """A file as slices of bytes.

    Attributes:
      path: of the file.
      jsons: where the bytes of a `.json` begin -> these, of those that the look through the headers came across.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        """Takes a file that is open for reading."""
        self.path, self._file = path, file
        self._number = file.fileno() if files.is_local(path) and hasattr(os, "preadv") else None
        self.jsons: dict[int, bytes] = {}
        self._room = memoryview(bytearray(PIECE))

    def __getitem__(self, where: slice) -> bytes:
        if self._number is not None:
            return os.pread(self._number, where.stop - where.start, where.start)
        self._file.seek(where.start)
        return self._file.read(where.stop - where.start)

    def into_room(self, start: int, size: int) -> memoryview:
        """As a slice, of at most 1 MiB, in memory that the next call takes again: fresh memory costs threads dearly."""
        room = self._room[:size]
        if self._number is not None:
            return room[: os.preadv(self._number, [room], start)]
        self._file.seek(start)
        return room[: self._file.readinto(room)]  # type: ignore[attr-defined]

    def pieces(self, start: int) -> Iterator[bytes]:
        """What is there from a place on."""
        while piece := self[start : (start := start + PIECE)]:
            yield piece


@contextlib.contextmanager
def opened(path: str) -> Iterator[Bytes]:
    """A file as slices of bytes.

    Raises:
      InputError: it can't be opened.
    """
    with files.open_read(path) as file:
        yield Bytes(path, file)


class Index(NamedTuple):
    """The members of a tar in columns: objects for each would cost more than to find them.

    Attributes:
      path: of the tar.
      names: of the members.
      starts: where each one's header begins, or the extended ones that belong to it.
      data: where its bytes begin.
      sizes: their number.
      links: number of a link -> the bytes that it leads to.
    """

    path: str
    names: list[str]
    starts: list[int]
    data: list[int]
    sizes: list[int]
    links: dict[int, bytes]

    def samples(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Key, and extension -> number of the member, of each sample in order: those of `tars.read_tar`.

        Raises:
          InputError: as `tars.grouped`.
        """
        for key, members, _ in tars.grouped(self.path, zip(self.names, range(len(self.names)))):
            yield key, members

    def read(self, i: int, tar: Bytes) -> bytes:
        """The bytes of the member of that number."""
        if (found := tar.jsons.get(self.data[i])) is not None:
            return found
        tars.check_size(self.path, self.names[i], self.sizes[i])
        return self.links[i] if i in self.links else tar[self.data[i] : self.data[i] + self.sizes[i]]

    def sample(self, key: str, members: dict[str, int]) -> Sample:
        """A sample as `samples` gives it."""
        return Sample(self, key, tuple(members.values()))


class Sample(NamedTuple):
    """A sample of a tar.

    Attributes:
      table: the index of its tar.
      key: its key there.
      numbers: of its members, in order.
    """

    table: Index
    key: str
    numbers: tuple[int, ...]


def index(tar: Bytes) -> Index:
    """Looks through an open tar.

    Raises:
      InputError: as `tars.read_members`.
    """
    path, found = tar.path, _plain_index(tar)
    if found is None:
        with files.open_read(path) as file:
            walked, linked = [], 0
            for info, data in tars.walk(path, file):
                # Many links to one large member would be as many copies of it.
                linked += len(data or b"")
                tars.check_size(path, f"{info.name} and other links", linked)
                walked.append((info, data))
        found = Index(
            path,
            [info.name for info, _ in walked],
            [info.offset for info, _ in walked],
            [info.offset_data for info, _ in walked],
            [info.size if data is None else len(data) for info, data in walked],
            {i: data for i, (_, data) in enumerate(walked) if data is not None},
        )
    return found


def _plain_index(tar: Bytes) -> Index | None:
    """The index of a tar of nothing but short names, plain files and folders; else None: tarfile knows all forms.

    Reading 10,000 headers takes tarfile as long as copying half a gigabyte.
    """
    heads = bytearray()  # an object for each would cost more than its bytes
    starts: list[int] = []
    data: list[int] = []
    sizes: list[int] = []
    jsons: dict[int, bytes] = {}
    at = start = near = 0
    last, page = -1, b""
    while True:
        # A sample's headers, caption and `.json` lie next to each other: one call for all.
        if at > last:
            page, near = tar[at : at + _NEAR], at
            last = near + len(page) - _BLOCK
        place = at - near
        head = page[place : place + _BLOCK]
        if head == _ZEROS:
            break
        try:
            size = int(head[124:135], 8)
        except ValueError:  # cut short, or of another form
            return None
        kind = head[156:157]
        heads += head
        at += _BLOCK
        if kind in _FILES:
            starts.append(start)
            data.append(at)
            sizes.append(size)
            if _JSON in head:
                json = page[place + _BLOCK : place + _BLOCK + size]
                if len(json) == size:
                    jsons[at] = json
        elif kind == tarfile.XHDTYPE and _tells_nothing(tar[at : at + size + -size % _BLOCK]):
            at += size + -size % _BLOCK
            continue
        elif kind != tarfile.DIRTYPE or size:
            return None
        at += size + -size % _BLOCK
        start = at
    text = _plain_names(heads) if start == at else None
    if text is None:
        return None
    tars.check_rest(tar.path, tar.pieces(at))
    tar.jsons = jsons
    names = text.split("\0")[:-1]
    if "\0." in f"\0{text}" or "/." in text:
        seen = [i for i, name in enumerate(names) if not name.rpartition("/")[2].startswith(".")]
        names = [names[i] for i in seen]
        starts, data, sizes = ([column[i] for i in seen] for column in (starts, data, sizes))
    return Index(tar.path, names, starts, data, sizes, {})


def _tells_nothing(records: bytes) -> bool:
    """Whether pax records are whole, with nothing but NULs behind them, and name nothing that matters here.

    Others are left to tarfile, whose versions differ in what they make of damaged ones.
    """
    if any(word in records for word in _TELLING):
        return False
    records, at = records.rstrip(b"\0"), 0
    while at < len(records):
        length, space, _ = records[at : at + 8].partition(b" ")
        end = at + int(length) if space and length.isdigit() else at
        keyword, sign, value = records[at + len(length) + 1 : end].partition(b"=")
        if not (keyword and sign and value.endswith(b"\n")) or end > len(records) or b"\0" in keyword + value:
            return False
        at = end
    return True


def _plain_names(heads: bytearray) -> str | None:
    """The files' names in headers, a NUL after each; None if one of these is not plain or its checksum is wrong."""
    if not heads or len(heads) % _BLOCK:
        return None
    found: list[bytes] = []
    every = np.frombuffer(heads, np.uint8).reshape(-1, _BLOCK)
    for rows in np.split(every, range(_HEADS, len(every), _HEADS)):
        if not _are_plain(rows):
            return None
        of_files = rows[(rows[:, 156] == ord("0")) | (rows[:, 156] == 0), :100]
        found += np.ascontiguousarray(of_files).view("S100")[:, 0].tolist()
    joined = b"\0".join([*found, b""])
    if joined.count(b"\0") > len(found) or b"/\0" in joined:
        return None
    return joined.decode(tarfile.ENCODING, "surrogateescape")


def _are_plain(rows: np.ndarray) -> bool:
    """Whether all checksums hold, numbers end where tarfile would end them, and no prefix belongs to a name.

    Args:
      rows: headers, shape (n, 512), uint8.
    """
    ends = rows[:, [135, 154, 155]]
    ended = (ends == 0) | (ends == ord(" "))
    if not (ended[:, :2].all() and (ended[:, 2] | (ends[:, 1] == 0)).all() and not rows[:, 345].any()):
        return False
    digits = rows[:, 148:154].astype(np.int64) - ord("0")
    told = digits @ 8 ** np.arange(5, -1, -1)
    # Pairs of bytes in lanes of 16 bits: 128 of them don't overflow. The field of the sum itself counts as blanks.
    words, lanes = rows.view(np.uint64), np.uint64(0x00FF00FF00FF00FF)
    pairs = (words & lanes).sum(axis=1) + (words >> np.uint64(8) & lanes).sum(axis=1)
    sums = pairs.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64)
    sums += 8 * ord(" ") - rows[:, 148:156].sum(axis=1, dtype=np.int64)
    return bool((told == sums).all() and (digits >= 0).all() and (digits < 8).all())
