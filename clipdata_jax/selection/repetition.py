"""Rules that draw pairs several times: sampling with a soft or a hard cap on repetition."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import ClassVar

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats import hashing
from clipdata_jax.selection import draws
from clipdata_jax.selection.pools import ScoreBlock
from clipdata_jax.selection.rules import Rule
from clipdata_jax.selection.values import Number, Value, decimal, score_of
from clipdata_jax.selection.work import StepCounts, Work

_SOFT_CAP, _HARD_CAP = 0x736F6674636170, 0x68617264636170
_MOST = 2**32 - 1  # the counts are uint32


@dataclasses.dataclass(frozen=True)
class _Draws(Rule):
    """A rule that draws pairs by their scores, with repetition."""

    by: Value
    number: int
    salt: ClassVar[int]
    seed: int = 0

    @property
    def repeats(self) -> bool:
        return True

    def values(self) -> tuple[Value, ...]:
        return (self.by,)

    def start(self, rows: int) -> Work:
        return DrawWork(self)

    def words(self, block: ScoreBlock) -> np.ndarray:
        """What a block's pairs draw their random numbers from."""
        return hashing.mix(self.salt, self.seed, block.uid["f0"], block.uid["f1"])

    def check_enough(self, scored: int) -> None:
        """Checks that so many pairs to draw from are enough.

        Raises:
          InputError: they aren't.
        """
        raise NotImplementedError

    def times(self, scores: np.ndarray, words: np.ndarray, empty: draws.Empty) -> np.ndarray:
        """Draws; arguments and result as in `draws`."""
        raise NotImplementedError

    def _check(self) -> None:
        if not 1 <= self.number <= _MOST:
            raise InputError(f"the number of draws is {self.number}, but must be from 1 to {_MOST}")


@dataclasses.dataclass(frozen=True)
class SoftCap(_Draws):
    """The rule of `soft_cap`."""

    salt = _SOFT_CAP
    penalty: Decimal = Decimal("0.15")
    batch: int = 100_000

    def __post_init__(self) -> None:
        self._check()
        if self.penalty < 0:
            raise InputError(f"the penalty is {self.penalty}, but must be 0 or more")
        if self.batch < 1:
            raise InputError(f"the batch is {self.batch}, but must be a number of pairs, at least 1")

    def check_enough(self, scored: int) -> None:
        if min(self.batch, self.number) > scored:
            raise InputError(
                f"{self} draws {min(self.batch, self.number):,} different pairs at a time, but {scored:,} have a score;"
                f" draw fewer at a time, e.g. batch={max(1, scored // 100)}"
            )

    def times(self, scores: np.ndarray, words: np.ndarray, empty: draws.Empty) -> np.ndarray:
        return draws.soft_cap_times(scores, words, self.number, float(self.penalty), self.batch, empty)

    def __str__(self) -> str:
        batch = f", batch={self.batch}" if self.batch != 100_000 else ""
        seed = f", seed={self.seed}" if self.seed else ""
        return f"soft_cap({self.by}, {self.number}, penalty={self.penalty}{batch}{seed})"


@dataclasses.dataclass(frozen=True)
class HardCap(_Draws):
    """The rule of `hard_cap`."""

    salt = _HARD_CAP
    cap: int = 15

    def __post_init__(self) -> None:
        self._check()
        if self.cap < 1:
            raise InputError(f"the cap is {self.cap}, but must be at least 1")

    def check_enough(self, scored: int) -> None:
        if self.number > self.cap * scored:
            raise InputError(
                f"{self} draws more than {self.cap} times the {scored:,} pairs that have a score; draw at most"
                f" {self.cap * scored} times, or raise the cap"
            )

    def times(self, scores: np.ndarray, words: np.ndarray, empty: draws.Empty) -> np.ndarray:
        return draws.hard_cap_times(scores, words, self.number, self.cap, empty)

    def __str__(self) -> str:
        seed = f", seed={self.seed}" if self.seed else ""
        return f"hard_cap({self.by}, {self.number}, cap={self.cap}{seed})"


class DrawWork:
    """The state of a rule that draws: all scores and words, from the first pass on how often each pair is drawn.

    24 bytes a pair while it draws (a word, a clock, a float32 score and a count), in temporary files where they exceed
    the pool's memory; then 4.
    """

    def __init__(self, rule: _Draws) -> None:
        self._rule = rule
        self._draw: draws.Empty | None = None
        self._scores = self._words = self._times = np.empty(0)
        self._scored = 0
        self.found = False

    def keep(self, block: ScoreBlock, among: np.ndarray, steps: list[StepCounts] | None = None) -> np.ndarray | None:
        rows = slice(block.start, block.start + block.rows)
        if self.found:
            times = np.where(among, self._times[rows], np.uint32(0))
            if steps is not None:
                counted = StepCounts.of(str(self._rule), among, times)
                steps.append(dataclasses.replace(counted, drawn=int(times.sum(dtype=np.int64))))
            return times
        scores = self._rule.by.of(block)
        if self._draw is None:
            self._draw = block.pool.empty
            total = sum(block.pool.sizes)
            self._scores = self._draw(total, scores.dtype if scores.dtype.kind == "f" else np.dtype(np.float64))
            self._words = self._draw(total, np.dtype(np.uint64))
        use = among & np.isfinite(scores)
        self._scores[rows] = np.where(use, scores, -np.inf)
        self._words[rows] = self._rule.words(block)
        self._scored += int(np.count_nonzero(use))
        return None

    def end_pass(self) -> None:
        if self.found or self._draw is None:  # an earlier step of the rule is still searching
            return
        self._rule.check_enough(self._scored)
        self._times = self._rule.times(self._scores, self._words, self._draw)
        self._scores = self._words = np.empty(0)
        self.found = True

    def parts(self) -> tuple[Work, ...]:
        return ()


def soft_cap(by: str | Value, number: int, *, penalty: Number = "0.15", batch: int = 100_000, seed: int = 0) -> Rule:
    """Draws pairs with repetition, each draw making the next of the same pair less likely: soft-cap sampling.

    Batches of distinct pairs are drawn without replacement from the softmax of the scores; after each, the scores of
    its pairs fall by the penalty. This is the procedure of FLYT (Shechter and Carmon 2025, arXiv:2503.08805), whose
    best results have a penalty of 0.15, batches of 100,000 and as many draws as the pool has pairs. The draw is exact
    in distribution and depends on seed, uids and scores alone: neither on files, order nor processes. See
    `draws.soft_cap_times` for the method.

    The result is a multiset: a subset file names a uid as often as it was drawn. A rule ends with it.

    Args:
      by: a column, its name, or an expression, in logits; divide by a temperature where scores are not.
      number: draws in all.
      penalty: in logits, at least 0; 0 draws each batch alike.
      batch: pairs drawn at a time, at most as many as have a score.
      seed: of the draw, which also depends on the uids.

    Raises:
      InputError: a number is out of its range.

    >>> uid = np.array([(0, row) for row in range(1000)], "u8,u8")
    >>> times = soft_cap("a", 1000, batch=10).keep({"a": np.linspace(0, 5, 1000)}, uid)
    >>> int(times.sum()), int(times.max()) > 1
    (1000, True)
    """
    return SoftCap(score_of(by), number, penalty=decimal(penalty), batch=batch, seed=seed)


def hard_cap(by: str | Value, number: int, *, cap: int = 15, seed: int = 0) -> Rule:
    """Draws pairs with replacement from the softmax of the scores, each at most `cap` times: hard-cap sampling.

    A pair that was drawn `cap` times is passed over, as FLYT describes it (arXiv:2503.08805). Otherwise as `soft_cap`,
    but that nothing is lowered and that there are no batches: draws are independent of each other up to the cap.

    Args:
      by: a column, its name, or an expression, in logits.
      number: draws in all, at most `cap` times the pairs that have a score.
      cap: the most draws of a pair, at least 1.
      seed: of the draw, which also depends on the uids.

    Raises:
      InputError: a number is out of its range.

    >>> uid = np.array([(0, row) for row in range(1000)], "u8,u8")
    >>> times = hard_cap("a", 2000, cap=3).keep({"a": np.linspace(0, 5, 1000)}, uid)
    >>> int(times.sum()), int(times.max())
    (2000, 3)
    """
    return HardCap(score_of(by), number, cap=cap, seed=seed)
