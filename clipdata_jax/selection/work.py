"""Rules at work: what they keep of a block, found in as many passes over the pool as it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from clipdata_jax.selection import ranking
from clipdata_jax.selection.pools import Block, Pool
from clipdata_jax.selection.search import Search


@dataclasses.dataclass(frozen=True)
class Step:
    """What one part of a rule did.

    Attributes:
      rule: its text.
      seen: pairs it looked at: the whole pool, or the survivors of what stands left of `>>`.
      kept: pairs it kept of them.
      asked: pairs it was to keep, for `top` and `bottom`; more than `kept` where too few have a score.
    """

    rule: str
    seen: int
    kept: int
    asked: int | None = None

    def __add__(self, other: Step) -> Step:
        """The step's counts on two blocks together."""
        return dataclasses.replace(self, seen=self.seen + other.seen, kept=self.kept + other.kept)


class Work(Protocol):
    """A rule at work on a pool, block by block, in as many passes as it takes until it is found what to keep."""

    @property
    def found(self) -> bool:
        """Whether the next pass says for every block what is kept."""

    def keep(self, block: Block, among: np.ndarray, steps: list[Step]) -> np.ndarray | None:
        """Which rows in `among`, shape (rows,), bool, are kept; None while that isn't found. Appends to `steps`."""

    def end(self) -> None:
        """Ends a pass."""


@dataclasses.dataclass(frozen=True)
class FilterWork:
    """A filter at work; it has nothing to find."""

    rule: str
    mask: Callable[[Block], np.ndarray]
    found: ClassVar[bool] = True

    def keep(self, block: Block, among: np.ndarray, steps: list[Step]) -> np.ndarray:
        mask = among & self.mask(block)
        steps.append(Step(self.rule, int(np.count_nonzero(among)), int(np.count_nonzero(mask))))
        return mask

    def end(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class FirstWork:
    """The search for the last of the first pairs of an order.

    Attributes:
      rule: its text.
      keys: what a block's rows are ordered by, and the rows that have such a key.
      search: how far the search is.
      asks: whether a step says how many pairs were to be kept.
    """

    rule: str
    keys: Callable[[Block], tuple[np.ndarray, np.ndarray]]
    search: Search
    asks: bool

    @property
    def found(self) -> bool:
        return self.search.found

    def keep(self, block: Block, among: np.ndarray, steps: list[Step]) -> np.ndarray | None:
        keys, there = self.keys(block)
        seen = int(np.count_nonzero(among))
        if not self.search.found:
            self.search.look(block, keys, among & there, seen)
            return None
        mask = self.search.keep(block, keys, among & there)
        steps.append(
            Step(self.rule, seen, int(np.count_nonzero(mask)), self.search.count if self.asks else None)
        )
        return mask

    def end(self) -> None:
        if not self.search.found:
            self.search.end()


@dataclasses.dataclass(frozen=True)
class ThenWork:
    """Two rules, the right one looking at what the left one keeps."""

    left: Work
    right: Work

    @property
    def found(self) -> bool:
        return self.left.found and self.right.found

    def keep(self, block: Block, among: np.ndarray, steps: list[Step]) -> np.ndarray | None:
        left = self.left.keep(block, among, steps)
        return None if left is None else self.right.keep(block, left, steps)

    def end(self) -> None:
        self.left.end()
        self.right.end()


@dataclasses.dataclass(frozen=True)
class PairWork:
    """Two rules that look at the same pairs, in the same passes."""

    rule: str
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray]
    left: Work
    right: Work

    @property
    def found(self) -> bool:
        return self.left.found and self.right.found

    def keep(self, block: Block, among: np.ndarray, steps: list[Step]) -> np.ndarray | None:
        left, right = self.left.keep(block, among, steps), self.right.keep(block, among, steps)
        if left is None or right is None:
            return None
        mask = self.combine(left, right)
        steps.append(Step(self.rule, int(np.count_nonzero(among)), int(np.count_nonzero(mask))))
        return mask

    def end(self) -> None:
        self.left.end()
        self.right.end()


if TYPE_CHECKING:
    from clipdata_jax.selection.rules import Rule


class Application:
    """Blocks with what a rule keeps of each; it can be gone through once.

    Attributes:
      steps: what every step of the rule kept, in the order of evaluation; whole at the end.
      without_score: column or expression -> {"null", "infinite"} -> pairs that for this reason it never selects;
        an expression is null where one of its columns is. Whole at the end.
    """

    def __init__(self, rule: Rule, pool: Pool) -> None:
        self.steps: list[Step] = []
        values = {
            str(part): part for value in rule.values() for part in (*value.leaves(), value) if value.leaves()
        }
        self.without_score = {name: {"null": 0, "infinite": 0} for name in values}
        self._rule, self._pool, self._values = rule, pool, values

    def __iter__(self) -> Iterator[tuple[Block, np.ndarray]]:
        for value in self._rule.values():
            for rank in value.ranks():
                if rank not in self._pool.whole:
                    self._pool.whole[rank] = ranking.of_pool(self._pool, rank.by.of)
        work = self._rule.start(self._pool.rows)
        while not work.found:
            for block in self._pool.blocks():
                work.keep(block, np.ones(block.rows, bool), [])
            work.end()
        for block in self._pool.blocks():
            steps: list[Step] = []
            mask = work.keep(block, np.ones(block.rows, bool), steps)
            if mask is None:
                raise AssertionError(self._rule)
            self.steps = [one + other for one, other in zip(self.steps, steps)] if self.steps else steps
            self._count(block)
            yield block, mask

    def _count(self, block: Block) -> None:
        for name, value in self._values.items():
            scores = value.of(block)
            finite = np.isfinite(scores)
            if finite.all():  # so it is of numbers
                continue
            null = np.zeros(block.rows, bool)
            for column in value.leaves():
                null |= np.isnan(column.of(block))
            self.without_score[name]["null"] += int(np.count_nonzero(null))
            self.without_score[name]["infinite"] += int(np.count_nonzero(~finite & ~null))
