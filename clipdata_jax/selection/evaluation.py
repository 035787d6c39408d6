"""A rule applied to a pool: passes until it is found what to keep, then one that says it of every block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from clipdata_jax.selection import ranks
from clipdata_jax.selection.pools import Block, Pool
from clipdata_jax.selection.work import Step

if TYPE_CHECKING:
    from clipdata_jax.selection.rules import Rule


class Evaluation:
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
                    self._pool.whole[rank] = ranks.of_pool(self._pool, rank.by.of)
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
