"""All headers of a tar at once, where they are of the plain form that tars for training have.

Reading 10,000 headers one by one takes tarfile as long as copying half a gigabyte. Here Python only goes from header
to header, which lie in pages of a few KiB: those of a sample's caption and `.json` and of the next picture are
neighbours. NumPy does the rest, many headers at a time.
"""

from __future__ import annotations

import re
import tarfile
from typing import NamedTuple

import numpy as np

from clipdata_jax.data import tars
from clipdata_jax.data.tar_bytes import Bytes

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


def read(tar: Bytes) -> Headers | None:
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


def _walk(tar: Bytes, room: bytearray, at: int, width: int) -> _Pages | None:
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
