"""Orders of rows in memory: the first k rows, ranks within a pool, and quantiles of a column."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clipdata_jax.selection.pools import ScoreBlock, ScoredPool

_KNOTS = (1 << 16) + 1
_CHUNK = 1 << 20


def first(keys: Sequence[np.ndarray], count: int, among: np.ndarray) -> np.ndarray:
    """Marks the first rows in the order of several keys, without sorting.

    The first key decides; among equals the second, and so on; rows equal in all keys come in row order.

    Args:
      keys: one or more arrays of shape (n,), smaller first; no NaN in the rows to choose from.
      count: how many rows to mark.
      among: shape (n,), bool: the rows to choose from.

    Returns:
      shape (n,), bool, with min(count, among.sum()) rows marked.
    """
    kept = np.zeros(len(among), bool)
    rows = np.flatnonzero(among)
    for key in keys:
        if count >= len(rows) or count <= 0:
            break
        values = key[rows]
        # The order on either side of the threshold doesn't matter: a partition is linear, a sort isn't.
        threshold = np.partition(values, count - 1)[count - 1]
        before = rows[values < threshold]
        kept[before] = True
        count -= len(before)
        rows = rows[values == threshold]
    kept[rows[: max(count, 0)]] = True
    return kept


def count_repeats(uid: np.ndarray) -> int:
    """Counts the rows that repeat the uid of another row: rows less distinct uids.

    Args:
      uid: shape (n,), u8,u8.
    """
    high = np.sort(uid["f0"])
    shared = np.unique(high[1:][high[1:] == high[:-1]])
    if not len(shared):
        return 0
    # Only rows that share their first half are compared whole; among hashes these are the repeats.
    suspects = uid[np.isin(uid["f0"], shared)]
    return len(suspects) - len(np.unique(suspects))


def of_pool(pool: ScoredPool, score: Callable[[ScoreBlock], np.ndarray]) -> np.ndarray:
    """Ranks every row of a pool by a score: float64, shape (n,), 1 the highest; NaN where null or infinite.

    The scores are sorted once, and then looked up; both arrays are files where they exceed the pool's memory.
    """
    ordered = _sorted_scores(pool, score)
    ranks = pool.empty(sum(pool.sizes), np.dtype(np.float64))
    for block in pool.blocks():
        ranks[block.start : block.start + block.rows] = _look_up(ordered, score(block))
    return ranks


def _sorted_scores(pool: ScoredPool, score: Callable[[ScoreBlock], np.ndarray]) -> np.ndarray:
    ordered, filled = np.empty(0), 0
    for block in pool.blocks():
        scores = score(block)
        if block.index == 0:
            ordered = pool.empty(sum(pool.sizes), scores.dtype)
        scores = scores[np.isfinite(scores)]
        ordered[filled : filled + len(scores)] = scores
        filled += len(scores)
    ordered = ordered[:filled]
    ordered.sort()
    return ordered


def _look_up(ordered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    ranks = np.full(len(scores), np.nan)
    rows = np.flatnonzero(np.isfinite(scores))
    # Looking them up in order, near the previous one, is several times faster than at random.
    rows = rows[np.argsort(scores[rows])]
    sought = scores[rows]
    below = np.searchsorted(ordered, sought)
    up_to = below + 1
    # Most scores are unique; only the others need a second search.
    tied = np.flatnonzero(up_to < len(ordered))
    tied = tied[ordered[up_to[tied]] == sought[tied]]
    up_to[tied] = np.searchsorted(ordered, sought[tied], "right")
    ranks[rows] = (below + up_to + 1) / (2 * max(len(ordered), 1))
    return ranks


def chunks(rows: int) -> Iterator[slice]:
    """Yields slices of about a million rows, to bound the memory of row-by-row computations."""
    for start in range(0, rows, _CHUNK):
        yield slice(start, min(start + _CHUNK, rows))


@dataclasses.dataclass(frozen=True)
class Quantiles:
    """The quantiles of a column, exact up to 65,537 scored rows and within 1/65,536 beyond.

    Attributes:
      knots: float32, ascending: all finite values, or 65,537 at even ranks.
      rows: how many rows have a finite score.
      nulls: how many have none.
    """

    knots: np.ndarray
    rows: int
    nulls: int

    @classmethod
    def of(cls, values: np.ndarray) -> Quantiles:
        """Summarizes a column: values of shape (n,), float32; NaN and infinities count as null."""
        finite = np.sort(values[np.isfinite(values)])
        knots = finite
        if len(finite) > _KNOTS:
            knots = finite[np.linspace(0, len(finite) - 1, _KNOTS).round().astype(np.int64)]
        return cls(knots, len(finite), len(values) - len(finite))

    def value_at(self, quantile: float) -> float:
        """The score at a quantile, 1 being the highest; NaN for an empty column."""
        return float(self.knots[round(quantile * (len(self.knots) - 1))]) if self.rows else float("nan")

    def share_at_least(self, values: np.ndarray) -> np.ndarray:
        """For each value, the share of scored rows with at least that score: float64, NaN where null."""
        lower = np.searchsorted(self.knots, values, side="left")
        share = 1 - lower / max(len(self.knots), 1)
        return np.where(np.isfinite(values), share, np.nan)

    def middle(self, values: np.ndarray) -> np.ndarray:
        """For each value, its rank in [0, 1], 1 the highest; equal values share one: float64, NaN where null."""
        if not self.rows:
            return np.full(len(values), np.nan)
        low = np.searchsorted(self.knots, values, side="left")
        # Looking up the end of a run of equal knots from its start takes half the time of a second search.
        ends = np.searchsorted(self.knots, self.knots, side="right")
        at = np.minimum(low, len(self.knots) - 1)
        high = np.where(self.knots[at] == values, ends[at], low)
        return np.where(np.isfinite(values), (low + high) / (2 * len(self.knots)), np.nan)
