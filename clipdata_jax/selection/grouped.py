"""The best pair of each group: of near-duplicates, or of several captions of one image."""

from __future__ import annotations

import dataclasses

import numpy as np

from clipdata_jax.formats import hashing
from clipdata_jax.selection.pools import ScoreBlock
from clipdata_jax.selection.rules import Rule
from clipdata_jax.selection.search import ordered_bits
from clipdata_jax.selection.values import Column, Value, score_of
from clipdata_jax.selection.work import StepCounts, Work

_SALT = 0x626573746F66
_ROWS = 1 << 22
"""Rows of groups held at once, 40 bytes each."""


@dataclasses.dataclass(frozen=True)
class BestOf(Rule):
    """The rule of `best_of`."""

    group: Column
    by: Value

    def values(self) -> tuple[Value, ...]:
        return (self.by,)

    def groups(self) -> tuple[Column, ...]:
        return (self.group,)

    def start(self, rows: int) -> Work:
        return BestOfWork(self)

    def __str__(self) -> str:
        return f"best_of({self.group}, by={self.by})"


class BestOfWork:
    """The search for the rows that are not the best of their groups.

    A first pass counts the rows that have a group. Each later one takes the groups of some hashes, few enough that
    their rows fit in memory.

    Attributes:
      found: whether all groups have been looked at.
    """

    def __init__(self, rule: BestOf) -> None:
        self.found = False
        self._rule = rule
        self._lost = np.empty(0, bool)  # for each row of the pool, whether another of its group is better
        self._grouped, self._looked = 0, False
        self._passes, self._pass = 0, 0
        self._rows: list[tuple[np.ndarray, ...]] = []

    def parts(self) -> tuple[Work, ...]:
        """It has no parts."""
        return ()

    def keep(self, block: ScoreBlock, among: np.ndarray, steps: list[StepCounts] | None = None) -> np.ndarray | None:
        """Marks the rows to keep, or takes note of the block; see `work.Work`."""
        score = self._rule.by.of(block)
        scored = among & np.isfinite(score)
        if self.found:
            mask: np.ndarray = scored
            if len(self._lost):
                mask = scored & ~self._lost[block.start : block.start + block.rows]
            if steps is not None:
                steps.append(StepCounts.of(str(self._rule), among, mask))
            return mask
        self._looked = True
        group = self._rule.group.of(block)
        scored &= ~np.isnan(group)
        if not self._passes:
            self._grouped += int(np.count_nonzero(scored))
            return None
        if not len(self._lost):
            self._lost = block.pool.empty(sum(block.pool.sizes), np.dtype(bool))
            self._lost[:] = False
        keys = ordered_bits(group.astype(np.float64), highest_first=False)
        own = np.flatnonzero(scored & (hashing.mix(_SALT, keys) % np.uint64(self._passes) == self._pass))
        uid = block.uid[own]
        better = ordered_bits(score, highest_first=True)[own]
        self._rows.append((own + block.start, uid["f1"], uid["f0"], better, keys[own]))
        return None

    def end_pass(self) -> None:
        """Ends a pass over all blocks."""
        if not self._looked:  # an earlier step of the rule is still searching
            return
        self._looked = False
        if not self._passes:
            self._passes = -(-self._grouped // _ROWS)
            self.found = not self._grouped
            return
        columns = list(map(np.concatenate, zip(*self._rows, strict=True)))
        order = np.lexsort(columns)  # by group, then score, uid and row
        rows, group = columns[0][order], columns[-1][order]
        self._lost[rows[1:][group[1:] == group[:-1]]] = True
        self._rows, self._pass = [], self._pass + 1
        self.found = self._pass == self._passes


def best_of(group: str | Column, by: str | Value) -> Rule:
    """Keeps the pair with the highest score of each group; ties go to the smaller uid.

    A pair whose group is null is a group of its own. As of any rule, pairs without a score are never kept. After `>>`,
    only the pairs that are left count.

    Args:
      group: a column, or its name: numbers that name the groups, such as `group` of `clipdata dedup`. In a rule of
        `select`, text in a file of --columns too, such as `sha256` for several captions of one image.
      by: a column, its name, or an expression.

    Raises:
      InputError: a name is not a plain word, or the score is the same for every pair.

    >>> from clipdata_jax.selection import best_of
    >>> uid = np.array([(0, row) for row in range(5)], "u8,u8")
    >>> columns = {"group": np.array([7, 7, np.nan, 8, 7]), "a": np.array([1.0, 3, 2, 0, 3])}
    >>> best_of("group", by="a").keep(columns, uid).tolist()
    [False, True, True, True, False]
    """
    return BestOf(Column(group) if isinstance(group, str) else group, score_of(by))
