"""Sets and multisets of uids: sorted arrays of any size, usually memory-mapped, merged and sorted in bounded memory.

A part holds the uids between two cuts, one slice of every array. Parts are independent: threads merge several at a
time, and memory is bounded by the parts in flight, not by the arrays.
"""

from __future__ import annotations

import bisect
import functools
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Literal, NamedTuple

import numpy as np

from clipdata_jax.formats import uids
from clipdata_jax.runtime import threads

Operation = Literal["union", "intersect", "minus"]
_PART = 1 << 16  # rows: merging is fastest in the processor's cache
_SLICE = 1 << 11  # rows of each run in a part of a sort: every cut is searched for in all runs
_BLOCK = 1 << 20  # rows in memory at a time, where any number would do
_RUNS = 4  # runs that are sorted at once


class Order(NamedTuple):
    """The order of an array of uids.

    Attributes:
      unsorted_at: the first row smaller than its predecessor, None if the array is sorted.
      repeats: the number of rows equal to their predecessor: all repeats, if the array is sorted.
      repeated_at: the first such row, None if there is none.
    """

    unsorted_at: int | None
    repeats: int
    repeated_at: int | None


def check_order(rows: np.ndarray) -> Order:
    """Finds where an array of dtype u8,u8 isn't sorted, or repeats a uid; reads it in blocks."""
    unsorted_at, repeated_at, repeats = None, None, 0
    for start in range(0, len(rows), _BLOCK):
        first = max(start - 1, 0)
        block = rows[first : start + _BLOCK]
        high, low = block["f0"], block["f1"]
        same = high[1:] == high[:-1]
        falls = (high[1:] < high[:-1]) | (same & (low[1:] < low[:-1]))
        same &= low[1:] == low[:-1]
        if unsorted_at is None and falls.any():
            unsorted_at = first + 1 + int(falls.argmax())
        if repeated_at is None and same.any():
            repeated_at = first + 1 + int(same.argmax())
        repeats += int(same.sum())
    return Order(unsorted_at, repeats, repeated_at)


def parts(arrays: Sequence[np.ndarray], rows: int = _PART) -> Iterator[list[np.ndarray]]:
    """Cuts sorted arrays at the same uids into parts, each a slice of every array.

    Args:
      arrays: sorted uids of dtype u8,u8, repeats allowed; at least one array.
      rows: about how many rows a part has in all. Equal uids are never cut apart.
    """
    total = sum(map(len, arrays))
    stride = max(1, min(rows // (4 * len(arrays)), total))
    marks = uids.sort(np.concatenate([array[::stride] for array in arrays]))
    cuts = uids.unique(marks[:: max(1, rows // stride)][1:]).tolist()
    begins = [0] * len(arrays)
    for cut in cuts:
        ends = [_rows_below(array, cut, begin) for array, begin in zip(arrays, begins, strict=True)]
        yield [array[begin:end] for array, begin, end in zip(arrays, begins, ends, strict=True)]
        begins = ends
    yield [array[begin:] for array, begin in zip(arrays, begins, strict=True)]


def _rows_below(array: np.ndarray, cut: tuple[int, int], begin: int) -> int:
    # np.searchsorted would first copy a whole field into contiguous memory.
    return bisect.bisect_left(range(len(array)), cut, lo=begin, key=lambda row: array[row].item())


class _Merged(NamedTuple):
    """The sorted rows of several slices; the group of each distinct uid begins at `starts`."""

    rows: np.ndarray
    starts: np.ndarray
    counts: list[np.ndarray]

    @classmethod
    def of(cls, part: Sequence[np.ndarray], multiset: bool) -> _Merged:
        """Groups a part; `counts` holds, for every slice, how often each group's uid is in it."""
        slices = part if multiset else [uids.unique(rows) for rows in part]
        rows, order = _merge(slices)
        starts = np.flatnonzero(uids.first_of_each(rows))
        if len(slices) == 1 or not len(rows):
            return cls(rows, starts, [np.diff(np.append(starts, len(rows)))] * len(slices))
        ends = np.cumsum([len(one) for one in slices])
        source = np.searchsorted(ends, order, side="right")
        return cls(rows, starts, [np.add.reduceat(source == i, starts, dtype=np.int64) for i in range(len(ends))])


def _merge(slices: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merges sorted slices; returns the rows and their positions in the concatenation; equal rows keep their order."""
    # A stable sort detects the sorted runs and only merges them.
    order = np.argsort(np.concatenate([rows["f0"] for rows in slices]), kind="stable")
    rows = np.take(np.concatenate(slices), order)
    high, low = rows["f0"], rows["f1"]
    if ((high[1:] == high[:-1]) & (low[1:] < low[:-1])).any():
        again = np.lexsort((low, high))
        rows, order = rows[again], order[again]
    return rows, order


def combine(operation: Operation, part: Sequence[np.ndarray], multiset: bool = False) -> np.ndarray:
    """Computes the union, intersection or difference (the first minus all others) of sorted slices.

    Args:
      operation: "union", "intersect" or "minus".
      part: slices of sorted uids of dtype u8,u8, repeats allowed.
      multiset: keep repeats: of a uid that the slices hold c_1, c_2 ... times, the union has the sum, the
        intersection min(c), the difference max(0, c_1 - c_2 - ...). Otherwise each slice counts as a set.

    Returns:
      Sorted uids; unique unless `multiset`.
    """
    if operation == "union":
        rows = _merge(part)[0]
        return rows if multiset else uids.unique(rows)
    merged = _Merged.of(part, multiset)
    first, *others = merged.counts
    fewest = np.minimum.reduce(merged.counts)
    times = fewest if operation == "intersect" else np.maximum(first - sum(others), 0)
    return np.repeat(merged.rows[merged.starts], times)


class SetOverlap(NamedTuple):
    """The uids that several sets share.

    Attributes:
      both: shape (k, k), int64: uids in set i and set j, repeats counted in multisets; [i, i] is set i's size.
      any: distinct uids in at least one of them.
      all: distinct uids in every one of them.
    """

    both: np.ndarray
    any: int
    all: int


def overlap(part: Sequence[np.ndarray], multiset: bool = False) -> SetOverlap:
    """Counts the uids that sorted slices share; the overlaps of all parts add up."""
    counts = _Merged.of(part, multiset).counts
    both = np.array([[np.minimum(one, other).sum() for other in counts] for one in counts], np.int64)
    return SetOverlap(both, len(counts[0]), int(np.count_nonzero(np.minimum.reduce(counts))))


class UidSorter:
    """An external merge sort: takes uids in any order, yields them sorted.

    What exceeds the memory is sorted and appended, as a run, to a temporary file; the runs are merged part by part.

    Args:
      scratch: returns a local folder for the temporary file; called only if one is needed.
      multiset: whether repeats are kept.
      memory: bytes of uids to hold.
    """

    def __init__(self, scratch: Callable[[], str], *, multiset: bool = False, memory: int = 1 << 26) -> None:
        self._scratch, self._multiset, self._memory = scratch, multiset, memory
        self._held: list[np.ndarray] = []
        self._bytes = 0
        self._sort = uids.sort if multiset else uids.sort_unique
        self._file: IO[bytes] | None = None
        self._ends: list[int] = []

    def add(self, uid: np.ndarray) -> None:
        """Takes some uids."""
        self._held.append(uid)
        self._bytes += uid.nbytes
        if self._bytes > self._memory:
            self._spill()

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields all uids in order, in blocks; call it once, after the last `add`."""
        if self._file is None:
            yield self._sort(np.concatenate([np.empty(0, uids.DTYPE), *self._held]))
            return
        if self._held:
            self._spill()
        whole = np.asarray(np.memmap(self._file, uids.DTYPE, "r"))
        runs = np.split(whole, self._ends[:-1])
        merge = functools.partial(combine, "union", multiset=self._multiset)
        yield from threads.prefetch(merge, parts(runs, min(max(_PART, len(runs) * _SLICE), _BLOCK)))

    def _spill(self) -> None:
        """Appends what is held to the file, as a few runs that threads sort at once."""
        if self._file is None:
            # One file for all runs: a file each could exceed the limit of open files.
            self._file = tempfile.TemporaryFile(dir=self._scratch())  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        held = np.concatenate(self._held)
        self._held.clear()
        self._bytes = 0
        for run in threads.prefetch(self._sort, np.array_split(held, min(threads.cores(), _RUNS))):
            run.tofile(self._file)
            self._ends.append((self._ends or [0])[-1] + len(run))
