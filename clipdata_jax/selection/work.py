"""Rules applied to a pool: block by block, in as many passes as it takes to know what to keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol

import numpy as np

from clipdata_jax.selection.pools import ScoreBlock, ScoredPool
from clipdata_jax.selection.search import Search


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """Counts of one step of a rule.

    Attributes:
      rule: the step's text.
      seen: pairs it looked at: the whole pool, or the survivors of what stands left of `>>`.
      kept: pairs it kept of them.
      asked: pairs it was to keep, for `top`, `bottom` and `sample`; more than `kept` where too few have a score.
      drawn: draws in all, for `soft_cap` and `hard_cap`, which may draw a pair several times.
      tied: pairs that share the score at which `top` or `bottom` cuts, where only some of them are kept: their uids
        alone decide which.
      tied_kept: of these, those that are kept.
    """

    rule: str
    seen: int
    kept: int
    asked: int | None = None
    drawn: int | None = None
    tied: int = 0
    tied_kept: int = 0

    @classmethod
    def of(cls, rule: str, among: np.ndarray, mask: np.ndarray) -> StepCounts:
        """Counts a block's rows, given as masks."""
        return cls(rule, int(np.count_nonzero(among)), int(np.count_nonzero(mask)))

    def __add__(self, other: StepCounts) -> StepCounts:
        """Sums the counts of two blocks."""
        drawn = None if self.drawn is None else self.drawn + (other.drawn or 0)
        return dataclasses.replace(self, seen=self.seen + other.seen, kept=self.kept + other.kept, drawn=drawn)


class Scores(Protocol):
    """A number for every pair, computed from columns: the part of `values.Value` that applying a rule needs."""

    def leaves(self) -> Sequence[Scores]:
        """The columns it is computed from."""

    def prepare(self, pool: ScoredPool) -> None:
        """Computes what needs the whole pool, such as ranks."""

    def of(self, block: ScoreBlock) -> np.ndarray:
        """The scores of a block's rows, shape (rows,), or () for a constant."""


class Work(Protocol):
    """The state of a rule that is being applied to a pool."""

    @property
    def found(self) -> bool:
        """Whether `keep` knows which rows to keep."""

    def keep(self, block: ScoreBlock, among: np.ndarray, steps: list[StepCounts] | None = None) -> np.ndarray | None:
        """Marks the rows to keep, or takes note of the block while they aren't known.

        Args:
          block: the block.
          among: shape (rows,), bool: the rows to choose from.
          steps: list to append the counts of every step to.

        Returns:
          shape (rows,), bool, or uint32 of a rule that repeats: how often each row is drawn; None before `found`.
        """

    def end_pass(self) -> None:
        """Ends a pass over all blocks."""

    def parts(self) -> Sequence[Work]:
        """The states of the rule's operands."""


@dataclasses.dataclass(frozen=True)
class PredicateWork:
    """The state of a rule that looks at each pair alone: there is nothing to search for."""

    rule: str
    mask: Callable[[ScoreBlock], np.ndarray]
    found: ClassVar[bool] = True

    def keep(self, block: ScoreBlock, among: np.ndarray, steps: list[StepCounts] | None = None) -> np.ndarray:
        mask: np.ndarray = among & self.mask(block)
        if steps is not None:
            steps.append(StepCounts.of(self.rule, among, mask))
        return mask

    def end_pass(self) -> None:
        pass

    def parts(self) -> tuple[Work, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class FirstWork:
    """The search for the last of the first pairs of an order.

    Attributes:
      rule: the rule's text.
      keys: returns the keys that order a block's rows, and which rows have one.
      search: the state of the search.
      counts_asked: whether the counts say how many pairs were to be kept.
    """

    rule: str
    keys: Callable[[ScoreBlock], tuple[np.ndarray, np.ndarray]]
    search: Search
    counts_asked: bool

    @property
    def found(self) -> bool:
        return self.search.found

    def keep(self, block: ScoreBlock, among: np.ndarray, steps: list[StepCounts] | None = None) -> np.ndarray | None:
        keys, has_key = self.keys(block)
        if not self.search.found:
            self.search.look(block, keys, among & has_key, int(np.count_nonzero(among)))
            return None
        mask = self.search.keep(block, keys, among & has_key)
        if steps is not None:
            counted = StepCounts.of(self.rule, among, mask)
            if self.counts_asked:
                asked, (tied, tied_kept) = self.search.count, self.search.tied
                counted = dataclasses.replace(counted, asked=asked, tied=tied, tied_kept=tied_kept)
            steps.append(counted)
        return mask

    def end_pass(self) -> None:
        if not self.search.found:
            self.search.end_pass()

    def parts(self) -> tuple[Work, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class _TwoWorks:
    left: Work
    right: Work

    @property
    def found(self) -> bool:
        return self.left.found and self.right.found

    def end_pass(self) -> None:
        self.left.end_pass()
        self.right.end_pass()

    def parts(self) -> tuple[Work, ...]:
        return (self.left, self.right)


class ThenWork(_TwoWorks):
    """The state of two rules, the right one choosing from what the left one keeps."""

    def keep(self, block: ScoreBlock, among: np.ndarray, steps: list[StepCounts] | None = None) -> np.ndarray | None:
        left = self.left.keep(block, among, steps)
        return None if left is None else self.right.keep(block, left, steps)


@dataclasses.dataclass(frozen=True)
class PairWork(_TwoWorks):
    """The state of two rules that choose from the same pairs, in the same passes."""

    rule: str
    combine: np.ufunc

    def keep(self, block: ScoreBlock, among: np.ndarray, steps: list[StepCounts] | None = None) -> np.ndarray | None:
        left, right = self.left.keep(block, among, steps), self.right.keep(block, among, steps)
        if left is None or right is None:
            return None
        mask: np.ndarray = self.combine(left, right)
        if steps is not None:
            steps.append(StepCounts.of(self.rule, among, mask))
        return mask


class Application:
    """The blocks of a pool, each with what `Work.keep` says of its rows; to be iterated over once.

    Attributes:
      work: the rule's state.
      steps: the counts of every step of the rule, in the order of evaluation; complete after the iteration.
      without_score: column or expression -> {"null", "infinite"} -> pairs that are never selected for this
        reason; an expression is null where one of its columns is. Complete after the iteration.
    """

    def __init__(self, work: Work, values: Sequence[Scores], pool: ScoredPool) -> None:
        self.work = work
        self.steps: list[StepCounts] = []
        self._pool, self._values = pool, values
        self._counted = {str(part): part for value in values for part in (*value.leaves(), value) if value.leaves()}
        self.without_score = {name: {"null": 0, "infinite": 0} for name in self._counted}

    def __iter__(self) -> Iterator[tuple[ScoreBlock, np.ndarray]]:
        for value in self._values:
            value.prepare(self._pool)
        while not self.work.found:
            for block in self._pool.blocks():
                self.work.keep(block, np.ones(block.rows, bool))
            self.work.end_pass()
        for block in self._pool.blocks():
            steps: list[StepCounts] = []
            mask = self.work.keep(block, np.ones(block.rows, bool), steps)
            if mask is None:
                raise AssertionError("found, but no mask")
            self.steps = [one + other for one, other in zip(self.steps, steps)] if self.steps else steps
            self._count_missing(block)
            yield block, mask

    def _count_missing(self, block: ScoreBlock) -> None:
        for name, value in self._counted.items():
            finite = np.isfinite(value.of(block))
            if finite.all():
                continue
            null = np.zeros(block.rows, bool)
            for column in value.leaves():
                null |= np.isnan(column.of(block))
            self.without_score[name]["null"] += int(np.count_nonzero(null))
            self.without_score[name]["infinite"] += int(np.count_nonzero(~finite & ~null))
