"""Where a score stands among the pool's: quantiles and ranks from a bounded summary of a column."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

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
