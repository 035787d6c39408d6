"""Where the samples of a tar lie.

What decides which samples are wanted is their headers and `.json`s; images are not looked at until they are copied.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from clipdata_jax import storage
from clipdata_jax.formats import tars

_UPPER = np.uint8(ord("A"))
_MOST = 64  # members of a sample: comparing all of them with each other would take too long


class TarIndex(NamedTuple):
    """The members of a tar in columns, and its samples, which are neighbours each: objects would cost more.

    Attributes:
      path: of the tar.
      names: of the members, as stored.
      starts: where each one's header begins, or the extended ones that belong to it.
      data: where its bytes begin.
      sizes: their number.
      links: number of a link -> the bytes that it leads to.
      keys: of the samples, in order: those of `tars.read_tar`.
      first: number of each sample's first member, and after the last sample's that of all members.
      jsons: number of each sample's `.json`, -1 where it has none.
    """

    path: str
    names: list[bytes]
    starts: list[int]
    data: list[int]
    sizes: list[int]
    links: dict[int, bytes]
    keys: list[str]
    first: list[int]
    jsons: list[int]

    def name(self, i: int) -> str:
        """The name of the member of that number."""
        return self.names[i].decode(tarfile.ENCODING, "surrogateescape")

    def read(self, i: int, tar: TarReader) -> bytes:
        """The bytes of the member of that number."""
        if (found := tar.jsons.get(self.data[i])) is not None:
            return found
        tars.check_size(self.path, self.name(i), self.sizes[i])
        return self.links[i] if i in self.links else tar[self.data[i] : self.data[i] + self.sizes[i]]

    def sample(self, i: int) -> IndexedSample:
        """The sample of that number."""
        return IndexedSample(self, self.keys[i], range(self.first[i], self.first[i + 1]))


class IndexedSample(NamedTuple):
    """A sample of a tar.

    Attributes:
      table: the index of its tar.
      key: its key there.
      numbers: of its members.
    """

    table: TarIndex
    key: str
    numbers: range


class _Groups(NamedTuple):
    keys: list[str]
    first: list[int]
    jsons: list[int]


def index(tar: TarReader) -> TarIndex:
    """Looks through an open tar.

    Raises:
      InputError: as `tars.read_tar`.
    """
    headers = read(tar)
    if headers is None:
        return _walked(tar.path)
    tar.jsons = headers.jsons
    starts, data, sizes = (column.tolist() for column in headers[1:4])
    names = _texts(headers.names)
    groups = _plain_groups(headers.names) or _groups(tar.path, names)
    return TarIndex(tar.path, names, starts, data, sizes, {}, *groups)


def _walked(path: str) -> TarIndex:
    """The index of a tar of any form, as tarfile knows it."""
    with storage.open_read(path) as file:
        walked, linked = [], 0
        for info, data in tars.walk(path, file):
            # Many links to one large member would be as many copies of it.
            linked += len(data or b"")
            tars.check_size(path, f"{info.name} and other links", linked)
            walked.append((info, data))
    names = [info.name.encode(tarfile.ENCODING, "surrogateescape") for info, _ in walked]
    return TarIndex(
        path,
        names,
        [info.offset for info, _ in walked],
        [info.offset_data for info, _ in walked],
        [info.size if data is None else len(data) for info, data in walked],
        {i: data for i, (_, data) in enumerate(walked) if data is not None},
        *_groups(path, names),
    )


def _groups(path: str, names: list[bytes]) -> _Groups:
    """The samples that members of these names make, name by name.

    Raises:
      InputError: as `tars.grouped`.
    """
    texts = [name.decode(tarfile.ENCODING, "surrogateescape") for name in names]
    found = _Groups([], [0], [])
    for key, members, _ in tars.grouped(path, zip(texts, range(len(texts)), strict=True)):
        found.keys.append(key)
        found.first.append(found.first[-1] + len(members))
        found.jsons.append(members.get("json", -1))
    return found


def _plain_groups(names: np.ndarray) -> _Groups | None:
    """The same by columns; None where letters aren't plain, samples are very large or something is wrong.

    Args:
      names: shape (n, w), uint8.
    """
    if not len(names) or (names >= 128).any():
        return None
    columns = np.arange(names.shape[1])
    dots = (names == ord(".")) & (columns >= base_starts(names)[:, None])
    lengths = (names != 0).sum(axis=1)
    ends = np.where(dots.any(axis=1), dots.argmax(axis=1), lengths)
    keys = _strings(np.where(columns < ends[:, None], names, 0))
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    first = np.append(starts, len(names))
    most = int(np.diff(first).max())
    # "a" and "a." have one extension, none.
    if most > _MOST or (names[np.arange(len(names)), lengths - 1] == ord(".")).any():
        return None
    texts = _texts(keys[starts])
    # Within a sample names differ in their extensions only, which are told apart in lower case.
    lower = _strings(names | ((names >= _UPPER) & (names < _UPPER + 26)) * np.uint8(32))
    sample = np.repeat(np.arange(len(starts)), np.diff(first))
    for lag in range(1, most):
        if ((lower[lag:] == lower[:-lag]) & (sample[lag:] == sample[:-lag])).any():
            return None
    if len(set(texts)) < len(texts):
        return None
    jsons = np.full(len(starts), -1)
    numbers = np.flatnonzero(np.strings.endswith(lower, b".json") & (ends == lengths - 5))
    jsons[sample[numbers]] = numbers
    return _Groups([text.decode("ascii") for text in texts], first.tolist(), jsons.tolist())


def _strings(names: np.ndarray) -> np.ndarray:
    """Bytes, shape (n, w), as strings of NumPy, shape (n,)."""
    return np.ascontiguousarray(names).view(f"S{names.shape[1]}")[:, 0]


def _texts(names: np.ndarray) -> list[bytes]:
    """Strings of NumPy, or bytes of shape (n, w), as a list."""
    return list((names if names.ndim == 1 else _strings(names)).tolist())


_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_PAGE, _LARGEST = 1 << 12, 1 << 14  # bytes
_ROOM = (
    1 << 22
)  # bytes of pages that are looked at together: NumPy's calls cost more than what leaves the cache
_NAME = 100  # bytes
_EXTENDED = ord("x")
# Entries of an extended header that change what the next header says.
_TELLING = (b" path=", b" size=", b" linkpath=", b"GNU.sparse")
_SHORT = 64  # bytes that times of members take at most
_TIMES = re.compile(rb"(?:\d\d [acm]time=\d+(?:\.\d+)?\n\0+)+")


class Headers(NamedTuple):
    """The files in a tar, in order; hidden ones are left out.

    Attributes:
      names: shape (n, w), uint8: of the files, NULs behind each.
      starts: shape (n,), int64: where each one's header begins, or the extended ones that belong to it.
      data: shape (n,), int64: where its bytes begin.
      sizes: shape (n,), int64: their number.
      jsons: where the bytes of a `.json` begin -> these, as far as they were come across.
    """

    names: np.ndarray
    starts: np.ndarray
    data: np.ndarray
    sizes: np.ndarray
    jsons: dict[int, bytes]


class _Pages(NamedTuple):
    """What there is in pages of a tar that lie in memory one after the other.

    Attributes:
      ends: where in memory each page ends.
      marks: where each header begins.
      sizes: of the headers' members.
      extended: numbers of the headers before which an extended one with its block of records lies.
      next: where in the tar the header behind these is; or if there is none, its end.
      width: bytes that the next pages should have; 0 if there is none.
    """

    ends: list[int]
    marks: list[int]
    sizes: list[int]
    extended: list[int]
    next: int
    width: int


def read(tar: TarReader) -> Headers | None:
    """Reads the headers of a tar of nothing but short names, plain files and folders; else None.

    Raises:
      InputError: there is more behind the tar's end.
    """
    batches: list[tuple[np.ndarray, ...]] = []
    jsons: dict[int, bytes] = {}
    room, at, width = bytearray(_ROOM), 0, _PAGE
    while width:
        pages = _walk(tar, room, at, width)
        batch = _look(pages, room, at, jsons) if pages is not None else None
        if pages is None or batch is None:
            return None
        batches.append(batch)
        at, width = pages.next, pages.width
    names, kinds, starts, data, sizes = (np.concatenate(columns) for columns in zip(*batches, strict=True))
    plain = (kinds == ord("0")) | (kinds == 0)
    if not (plain | ((kinds == ord("5")) & (sizes == 0))).all() or not plain.any():
        return None
    if (narrow := _narrow(names[plain])) is None:
        return None
    tars.check_rest(tar.path, tar.pieces(at))
    seen = ~_are_hidden(narrow)
    starts, data, sizes = (column[plain][seen] for column in (starts, data, sizes))
    return Headers(narrow[seen], starts, data, sizes, jsons)


def _walk(tar: TarReader, room: bytearray, at: int, width: int) -> _Pages | None:
    """Goes from header to header while there is room; None if the tar is cut short or of another form."""
    found = _Pages([], [], [], [], at, width)
    view, ends, marks, sizes, extended = memoryview(room), *found[:4]
    base = 0
    while base + width <= len(room):
        end = base + tar.into(view[base : base + width], at)
        place, last = base, end - 2 * _BLOCK  # with each header the block behind it
        while place <= last:
            head = place
            if room[place + 156] == _EXTENDED:
                head += 2 * _BLOCK
                if head > last:
                    break
            try:
                size = int(room[head + 124 : head + 135], 8)
            except ValueError:
                ends.append(end)
                is_end = room[place : place + _BLOCK] == _ZEROS
                return found._replace(next=at + place - base, width=0) if is_end else None
            if size < 0:
                return None
            if head > place:
                extended.append(len(marks))
            marks.append(head)
            sizes.append(size)
            place = head + _BLOCK + size + -size % _BLOCK
        if place == base:
            return None
        at += place - base
        if width < _LARGEST and place < end + width:  # two pages for what lies next to each other
            width *= 2
        base = end
        ends.append(end)
    return found._replace(next=at, width=width)


def _look(pages: _Pages, room: bytearray, at: int, jsons: dict[int, bytes]) -> tuple[np.ndarray, ...] | None:
    """Names, kinds, beginnings (with the extended header), places of the bytes, and sizes that headers say.

    None if a header is not plain. Puts the `.json`s that lie in the pages to the others.

    Args:
      pages: of a tar.
      room: the memory in which they lie.
      at: where in the tar their first header is.
      jsons: as in `Headers`.
    """
    rows, view = np.frombuffer(room, np.uint8).reshape(-1, _BLOCK), memoryview(room)
    marks, extended, sizes = (np.array(x, np.int64) for x in (pages.marks, pages.extended, pages.sizes))
    heads = rows[marks // _BLOCK]
    if not (_are_plain(heads) and _tell_nothing(rows, marks[extended] // _BLOCK - 2)):
        return None
    before = np.zeros_like(marks)
    before[extended] = 2 * _BLOCK
    data = at + np.cumsum(before + _BLOCK + np.append(0, (sizes + -sizes % _BLOCK)[:-1])[: len(sizes)])
    names = np.ascontiguousarray(heads[:, :_NAME])
    found = np.flatnonzero(np.strings.endswith(names.view(f"S{_NAME}")[:, 0], b".json"))
    behind = marks[found] + _BLOCK
    ends = np.array(pages.ends)[np.searchsorted(pages.ends, behind - 1, "right")]
    found, behind = (column[behind + sizes[found] <= ends] for column in (found, behind))
    for place, start, size in zip(
        *(column.tolist() for column in (data[found], behind, sizes[found])), strict=True
    ):
        jsons[place] = bytes(view[start : start + size])
    return names, heads[:, 156], data - _BLOCK - before, data, sizes


def _narrow(names: np.ndarray) -> np.ndarray | None:
    """Files' names no wider than the longest; None if one is empty, a folder's, or goes on after a NUL."""
    inside = names != 0
    lengths = inside.sum(axis=1)
    if not lengths.all() or (names[np.arange(len(names)), lengths - 1] == ord("/")).any():
        return None
    if (inside[:, 1:] > inside[:, :-1]).any():
        return None
    return np.ascontiguousarray(names[:, : lengths.max()])


def base_starts(names: np.ndarray) -> np.ndarray:
    """Where the last path component of each name begins, names as in `Headers`."""
    slashes = names == ord("/")
    if not slashes.any():
        return np.zeros(len(names), np.int64)
    width = names.shape[1]
    return np.where(slashes.any(axis=1), width - slashes[:, ::-1].argmax(axis=1), 0)


def _are_hidden(names: np.ndarray) -> np.ndarray:
    return names[np.arange(len(names)), base_starts(names)] == ord(".")


def _tell_nothing(rows: np.ndarray, extended: np.ndarray) -> bool:
    """Whether extended headers name nothing that matters here.

    Args:
      rows: the tar's blocks, shape (n, 512).
      extended: numbers of those that are such headers, each before the one that its records are in.
    """
    heads, records = rows[extended], rows[extended + 1]
    sizes = heads[:, 124:135] - np.uint8(ord("0"))
    sizes = np.where((sizes[:, :7] == 0).all(axis=1), sizes[:, 7:].astype(np.int64) @ [512, 64, 8, 1], 0)
    if not (((sizes > 0) & (sizes <= _BLOCK)).all() and _are_plain(heads)):
        return False
    return _are_times(records) or all(_tells_nothing(row.tobytes()) for row in records)


def _are_times(records: np.ndarray) -> bool:
    """Whether each is one time, as webdataset writes them: "28 mtime=1700000000.1234567" and a line feed."""
    short = np.ascontiguousarray(records[:, :_SHORT])
    ends = short == ord("\n")
    told = (short[:, 0] - np.uint8(ord("0"))).astype(np.int64) * 10 + short[:, 1] - ord("0")
    whole = (ends.sum(axis=1) == 1) & (ends.argmax(axis=1) + 1 == told) & (short[:, -1] == 0)
    # Each begins with something and ends in NULs, so they match one by one.
    alone = short[:, 0].all() and not records[:, _SHORT:].any()
    return bool(whole.all() and alone and _TIMES.fullmatch(short.tobytes()))


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


def _are_plain(rows: np.ndarray) -> bool:
    """Whether checksums hold, numbers are plain and end where tarfile would end them, and no prefix belongs to a name.

    Args:
      rows: headers, shape (n, 512), uint8.
    """
    ends = rows[:, [135, 154, 155]]
    ended = (ends == 0) | (ends == ord(" "))
    if not (ended[:, :2].all() and (ended[:, 2] | (ends[:, 1] == 0)).all() and not rows[:, 345].any()):
        return False
    digits = rows[:, 148:154].astype(np.int64) - ord("0")
    told = digits @ 8 ** np.arange(5, -1, -1)
    sums = rows.sum(axis=1, dtype=np.uint32).astype(np.int64)
    # The field of the sum itself counts as blanks.
    sums += 8 * ord(" ") - rows[:, 148:156].sum(axis=1, dtype=np.int64)
    of_sizes = rows[:, 124:135] - np.uint8(ord("0"))
    return bool((told == sums).all() and (digits >= 0).all() and (digits < 8).all() and (of_sizes < 8).all())


_PIECE = 1 << 20


class TarReader:
    """A file as slices of bytes.

    Attributes:
      path: of the file.
      jsons: where the bytes of a `.json` begin -> these, of those that the look through the headers came across.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        """Takes a file that is open for reading."""
        self.path, self._file = path, file
        self._number = file.fileno() if storage.Folder(path).is_local and hasattr(os, "preadv") else None
        self.jsons: dict[int, bytes] = {}

    def __getitem__(self, where: slice) -> bytes:
        if self._number is not None:
            return os.pread(self._number, where.stop - where.start, where.start)
        self._file.seek(where.start)
        return self._file.read(where.stop - where.start)

    def into(self, room: memoryview, start: int) -> int:
        """Fills memory with the bytes from a place on; how many there were."""
        if self._number is not None:
            return os.preadv(self._number, [room], start)
        self._file.seek(start)
        return self._file.readinto(room)  # type: ignore[attr-defined]

    def pieces(self, start: int) -> Iterator[bytes]:
        """What is there from a place on."""
        while piece := self[start : start + _PIECE]:
            yield piece
            start += len(piece)


@contextlib.contextmanager
def opened(path: str) -> Iterator[TarReader]:
    """A file as slices of bytes.

    Raises:
      InputError: it can't be opened.
    """
    with storage.open_read(path) as file:
        yield TarReader(path, file)
