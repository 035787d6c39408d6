"""Near-duplicates on a page: the largest groups, their cosines, and pairs that are too near another set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from clipdata_jax.report import contents, histogram

_GROUPS = 8
_BIN = 0.01  # of the nearest other pairs' cosines
_MARKS = (0.8, 0.9, 0.95, 0.98, 1.0)


@dataclasses.dataclass(frozen=True)
class DuplicateRows:
    """The rows of a table of near-duplicates that a pool has.

    Attributes:
      row: shape (m,), int64: rows of the pool.
      group: shape (m,), int64: the number of the group; -1 in none.
      cosine: shape (m,), float32: with the group's representative; NaN in none.
      is_head: shape (m,), bool: the representatives.
      near: shape (m,), object: the set that the pair is too near to; None if to none.
      near_row: shape (m,), int64: the nearest row of that set.
    """

    row: np.ndarray
    group: np.ndarray
    cosine: np.ndarray
    is_head: np.ndarray
    near: np.ndarray
    near_row: np.ndarray


@dataclasses.dataclass(frozen=True)
class DuplicatePairs:
    """A group, or the pairs that are too near another set.

    Attributes:
      name: of the set; "" of a group.
      pairs: how many there are.
      kept: how many of them the selection keeps.
      rows: those shown.
    """

    name: str
    pairs: int
    kept: int
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class NearestOthers:
    """How near the nearest other pair of each pair is.

    Attributes:
      pairs: that were compared.
      drawing: the histogram of the cosines, all as kept.
      at_least: cosine -> pairs whose nearest other is at least as near.
    """

    pairs: int
    drawing: histogram.HistogramDrawing
    at_least: dict[float, int]


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """What a page shows of near-duplicates.

    Attributes:
      groups: how many there are.
      pairs: in all of them.
      surplus: pairs that the selection keeps though it keeps another one of their group.
      figures: of the duplicates' cosines with their representatives; None if there are none.
      largest: groups, the largest first.
      sets: that pairs are too near to.
      nearest: of all pairs; None if the table's manifest doesn't say.
    """

    groups: int
    pairs: int
    surplus: int
    figures: contents.Figures | None
    largest: tuple[DuplicatePairs, ...]
    sets: tuple[DuplicatePairs, ...]
    nearest: NearestOthers | None

    def shown(self) -> set[int]:
        """The rows that are shown as cards."""
        return {row for one in (*self.largest, *self.sets) for row in one.rows}


def plan(
    found: DuplicateRows, kept: np.ndarray, *, images: int, nearest: Sequence[tuple[float, int]] = ()
) -> Duplicates:
    """Chooses what to show.

    Args:
      found: the table.
      kept: shape (n,), bool: the pairs that the page's selection keeps.
      images: pairs shown of a group or set; 0 shows none.
      nearest: (cosine, pairs) of bins of a hundredth, by their lower edges, ascending: the nearest other of each pair.
    """
    is_kept = kept[found.row]
    grouped = np.flatnonzero(found.group >= 0)
    sizes = np.bincount(found.group[grouped])
    kept_of = np.bincount(found.group[grouped], is_kept[grouped], len(sizes)).astype(np.int64)
    others = grouped[~found.is_head[grouped]]
    largest = np.argsort(-sizes, kind="stable")[: _GROUPS if images else 0].tolist()
    # The representative first, then the least alike.
    order = grouped[np.lexsort((found.cosine[grouped], ~found.is_head[grouped]))]
    groups = []
    for one in largest:
        own = order[found.group[order] == one]
        groups.append(DuplicatePairs("", int(sizes[one]), int(kept_of[one]), _first(found.row[own], images)))
    sets = []
    for name in sorted({name for name in found.near if name is not None}):
        near = found.near == name
        sets.append(DuplicatePairs(name, int(near.sum()), int(is_kept[near].sum()), _first(found.row[near], images)))
    figures = contents.column_figures("cosine", found.cosine[others], is_kept[others]) if len(others) else None
    surplus = int(np.maximum(kept_of - 1, 0).sum())
    return Duplicates(
        int((sizes > 0).sum()), len(grouped), surplus, figures, tuple(groups), tuple(sets), _nearest_others(nearest)
    )


def _nearest_others(bins: Sequence[tuple[float, int]]) -> NearestOthers | None:
    if not bins:
        return None
    number = np.array([round(cosine / _BIN) for cosine, _ in bins])
    counts = np.bincount(number - number[0], [pairs for _, pairs in bins]).astype(np.int64)
    edges = (number[0] + np.arange(len(counts) + 1)) * _BIN
    drawing = histogram.draw(histogram.Histogram(edges, counts, np.zeros_like(counts), 0), {})
    at_least = {mark: int(counts[edges[:-1] > mark - _BIN / 2].sum()) for mark in _MARKS}
    return NearestOthers(int(counts.sum()), drawing, at_least)


def _first(rows: np.ndarray, count: int) -> tuple[int, ...]:
    return tuple(rows[:count].tolist())
