"""Exact selection of the first k rows of an order, in passes over blocks, in memory that doesn't grow with the pool.

The order is by key, then by uid, then by row. The last selected row is found digit by digit, as in a radix sort: a
pass counts the rows by the next 16 bits of their keys, which gives the bin of the k-th; once few rows are left in
that bin, their keys are collected instead. Keys are uint32 or uint64, smaller first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clipdata_jax.selection.pools import ScoreBlock

_DIGIT = 16
_COLLECT = 1 << 21
"""Keys held at once, up to 16 MiB."""


class Search:
    """A search for the last of the first k rows, after which `keep` marks a block's rows among them.

    While `found` is false: `look` at every block, then `end_pass`. Uids are read only where keys are equal.

    Args:
      rows: an upper bound on the number of rows.
      count_of: returns k, given the number of rows to choose from, with or without a key.

    Attributes:
      found: whether the search is finished.
      count: k, once the first pass has ended.
      tied: rows whose key is that of the last selected row, and how many of them are selected, where their uids
        decide which; else (0, 0).
    """

    def __init__(self, rows: int, count_of: Callable[[int], int]) -> None:
        self.found = False
        self.count = 0
        self.tied = (0, 0)
        self._count_of = count_of
        self._limits: list[int] = []  # the last row's key, uid halves and row number, as far as needed
        self._with_equal = False
        self._left = -1  # how many of the candidates are among the first k; -1 before the first pass
        self._candidates = rows
        self._shift, self._prefix = 0, 0  # candidates: key >> shift == prefix; at the first digit any key
        self._bits = 0
        self._seen = 0
        self._counts = np.zeros(0, np.int64)
        self._collected: list[np.ndarray] = []
        self._looked = False

    def look(self, block: ScoreBlock, keys: np.ndarray, among: np.ndarray, seen: int) -> None:
        """Counts or collects a block's keys.

        Args:
          block: the block.
          keys: shape (rows,), uint32 or uint64.
          among: shape (rows,), bool: the rows to choose from that have a key.
          seen: the number of rows to choose from, with or without a key.
        """
        self._looked = True
        self._seen += seen
        tied = self._compare(block, keys, among)[1]
        if len(self._limits) and not tied.any():
            return
        keys = self._keys(block, keys, len(self._limits))
        if not self._bits:
            self._bits = self._shift = 8 * keys.itemsize
        if self._shift < self._bits:
            tied &= keys >> keys.dtype.type(self._shift) == self._prefix
        keys = keys if tied.all() else keys[tied]
        if self._candidates <= _COLLECT:
            self._collected.append(keys)
            return
        # The cast to uint16 cuts off the digits above.
        digits = (keys >> keys.dtype.type(self._shift - _DIGIT)).astype(np.uint16)
        counts = np.bincount(digits, minlength=1 << _DIGIT)
        self._counts = self._counts + counts if len(self._counts) else counts

    def end_pass(self) -> None:
        """Ends a pass over all blocks."""
        if not self._looked:  # an earlier step of the rule is still searching
            return
        collected = np.concatenate(self._collected) if self._collected else np.zeros(0, np.uint64)
        counts, self._counts, self._collected, self._looked = self._counts, np.zeros(0, np.int64), [], False
        if self._left < 0:
            self.count = self._left = self._count_of(self._seen)
            self._candidates = int(counts.sum()) + len(collected)
            if not 0 < self.count < self._candidates:
                self.found, self._with_equal = True, self.count > 0
                return
        if len(counts):
            self._narrow(counts)
        else:
            limit = np.partition(collected, self._left - 1)[self._left - 1]
            self._next_level(int(limit), int((collected < limit).sum()), int((collected == limit).sum()))

    def keep(self, block: ScoreBlock, keys: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Marks the rows in `among` that are among the first k, shape (rows,), bool; arguments as for `look`."""
        before, tied = self._compare(block, keys, among)
        return before | tied if self._with_equal else before

    def _compare(self, block: ScoreBlock, keys: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows before the limits, rows that equal them."""
        before, tied = np.zeros(block.rows, bool), among.copy()
        for level, limit in enumerate(self._limits):
            if level and not tied.any():
                break
            these = self._keys(block, keys, level)
            before |= tied & (these < limit)
            tied &= these == limit
        return before, tied

    def _keys(self, block: ScoreBlock, keys: np.ndarray, level: int) -> np.ndarray:
        if level == 0:
            return keys
        if level == 3:
            return np.arange(block.start, block.start + block.rows, dtype=np.uint64)
        return block.uid[("f0", "f1")[level - 1]]

    def _narrow(self, counts: np.ndarray) -> None:
        sums = np.cumsum(counts)
        digit = int(np.searchsorted(sums, self._left))
        self._shift -= _DIGIT
        self._prefix = self._prefix << _DIGIT | digit
        before, self._candidates = int(sums[digit] - counts[digit]), int(counts[digit])
        if self._left - before == self._candidates or not self._shift:
            last = ((self._prefix + 1) << self._shift) - 1
            self._next_level(last, before, self._candidates)
        else:
            self._left -= before

    def _next_level(self, limit: int, before: int, equal: int) -> None:
        """Fixes the limit at one level; rows equal to it are compared at the next, unless all of them are kept."""
        self._limits.append(limit)
        self._left -= before
        self.found = self._with_equal = self._left == equal
        if len(self._limits) == 1 and not self.found:
            self.tied = (equal, self._left)
        self._candidates = equal
        self._bits = self._shift = self._prefix = 0


def ordered_bits(values: np.ndarray, *, highest_first: bool) -> np.ndarray:
    """Maps numbers to unsigned integers in the same order; -0 equals 0. The result for NaN is unspecified.

    Args:
      values: any float or integer dtype.
      highest_first: whether the highest value gives the smallest key.

    Returns:
      uint32 for dtypes of up to 32 bits, else uint64; the same shape.
    """
    wide = values.dtype.itemsize > 4
    unsigned = np.uint64 if wide else np.uint32
    sign = unsigned(1 << (63 if wide else 31))
    if np.issubdtype(values.dtype, np.floating):
        # Adding 0 turns -0 into 0. IEEE floats are in the order of their bits, the negative ones in reverse.
        words: np.ndarray = np.add(values.astype(np.float64 if wide else np.float32), 0.0).view(unsigned)
        words ^= (unsigned(0) - (words >> unsigned(63 if wide else 31))) | sign
    elif np.issubdtype(values.dtype, np.unsignedinteger):
        words = values.astype(unsigned)
    else:
        words = np.bitwise_xor(values.astype(np.int64 if wide else np.int32).view(unsigned), sign)
    return np.invert(words) if highest_first else words
