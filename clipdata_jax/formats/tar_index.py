"""An index of a tar's members and samples, from its headers: array by array where they are plain, else by tarfile.

Only headers and the `.json`s near them are read; images are not touched until they are copied.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from clipdata_jax import storage
from clipdata_jax.formats import tars

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_PIECE = 1 << 20
_PAGE, _LARGEST = 1 << 12, 1 << 14  # bytes
# Bytes of pages in one batch: larger ones leave the cache, for smaller ones NumPy's calls cost more.
_BUFFER = 1 << 22
_NAME = 100  # bytes
_EXTENDED = ord("x")
# Entries of an extended header that change the meaning of the next header.
_MEANINGFUL = (b" path=", b" size=", b" linkpath=", b"GNU.sparse")
_SHORT = 64  # bytes that an extended header of times takes at most
_TIMES = re.compile(rb"(?:\d\d [acm]time=\d+(?:\.\d+)?\n\0+)+")
_UPPER = np.uint8(ord("A"))
# How the names of hidden files and folders begin.
_HIDDEN_STARTS = sorted({(ord(name[0]), ord(name[1])) for name in storage.SYSTEM_NAMES})
_MOST = 64  # members of a sample: comparing all of them with each other would take too long


class TarReader:
    """Random access to the bytes of an open tar.

    Attributes:
      path: the tar.
      jsons: offset -> bytes of each `.json` that was read along with the headers.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._number = file.fileno() if storage.Folder(path).is_local and hasattr(os, "preadv") else None
        self.jsons: dict[int, bytes] = {}

    def __getitem__(self, where: slice) -> bytes:
        if self._number is not None:
            return os.pread(self._number, where.stop - where.start, where.start)
        self._file.seek(where.start)
        return self._file.read(where.stop - where.start)

    def into(self, buffer: memoryview, start: int) -> int:
        """Reads the bytes from an offset on into a buffer; returns their number."""
        if self._number is not None:
            return os.preadv(self._number, [buffer], start)
        self._file.seek(start)
        return int(self._file.readinto(buffer))  # type: ignore[attr-defined]

    def pieces(self, start: int) -> Iterator[bytes]:
        """Yields the bytes from an offset to the end."""
        while piece := self[start : start + _PIECE]:
            yield piece
            start += len(piece)


@contextlib.contextmanager
def open_tar(path: str) -> Iterator[TarReader]:
    """Opens a tar for random access.

    Raises:
      InputError: it can't be opened.
    """
    with storage.open_read(path) as file:
        yield TarReader(path, file)


class TarIndex(NamedTuple):
    """The members of a tar as columns, and the samples that consecutive members form; objects would be slower.

    Attributes:
      path: the tar.
      names: member names, as stored.
      starts: offset of each member's header, or of the extended headers before it.
      data: offset of each member's bytes.
      sizes: number of each member's bytes.
      links: member -> bytes of its target, for members that are links.
      keys: sample keys, in order: those of `tars.read_tar`.
      first: the first member of each sample, and last the number of members.
      jsons: the member that is each sample's `.json`, -1 where it has none.
      hidden: number of hidden members, which are left out, as `tars.read_members` does.
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
    hidden: int

    def name(self, i: int) -> str:
        """The name of member i."""
        return self.names[i].decode(tarfile.ENCODING, "surrogateescape")

    def read(self, i: int, tar: TarReader) -> bytes:
        """The bytes of member i.

        Raises:
          InputError: it is too large to hold in memory.
        """
        if (found := tar.jsons.get(self.data[i])) is not None:
            return found
        tars.check_size(self.path, self.name(i), self.sizes[i])
        return self.links[i] if i in self.links else tar[self.data[i] : self.data[i] + self.sizes[i]]

    def sample(self, i: int) -> IndexedSample:
        """Sample i."""
        return IndexedSample(self, self.keys[i], range(self.first[i], self.first[i + 1]))


class IndexedSample(NamedTuple):
    """A sample of an indexed tar.

    Attributes:
      tar: the index of its tar.
      key: its key there.
      members: its members.
    """

    tar: TarIndex
    key: str
    members: range


def index_tar(tar: TarReader) -> TarIndex:
    """Indexes an open tar.

    Raises:
      InputError: as `tars.read_tar`.
    """
    headers = read_headers(tar)
    if headers is None:
        return _index_any(tar.path)
    tar.jsons = headers.jsons
    starts, data, sizes = (column.tolist() for column in headers[1:4])
    names = _texts(headers.names)
    groups = _plain_groups(headers.names) or _groups(tar.path, names)
    return TarIndex(tar.path, names, starts, data, sizes, {}, *groups, headers.hidden)


def _index_any(path: str) -> TarIndex:
    """Indexes a tar of any form by tarfile."""
    hidden: Counter[str] = Counter()
    with storage.open_read(path) as file:
        walked, linked = [], 0
        for info, data in tars.walk(path, file, hidden):
            # Each of many links to one large member holds a copy of it.
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
        hidden.total(),
    )


class _Groups(NamedTuple):
    keys: list[str]
    first: list[int]
    jsons: list[int]


def _groups(path: str, names: list[bytes]) -> _Groups:
    """Groups names to samples, name by name.

    Raises:
      InputError: as `tars.group_members`.
    """
    texts = [name.decode(tarfile.ENCODING, "surrogateescape") for name in names]
    found = _Groups([], [0], [])
    for key, members, _ in tars.group_members(path, zip(texts, range(len(texts)), strict=True)):
        found.keys.append(key)
        found.first.append(found.first[-1] + len(members))
        found.jsons.append(members.get("json", -1))
    return found


def _plain_groups(names: np.ndarray) -> _Groups | None:
    """Groups names to samples as arrays; None if a name isn't ASCII, a sample is very large or something is wrong.

    Args:
      names: shape (n, w), uint8.
    """
    if not len(names) or (names >= 128).any():
        return None
    columns = np.arange(names.shape[1])
    dots = (names == ord(".")) & (columns >= _base_starts(names)[:, None])
    lengths = (names != 0).sum(axis=1)
    ends = np.where(dots.any(axis=1), dots.argmax(axis=1), lengths)
    keys = _strings(np.where(columns < ends[:, None], names, 0))
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    first = np.append(starts, len(names))
    most = int(np.diff(first).max())
    # "a" and "a." have the same extension: none.
    if most > _MOST or (names[np.arange(len(names)), lengths - 1] == ord(".")).any():
        return None
    texts = _texts(keys[starts])
    # Within a sample names differ in their extensions only, which are compared in lower case.
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
    """Views bytes of shape (n, w) as NumPy strings of shape (n,)."""
    found: np.ndarray = np.ascontiguousarray(names).view(f"S{names.shape[1]}")[:, 0]
    return found


def _texts(names: np.ndarray) -> list[bytes]:
    """NumPy strings, or bytes of shape (n, w), as a list."""
    return list((names if names.ndim == 1 else _strings(names)).tolist())


class Headers(NamedTuple):
    """The files of a tar, in order, without hidden ones.

    Attributes:
      names: shape (n, w), uint8: names, padded with NULs.
      starts: shape (n,), int64: offset of each header, or of the extended headers before it.
      data: shape (n,), int64: offset of each file's bytes.
      sizes: shape (n,), int64: number of each file's bytes.
      jsons: offset -> bytes of each `.json` that was read along with the headers.
      hidden: number of hidden files.
    """

    names: np.ndarray
    starts: np.ndarray
    data: np.ndarray
    sizes: np.ndarray
    jsons: dict[int, bytes]
    hidden: int


def read_headers(tar: TarReader) -> Headers | None:
    """Reads the headers of a tar that holds only plain files and folders with short names; None for any other.

    Raises:
      InputError: data follow the tar's end.
    """
    batches: list[tuple[np.ndarray, ...]] = []
    jsons: dict[int, bytes] = {}
    buffer, at, width = bytearray(_BUFFER), 0, _PAGE
    while width:
        pages = _read_pages(tar, buffer, at, width)
        batch = _parse_pages(pages, buffer, at, jsons) if pages is not None else None
        if pages is None or batch is None:
            return None
        batches.append(batch)
        at, width = pages.next, pages.width
    names, kinds, starts, data, sizes = (np.concatenate(columns) for columns in zip(*batches, strict=True))
    plain = (kinds == ord("0")) | (kinds == 0)
    if not (plain | ((kinds == ord("5")) & (sizes == 0))).all() or not plain.any():
        return None
    if (trimmed := _trim(names[plain])) is None:
        return None
    tars.check_rest(tar.path, tar.pieces(at))
    seen = ~_are_hidden(trimmed)
    starts, data, sizes = (column[plain][seen] for column in (starts, data, sizes))
    return Headers(trimmed[seen], starts, data, sizes, jsons, hidden=int((~seen).sum()))


def _are_hidden(names: np.ndarray) -> np.ndarray:
    """Whether each name is `storage.is_hidden`, names as in `Headers`; only those that may be are looked at as text."""
    rows, slashes = np.nonzero(names == ord("/"))
    rows, columns = np.append(np.arange(len(names)), rows), np.append(np.zeros(len(names), np.int64), slashes + 1)
    first = names[rows, columns]
    second = names[rows, np.minimum(columns + 1, names.shape[1] - 1)]
    may_be = (first == ord(".")) & (second != ord("/"))
    for one, two in _HIDDEN_STARTS:
        may_be |= ((first | 32) == one | 32) & ((second | 32) == two | 32)
    found = np.zeros(len(names), bool)
    for row in np.unique(rows[may_be]):
        found[row] = storage.is_hidden(bytes(names[row]).rstrip(b"\0").decode(tarfile.ENCODING, "surrogateescape"))
    return found


class _Pages(NamedTuple):
    """The headers found in pages of a tar, which lie in a buffer one after the other.

    Attributes:
      ends: position in the buffer where each page ends.
      marks: position in the buffer of each header.
      sizes: size of each header's member.
      extended: numbers of the headers that an extended header and its block of records precede.
      next: offset in the tar of the next header; at the last batch, of the tar's end.
      width: bytes that the next pages should have; 0 at the last batch.
    """

    ends: list[int]
    marks: list[int]
    sizes: list[int]
    extended: list[int]
    next: int
    width: int


def _read_pages(tar: TarReader, buffer: bytearray, at: int, width: int) -> _Pages | None:
    """Reads from header to header until the buffer is full; None if the tar is cut short or of another form."""
    found = _Pages([], [], [], [], at, width)
    view, ends, marks, sizes, extended = memoryview(buffer), *found[:4]
    base = 0
    while base + width <= len(buffer):
        end = base + tar.into(view[base : base + width], at)
        place, last = base, end - 2 * _BLOCK  # each header with the block after it
        while place <= last:
            head = place
            if buffer[place + 156] == _EXTENDED:
                head += 2 * _BLOCK
                if head > last:
                    break
            try:
                size = int(buffer[head + 124 : head + 135], 8)
            except ValueError:
                ends.append(end)
                is_end = buffer[place : place + _BLOCK] == _ZEROS
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
        if width < _LARGEST and place < end + width:  # two pages would have been neighbours
            width *= 2
        base = end
        ends.append(end)
    return found._replace(next=at, width=width)


def _parse_pages(pages: _Pages, buffer: bytearray, at: int, jsons: dict[int, bytes]) -> tuple[np.ndarray, ...] | None:
    """Parses headers into names, kinds, starts, data offsets and sizes, as in `Headers`; None if one is not plain.

    Args:
      pages: the headers found.
      buffer: the pages' bytes.
      at: offset in the tar of the first header.
      jsons: as in `Headers`; takes the `.json`s that lie in the pages.
    """
    rows, view = np.frombuffer(buffer, np.uint8).reshape(-1, _BLOCK), memoryview(buffer)
    marks, extended, sizes = (np.array(x, np.int64) for x in (pages.marks, pages.extended, pages.sizes))
    heads = rows[marks // _BLOCK]
    if not (_are_plain(heads) and _are_negligible(rows, marks[extended] // _BLOCK - 2)):
        return None
    before = np.zeros_like(marks)
    before[extended] = 2 * _BLOCK
    data = at + np.cumsum(before + _BLOCK + np.append(0, (sizes + -sizes % _BLOCK)[:-1])[: len(sizes)])
    names = np.ascontiguousarray(heads[:, :_NAME])
    found = np.flatnonzero(np.strings.endswith(names.view(f"S{_NAME}")[:, 0], b".json"))
    behind = marks[found] + _BLOCK
    ends = np.array(pages.ends)[np.searchsorted(pages.ends, behind - 1, "right")]
    found, behind = (column[behind + sizes[found] <= ends] for column in (found, behind))
    for place, start, size in zip(*(column.tolist() for column in (data[found], behind, sizes[found])), strict=True):
        jsons[place] = bytes(view[start : start + size])
    return names, heads[:, 156], data - _BLOCK - before, data, sizes


def _are_plain(rows: np.ndarray) -> bool:
    """Whether checksums match, numbers are octal and end where tarfile ends them, and no name has a prefix.

    Args:
      rows: headers, shape (n, 512), uint8.
    """
    ends = rows[:, [135, 154, 155]]
    ended = (ends == 0) | (ends == ord(" "))
    if not (ended[:, :2].all() and (ended[:, 2] | (ends[:, 1] == 0)).all() and not rows[:, 345].any()):
        return False
    digits = rows[:, 148:154].astype(np.int64) - ord("0")
    recorded = digits @ 8 ** np.arange(5, -1, -1)
    sums = rows.sum(axis=1, dtype=np.uint32).astype(np.int64)
    # The field of the sum itself counts as blanks.
    sums += 8 * ord(" ") - rows[:, 148:156].sum(axis=1, dtype=np.int64)
    of_sizes = rows[:, 124:135] - np.uint8(ord("0"))
    return bool((recorded == sums).all() and (digits >= 0).all() and (digits < 8).all() and (of_sizes < 8).all())


def _are_negligible(rows: np.ndarray, extended: np.ndarray) -> bool:
    """Whether extended headers change no name, size or kind.

    Args:
      rows: the tar's blocks, shape (n, 512).
      extended: the blocks that are extended headers; the block after each holds its records.
    """
    heads, records = rows[extended], rows[extended + 1]
    sizes = heads[:, 124:135] - np.uint8(ord("0"))
    sizes = np.where((sizes[:, :7] == 0).all(axis=1), sizes[:, 7:].astype(np.int64) @ [512, 64, 8, 1], 0)
    if not (((sizes > 0) & (sizes <= _BLOCK)).all() and _are_plain(heads)):
        return False
    return _are_times(records) or all(_is_negligible(row.tobytes()) for row in records)


def _are_times(records: np.ndarray) -> bool:
    """Whether each block is one time, as webdataset writes it: "28 mtime=1700000000.1234567" and a line feed."""
    short = np.ascontiguousarray(records[:, :_SHORT])
    ends = short == ord("\n")
    length = (short[:, 0] - np.uint8(ord("0"))).astype(np.int64) * 10 + short[:, 1] - ord("0")
    whole = (ends.sum(axis=1) == 1) & (ends.argmax(axis=1) + 1 == length) & (short[:, -1] == 0)
    # Each begins with a digit and ends in NULs, so the pattern matches them one by one.
    alone = short[:, 0].all() and not records[:, _SHORT:].any()
    return bool(whole.all() and alone and _TIMES.fullmatch(short.tobytes()))


def _is_negligible(records: bytes) -> bool:
    """Whether pax records are well-formed, followed by NULs only, and change no name, size or kind.

    Others are left to tarfile, whose versions differ in their treatment of damaged ones.
    """
    if any(word in records for word in _MEANINGFUL):
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


def _trim(names: np.ndarray) -> np.ndarray | None:
    """Cuts file names to the longest one's width; None if one is empty, a folder's, or goes on after a NUL."""
    inside = names != 0
    lengths = inside.sum(axis=1)
    if not lengths.all() or (names[np.arange(len(names)), lengths - 1] == ord("/")).any():
        return None
    if (inside[:, 1:] > inside[:, :-1]).any():
        return None
    return np.ascontiguousarray(names[:, : lengths.max()])


def _base_starts(names: np.ndarray) -> np.ndarray:
    """The column where the last path component of each name begins, names as in `Headers`."""
    slashes = names == ord("/")
    if not slashes.any():
        return np.zeros(len(names), np.int64)
    width = names.shape[1]
    return np.where(slashes.any(axis=1), width - slashes[:, ::-1].argmax(axis=1), 0)
