"""Drawing the pairs that a page shows, by seed: from bands of a score, quadrants and disagreements."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from clipdata_jax.formats.hashing import scatter
from clipdata_jax.report.quadrants import Quadrants, quadrant_of
from clipdata_jax.selection.ranking import Quantiles, chunks

QUANTILES = (1.0, 0.9, 0.8, 0.5, 0.2, 0.1, 0.0)
_REACH = 0.01


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Rows drawn from some of a pool's pairs, kept ones first.

    Attributes:
      pairs: how many pairs there were to draw from.
      kept: how many of those are kept.
      rows: the rows drawn.
    """

    pairs: int
    kept: int
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Band:
    """The pairs around a quantile of a score.

    Attributes:
      quantile: 1 is the best score.
      low: lowest score of the band.
      high: highest score of the band.
      drawn: the pairs in it and those shown.
    """

    quantile: float
    low: float
    high: float
    drawn: Drawn


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """The pairs that two scores rank most differently.

    Attributes:
      correlation: of the two ranks over all pairs that have both scores.
      first_higher: rows that the first score ranks far above the second, the widest gap first.
      second_higher: the other way round.
      widest: the widest gap of each, as a share of the pool; 0 where none is.
    """

    correlation: float
    first_higher: tuple[int, ...]
    second_higher: tuple[int, ...]
    widest: tuple[float, float]


def draw(rows: np.ndarray, wanted: int, *, seed: int, salt: str) -> np.ndarray:
    """Draws rows without replacement, by a hash of seed, salt and row, so that no library's version matters.

    Args:
      rows: int64, (n,), distinct.
      wanted: at most how many.
      seed: of the page.
      salt: of this draw.

    Returns:
      int64, (min(n, wanted),), in drawn order.
    """
    key = (np.uint64(seed % 2**32) << np.uint64(32)) | np.uint64(zlib.crc32(salt.encode()))
    order = scatter(rows.astype(np.uint64) ^ scatter(np.array([key]))[0])
    if len(rows) > wanted:
        first = np.argpartition(order, wanted - 1)[:wanted]
        rows, order = rows[first], order[first]
    return rows[np.argsort(order)]


def draw_both(belongs: Callable[[slice], np.ndarray], kept: np.ndarray, wanted: int, *, seed: int, salt: str) -> Drawn:
    """Draws kept and dropped pairs in proportion, at least one of each if both exist.

    Args:
      belongs: a slice of the pool -> bool for each of its pairs, whether it may be drawn.
      kept: bool, (n,).
      wanted: at most how many.
      seed: of the page.
      salt: of this draw.
    """
    counts, found = [0, 0], [np.empty(0, np.int64), np.empty(0, np.int64)]
    for part in chunks(len(kept)):
        inside = belongs(part)
        for side, mask in enumerate((inside & kept[part], inside & ~kept[part])):
            rows = np.flatnonzero(mask) + part.start
            counts[side] += len(rows)
            found[side] = draw(np.concatenate([found[side], rows]), wanted, seed=seed, salt=salt)
    share = counts[0] / max(sum(counts), 1)
    of_kept = round(share * wanted)
    if wanted > 1 and 0 < share < 1:
        of_kept = min(max(of_kept, 1), wanted - 1)
    # Where one side has too few, the other fills up.
    of_kept = min(max(of_kept, wanted - counts[1]), counts[0])
    rows = [*found[0][:of_kept], *found[1][: wanted - of_kept]]
    return Drawn(sum(counts), counts[0], tuple(int(row) for row in rows))


def bands(name: str, values: np.ndarray, kept: np.ndarray, ranks: Quantiles, *, wanted: int, seed: int) -> list[Band]:
    """Draws pairs within 1 % of the pool around fixed quantiles of a score; [] if no pair has one.

    Args:
      name: the column, which salts the draw.
      values: float32, (n,).
      kept: bool, (n,).
      ranks: the column's order.
      wanted: pairs a band.
      seed: of the page.
    """
    found = []
    for quantile in QUANTILES if ranks.rows else ():
        low, high = (ranks.value_at(min(max(q, 0.0), 1.0)) for q in (quantile - _REACH, quantile + _REACH))
        belongs = functools.partial(_between, values, low, high)
        drawn = draw_both(belongs, kept, wanted, seed=seed, salt=f"{name} {quantile}")
        found.append(Band(quantile, low, high, drawn))
    return found


def _between(values: np.ndarray, low: float, high: float, part: slice) -> np.ndarray:
    return (values[part] >= low) & (values[part] <= high)


def of_quadrants(
    quadrants: Quadrants, columns: Mapping[str, np.ndarray], kept: np.ndarray, *, wanted: int, seed: int
) -> list[Drawn]:
    """Draws pairs from each of the four quadrants, as `draw_both` does."""
    x, y = columns[quadrants.x], columns[quadrants.y]

    def belongs(index: int, part: slice) -> np.ndarray:
        return np.asarray(quadrant_of(x[part], y[part], quadrants.at) == index)

    return [
        draw_both(functools.partial(belongs, index), kept, wanted, seed=seed, salt=f"quadrant {index}")
        for index in range(4)
    ]


def disagree(first: np.ndarray, second: np.ndarray, ranks: tuple[Quantiles, Quantiles], *, wanted: int) -> Disagreement:
    """Finds the pairs whose ranks by two scores differ most; equal gaps go by row.

    Args:
      first: float32, (n,).
      second: float32, (n,).
      ranks: the order of each.
      wanted: pairs each way.
    """
    best: list[tuple[float, int]] = []
    worst: list[tuple[float, int]] = []
    sums = np.zeros(6)
    for part in chunks(len(first)):
        a, b = ranks[0].middle(first[part]), ranks[1].middle(second[part])
        rows = np.flatnonzero(np.isfinite(a) & np.isfinite(b))
        a, b = a[rows] - 0.5, b[rows] - 0.5
        sums += np.array([len(rows), a.sum(), b.sum(), a @ a, b @ b, a @ b], float)
        best = _widest(best, a - b, rows + part.start, wanted)
        worst = _widest(worst, b - a, rows + part.start, wanted)
    widest = (-best[0][0] if best else 0.0, -worst[0][0] if worst else 0.0)
    first_higher, second_higher = (tuple(row for _, row in gaps) for gaps in (best, worst))
    return Disagreement(_correlation(sums), first_higher, second_higher, widest)


def _widest(before: list[tuple[float, int]], gap: np.ndarray, rows: np.ndarray, wanted: int) -> list[tuple[float, int]]:
    """The widest positive gaps of before and now, as (-gap, row) in order."""
    if len(gap) > wanted:
        least = np.partition(gap, len(gap) - wanted)[len(gap) - wanted]
        near = np.flatnonzero(gap >= least)
        near = near[np.argsort(-gap[near], kind="stable")[:wanted]]
        gap, rows = gap[near], rows[near]
    now = [(-float(g), int(row)) for g, row in zip(gap, rows, strict=True) if g > 0]
    return sorted(before + now)[:wanted]


def _correlation(sums: np.ndarray) -> float:
    n, a, b, aa, bb, ab = sums
    if n < 2:
        return float("nan")
    spread = (aa - a * a / n) * (bb - b * b / n)
    return float((ab - a * b / n) / np.sqrt(spread)) if spread > 0 else float("nan")
