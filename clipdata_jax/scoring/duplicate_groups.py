"""Groups of near-duplicates, and the row that represents each: by connection, greedily, or by SemDeDup's rule."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from clipdata_jax.scoring.duplicate_search import Criterion, rounding

GroupRule = Literal["components", "greedy", "semdedup"]
_BLOCK = 1024  # rows whose cosines with as many others are in memory


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of two rows and more, a row of the table for each of their rows.

    Attributes:
      row: shape (m,), int64: the rows, by group and in the order of preference.
      representative: shape (m,), int64: the row that is kept of each one's group.
      cosine: shape (m,), float64: with the representative.
    """

    row: np.ndarray
    representative: np.ndarray
    cosine: np.ndarray

    @property
    def dropped(self) -> np.ndarray:
        """The rows that aren't kept."""
        dropped: np.ndarray = self.row[self.row != self.representative]
        return dropped


def group(
    criterion: Criterion, rows: np.ndarray, roots: np.ndarray, score: np.ndarray, uid: np.ndarray, rule: GroupRule
) -> Groups:
    """Chooses representatives among connected rows, and groups the rows by them.

    Rows are preferred by score, then by uid, then by their number; null comes last. "components": of all that are
    connected, the first stays. "greedy": a row is dropped if one that stays, before it, is a near-duplicate.
    "semdedup": if any before it is (Abbas et al. 2023, arXiv:2303.09540); it is then represented by the
    representative of the first such row.

    Args:
      criterion: of near-duplicates.
      rows: shape (m,), int64: all rows of connected components of two rows and more, or what is left of them.
      roots: shape (m,): the names of their components.
      score: shape (m,): the higher, the better.
      uid: shape (m,), u8,u8.
      rule: as above.
    """
    order = np.lexsort((rows, uid["f1"], uid["f0"], -np.nan_to_num(score, nan=-np.inf), roots))
    rows, roots = rows[order], roots[order]
    starts = np.flatnonzero(np.append(True, roots[1:] != roots[:-1])) if len(rows) else np.empty(0, np.int64)
    sizes = np.diff(np.append(starts, len(rows)))
    place = np.repeat(starts, sizes)  # of the representative
    if rule != "components":
        pairs = starts[sizes == 2]
        far = pairs[~criterion.are_near(rows[pairs], rows[pairs + 1])]
        place[far + 1] = far + 1
        for start, size in zip(starts[sizes > 2].tolist(), sizes[sizes > 2].tolist(), strict=True):
            place[start : start + size] = start + _represent(criterion, rows[start : start + size], rule)
    members = np.bincount(place, minlength=len(rows))[place] > 1
    place, own = place[members], rows[members]
    together = np.argsort(place, kind="stable")
    own, representative = own[together], rows[place[together]]
    return Groups(own, representative, criterion.cosines(own, representative))


def _represent(criterion: Criterion, rows: np.ndarray, rule: GroupRule) -> np.ndarray:
    """The place of each row's representative among rows in order; their own for rows that stay."""
    count = len(rows)
    found = np.arange(count)
    for start in range(0, count, _BLOCK):
        here = np.arange(start, min(start + _BLOCK, count))
        before = np.arange(start)
        if rule == "greedy":
            before = before[found[:start] == before]
        for first in range(0, len(before), _BLOCK):
            some, open_ = before[first : first + _BLOCK], here[found[here] == here]
            near = _near_matrix(criterion, rows[open_], rows[some])
            hit = near.any(axis=1)
            found[open_[hit]] = some[near[hit].argmax(axis=1)]
        near = _near_matrix(criterion, rows[here], rows[here])
        for at, row in enumerate(here.tolist()):
            if rule == "semdedup" or found[row] == row:
                later = here[at + 1 :]
                found[later[near[at, at + 1 :] & (found[later] == later)]] = row
    while not np.array_equal(above := found[found], found):
        found = above
    return found


def _near_matrix(criterion: Criterion, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each row is a near-duplicate of each other row; computed in float32, and again where that may be off."""
    least = np.full((len(rows), len(others)), np.inf, np.float32)
    for kind in criterion.kinds:
        f, g = (_directions(criterion.emb[one][:, kind]) for one in (rows, others))
        np.minimum(least, f @ g.T, out=least)
    margin = 2 * rounding(criterion.emb.shape[2])
    near: np.ndarray = least >= criterion.threshold
    unsure, other = np.nonzero(np.abs(least - criterion.threshold) < margin)
    near[unsure, other] = criterion.are_near(rows[unsure], others[other])
    return near


def _directions(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float32)
    directions: np.ndarray = wide / np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
    return directions
