"""Exact choice of the first k rows of an order, without sorting the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clipdata_jax.selection.pools import Block, Pool


def first(keys: Sequence[np.ndarray], count: int, among: np.ndarray) -> np.ndarray:
    """Marks the rows that come first when the rows are ordered by several keys.

    The first key decides; among equals the second, and so on; rows equal in all keys come in row order.

    Args:
      keys: one or more arrays of shape (n,), smaller first; no NaN in the rows that take part.
      count: how many rows to mark; all that take part, where they are fewer.
      among: shape (n,), bool: the rows that take part.

    Returns:
      shape (n,), bool, with min(count, among.sum()) rows marked.
    """
    kept = np.zeros(len(among), bool)
    rows = np.flatnonzero(among)
    for key in keys:
        if count >= len(rows) or count <= 0:
            break
        values = key[rows]
        # The order within either side of the threshold doesn't matter: a partition is linear, a sort isn't.
        threshold = np.partition(values, count - 1)[count - 1]
        before = rows[values < threshold]
        kept[before] = True
        count -= len(before)
        rows = rows[values == threshold]
    kept[rows[: max(count, 0)]] = True
    return kept


def count_repeats(uid: np.ndarray) -> int:
    """How many rows repeat the uid of another row: rows less distinct uids.

    Args:
      uid: shape (n,), u8,u8.
    """
    high = np.sort(uid["f0"])
    shared = np.unique(high[1:][high[1:] == high[:-1]])
    if not len(shared):
        return 0
    # Only rows that share their first half, few unless they do repeat, are looked at whole.
    suspects = uid[np.isin(uid["f0"], shared)]
    return len(suspects) - len(np.unique(suspects))


def of_pool(pool: Pool, score: Callable[[Block], np.ndarray]) -> np.ndarray:
    """The rank of every row, float64, shape (n,); NaN where the score is null or infinite. 1 is the highest.

    The scores are sorted once, and then looked up in order: in files where the pool's memory has no room.
    """
    rows, ordered, filled = sum(pool.sizes), None, 0
    for block in pool.blocks():
        scores = score(block)
        if ordered is None:
            ordered = pool.empty(rows, scores.dtype)
        scores = scores[np.isfinite(scores)]
        ordered[filled : filled + len(scores)] = scores
        filled += len(scores)
    if ordered is None:
        raise AssertionError("a pool has at least one block")
    ordered = ordered[:filled]
    ordered.sort()
    ranks = pool.empty(rows, np.dtype(np.float64))
    for block in pool.blocks():
        ranks[block.start : block.start + block.rows] = _look_up(ordered, score(block))
    return ranks


def _look_up(ordered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    ranks = np.full(len(scores), np.nan)
    rows = np.flatnonzero(np.isfinite(scores))
    # In order, so that neighbours are looked for in the same place: several times faster than at random.
    rows = rows[np.argsort(scores[rows])]
    sought = scores[rows]
    below = np.searchsorted(ordered, sought)
    up_to = below + 1
    # Most scores are there once; only for the others it takes another search how often.
    tied = np.flatnonzero(up_to < len(ordered))
    tied = tied[ordered[up_to[tied]] == sought[tied]]
    up_to[tied] = np.searchsorted(ordered, sought[tied], "right")
    ranks[rows] = (below + up_to + 1) / (2 * max(len(ordered), 1))
    return ranks


_KNOTS = (1 << 16) + 1
_CHUNK = 1 << 20


def chunks(rows: int) -> Iterator[slice]:
    """Slices of about a million rows: what is computed row by row never takes a second pool's memory."""
    for start in range(0, rows, _CHUNK):
        yield slice(start, min(start + _CHUNK, rows))


@dataclasses.dataclass(frozen=True)
class Ranks:
    """A column's order, exact up to 65,537 scored rows and right to 1/65,536 of the pool beyond.

    Attributes:
      knots: float32, ascending: all finite values, or 65,537 at even ranks.
      rows: how many rows have a finite score.
      nulls: how many have none.
    """

    knots: np.ndarray
    rows: int
    nulls: int

    def value_at(self, quantile: float) -> float:
        """The score at a quantile, 1 being the highest; NaN for an empty column."""
        return float(self.knots[round(quantile * (len(self.knots) - 1))]) if self.rows else float("nan")

    def share_at_least(self, values: np.ndarray) -> np.ndarray:
        """For each value, the share of scored rows with at least that score: float64, NaN where null."""
        lower = np.searchsorted(self.knots, values, side="left")
        share = 1 - lower / max(len(self.knots), 1)
        return np.where(np.isfinite(values), share, np.nan)

    def middle(self, values: np.ndarray) -> np.ndarray:
        """For each value, its rank in [0, 1], 1 the highest, equal values sharing one: float64, NaN where null."""
        if not self.rows:
            return np.full(len(values), np.nan)
        low = np.searchsorted(self.knots, values, side="left")
        # The end of a run of equal knots is looked up from its start: half the time of a second search.
        ends = np.searchsorted(self.knots, self.knots, side="right")
        at = np.minimum(low, len(self.knots) - 1)
        high = np.where(self.knots[at] == values, ends[at], low)
        return np.where(np.isfinite(values), (low + high) / (2 * len(self.knots)), np.nan)


def rank(values: np.ndarray) -> Ranks:
    """Sums up a column.

    Args:
      values: shape (n,), float32; NaN and infinities count as null.
    """
    finite = np.sort(values[np.isfinite(values)])
    knots = finite
    if len(finite) > _KNOTS:
        knots = finite[np.linspace(0, len(finite) - 1, _KNOTS).round().astype(np.int64)]
    return Ranks(knots, len(finite), len(values) - len(finite))
