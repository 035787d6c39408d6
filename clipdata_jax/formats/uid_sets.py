"""Sets and multisets of uids: sorted arrays of any size, usually files in mapped memory, merged part by part.

A part is all uids between two cuts, from every array, so that parts are independent: threads work on several at
once, and memory is bounded by the parts in flight and not by the arrays.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from clipdata_jax.formats import uids
from clipdata_jax.runtime import threads

Operation = Literal["union", "intersect", "minus"]
# Rows of a part: merging is fastest in the processor's cache.
_PART = 1 << 16
# Rows that are looked through, or dealt to buckets, at a time; and rows of a bucket, which is sorted in memory.
_BLOCK, _BUCKET = 1 << 20, 1 << 21


class Order(NamedTuple):
    """How an array of uids is ordered.

    Attributes:
      unsorted_at: the first row that is smaller than the one before it, None if there is none.
      repeats: rows that equal the one before them; all repeats, if the array is sorted.
      repeated_at: the first such row.
    """

    unsorted_at: int | None
    repeats: int
    repeated_at: int | None


def look_at_order(rows: np.ndarray) -> Order:
    """Looks through an array of dtype u8,u8, in blocks."""
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


def sort_to(rows: np.ndarray, out: np.ndarray) -> None:
    """Sorts uids into another array, usually a file in mapped memory: by their top bits first, then each bucket.

    Memory is bounded where uids spread over their range, as hashes do; equal top bits share a bucket.
    """
    bits = min(max(len(rows) - 1, 0) // _BUCKET, (1 << 16) - 1).bit_length()
    if not bits:
        out[:] = uids.sort(rows)
        return
    shift = np.uint64(64 - bits)
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    sizes = sum(np.bincount((block["f0"] >> shift).astype(np.int64), minlength=1 << bits) for block in blocks)
    ends = np.cumsum(sizes)
    filled = ends - sizes
    for block in blocks:
        bucket = (block["f0"] >> shift).astype(np.uint16)
        dealt = block[np.argsort(bucket, kind="stable")]
        counts = np.bincount(bucket, minlength=1 << bits)
        done = np.cumsum(counts) - counts
        for i in np.flatnonzero(counts):
            out[filled[i] : filled[i] + counts[i]] = dealt[done[i] : done[i] + counts[i]]
        filled += counts

    def sort_bucket(span: tuple[int, int]) -> None:
        out[slice(*span)] = uids.sort(out[slice(*span)])

    collections.deque(threads.prefetch(sort_bucket, zip(ends - sizes, ends, strict=True)), maxlen=0)


def parts(arrays: Sequence[np.ndarray], rows: int = _PART) -> Iterator[list[np.ndarray]]:
    """Cuts sorted arrays at the same uids, so that a part, one slice of each array, has about that many rows.

    Equal uids are never cut apart.
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
    # NumPy's search would first copy the words of a field next to each other, all of them.
    return bisect.bisect_left(range(len(array)), cut, lo=begin, key=lambda row: array[row].item())


class _Merged(NamedTuple):
    """Uids of several slices in one order; equal ones are a group, which begins at `starts`."""

    rows: np.ndarray
    starts: np.ndarray
    counts: list[np.ndarray]

    @classmethod
    def of(cls, part: Sequence[np.ndarray], multiset: bool) -> _Merged:
        """Groups a part; `counts` tells for every slice how often it holds each group's uid."""
        slices = part if multiset else [uids.unique(rows) for rows in part]
        rows, order = _merge(slices)
        starts = np.flatnonzero(uids.first_of_each(rows))
        if len(slices) == 1 or not len(rows):
            return cls(rows, starts, [np.diff(np.append(starts, len(rows)))] * len(slices))
        ends = np.cumsum([len(one) for one in slices])
        source = np.searchsorted(ends, order, side="right")
        return cls(
            rows, starts, [np.add.reduceat(source == i, starts, dtype=np.int64) for i in range(len(ends))]
        )


def _merge(slices: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted slices as one sorted array, and where in their concatenation each row was; equal rows keep order."""
    # A stable sort finds the sorted runs and only merges them.
    order = np.argsort(np.concatenate([rows["f0"] for rows in slices]), kind="stable")
    rows = np.take(np.concatenate(slices), order)
    high, low = rows["f0"], rows["f1"]
    if ((high[1:] == high[:-1]) & (low[1:] < low[:-1])).any():
        again = np.lexsort((low, high))
        rows, order = rows[again], order[again]
    return rows, order


def combine(operation: Operation, part: Sequence[np.ndarray], multiset: bool = False) -> np.ndarray:
    """Union, intersection or difference (the first less all others) of sorted slices.

    Args:
      operation: what to make of them.
      part: sorted uids of dtype u8,u8, repeats allowed.
      multiset: keep repeats: of a uid that the slices hold c_1, c_2 ... times, the union has the sum, the
        intersection min(c), the difference max(0, c_1 - c_2 - ...). Else each slice counts as a set.

    Returns:
      sorted uids; unique unless `multiset`.
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
    """What several sets have in common.

    Attributes:
      both: shape (k, k), int64: uids in set i and set j, repeats counted in multisets; [i, i] is set i's size.
      any: distinct uids in any of them.
      all: distinct uids in all of them.
    """

    both: np.ndarray
    any: int
    all: int


def overlap(part: Sequence[np.ndarray], multiset: bool = False) -> SetOverlap:
    """What sorted slices have in common; overlaps of all parts add up."""
    counts = _Merged.of(part, multiset).counts
    both = np.array([[np.minimum(one, other).sum() for other in counts] for one in counts], np.int64)
    return SetOverlap(both, len(counts[0]), int(np.count_nonzero(np.minimum.reduce(counts))))
