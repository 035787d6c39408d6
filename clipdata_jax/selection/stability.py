"""The stability of a selection: the share of the kept pairs that other batches would replace.

Scores that are means over random batches have a standard error, the column `<score>_se` beside them. From these follows
each pair's chance to be kept by another draw of the batches, step by step of a rule.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from clipdata_jax.selection import rules, values
from clipdata_jax.selection.pools import ScoreBlock, ScoredPool
from clipdata_jax.selection.rules import Rule
from clipdata_jax.selection.steps import Top, WeightedSample
from clipdata_jax.selection.values import Value
from clipdata_jax.selection.work import Application, Work

_SAMPLE = 1 << 19  # rows to estimate from
_KNOTS = np.linspace(-8, 8, 2049)  # standard errors from the threshold; beyond them no pair changes sides
_PHI = np.array([math.erfc(-z / math.sqrt(2)) / 2 for z in _KNOTS])


def error_columns(rule: Rule, columns: Collection[str]) -> tuple[str, ...]:
    """Names the columns of standard errors from which a rule's stability can be estimated.

    Args:
      rule: the rule.
      columns: the known columns.

    Returns:
      `<column>_se` of each of the rule's columns that has one; none for a rule that draws with repetition.

    >>> from clipdata_jax.selection import parse
    >>> error_columns(parse("top(a, 0.3) >> top(rank(b) + c, 0.2)"), ["a", "a_se", "b", "b_se", "c"])
    ('a_se', 'b_se')
    """
    names = () if rule.repeats else rule.columns()
    return tuple(f"{name}_se" for name in names if f"{name}_se" in columns)


def replaced_share(rule: Rule, application: Application, pool: ScoredPool, errors: Collection[str]) -> float | None:
    """Estimates the share of the kept pairs that another draw of the batches would replace.

        share = sum_i p_i (1 - p_i) / |{i kept}|

    with p_i the chance that another draw keeps pair i. Of a step that cuts the score s at a threshold,

        p_i = Phi((s_i - threshold) / se_i)

    the threshold being between the lowest kept and the highest other score; thresholds hardly move. Of several steps:
    `>>` and `&` p q, `|` 1 - (1 - p)(1 - q), `-` p (1 - q). The standard error of an expression is, to first order,

        se^2 = sum over its columns c of (ds / dc  se_c)^2

    where the derivative of rank(x) is the density of x in the pool. Errors of different columns, and of the scores of
    different steps, count as independent.

    Derivation: let x_i be the mean score over all batches, and the scores of two draws independent and normal
    about it with standard deviation se_i. With q_i = Phi((x_i - threshold) / se_i), the first draw keeps a pair that
    the second doesn't with probability q_i (1 - q_i), and the reverse is as likely: the selections differ in
    2 q_i (1 - q_i) pairs, and half of these were kept and are replaced. Of x_i only s_i is known. But where the
    density of x is linear within a few standard errors of the threshold, the density of s equals it there, so that
    p_i in place of q_i leaves the expected sum unchanged; curvature adds an error of second order in the ratio of
    standard error to spread, and standard errors that depend on the score add to it.

    Another seed of `score` is an independent draw where it also draws the groups (`mix_shards`). Where groups are
    runs of rows, it deals the same negatives to other batches, and replaces fewer pairs.

    Args:
      rule: the rule.
      application: of the rule to the pool, after the iteration.
      pool: the pool, of which evenly spaced blocks of about half a million rows are used.
      errors: the rule's `error_columns`, which the pool must be able to read.

    Returns:
      The share, in [0, 1]; None where no score that cuts has an error, or a step keeps every pair or none, as with one
      batch only. Pairs whose error is null are left out.
    """
    if not errors:
        return None
    chances = _Chances(list(_sampled(pool)), errors)
    chance = chances.of(rule, application.work)
    kept = np.concatenate([_mask(application.work, block, np.ones(block.rows, bool)) for block in chances.blocks])
    known = np.isfinite(chance)
    among = np.count_nonzero(kept[known])
    if not (among and chances.uncertain):
        return None
    return min(float((chance[known] * (1 - chance[known])).sum()) / int(among), 1.0)


class _Chances:
    """Chances of the sampled rows to be kept.

    Attributes:
      blocks: the sampled blocks.
      uncertain: whether a step was found that cuts scores that have errors.
    """

    def __init__(self, blocks: Sequence[ScoreBlock], errors: Collection[str]) -> None:
        self.blocks, self.uncertain = blocks, False
        self._errors = {name: self._all(values.Column(name)) for name in errors}

    def of(self, rule: Rule, work: Work) -> np.ndarray:
        """The chance of each row, float64; NaN where an error is null."""
        match rule:
            case rules.Then() | rules.And() | rules.Or() | rules.Minus():
                p, q = (self.of(*step) for step in zip(rule.parts(), work.parts(), strict=True))
                q = 1 - q if isinstance(rule, rules.Minus) else q
                return np.asarray(p + q - p * q if isinstance(rule, rules.Or) else p * q)
            case Top():
                score = self._all(rule.by) * (1 if rule.highest else -1)
                return self._beyond(score, self._error(rule.by), work)
            case WeightedSample():
                score = np.concatenate([rule.gumbel_keys(block) for block in self.blocks])
                return self._beyond(score, self._error(rule.by) / float(rule.temperature), work)
            case values.Compare(left, ">" | ">=" | "<" | "<=", right):
                difference = values.Arithmetic(left, "-", right)
                score = self._all(difference) * (1 if rule.sign[0] == ">" else -1)
                return self._beyond(score, self._error(difference), work)
        return self._kept(work, np.ones(self._rows(), bool)).astype(np.float64)

    def _beyond(self, score: np.ndarray, error: np.ndarray, work: Work) -> np.ndarray:
        """The chance of scores to be beyond the threshold of a step."""
        scored = np.isfinite(score)
        inside = self._kept(work, scored)
        lowest = np.min(score[inside], initial=np.inf)
        highest = np.max(score[scored & ~inside], initial=-np.inf)
        if not np.isfinite(lowest - highest) or not np.any(error[scored] > 0):
            return np.where(np.isnan(error) & scored, np.nan, inside)
        self.uncertain = True
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (score - (lowest + highest) / 2) / error
        chance = np.where(error == 0, inside, np.interp(z, _KNOTS, _PHI))
        return np.where(scored, np.where(np.isnan(error), np.nan, chance), 0.0)

    def _error(self, value: Value) -> np.ndarray:
        total = np.zeros(self._rows())
        for name, slope in self._slopes(value).items():
            total += (slope * self._errors[f"{name}_se"]) ** 2
        return np.sqrt(total)

    def _slopes(self, value: Value) -> Mapping[str, np.ndarray]:
        """The derivatives of a value by each of its columns that has an error, for each row."""
        match value:
            case values.Column(name) if f"{name}_se" in self._errors:
                return {name: np.ones(self._rows())}
            case values.Negative(by):
                return {name: -slope for name, slope in self._slopes(by).items()}
            case values.Rank(by):
                density = self._density(by, value) if (inner := self._slopes(by)) else 0.0
                return {name: density * slope for name, slope in inner.items()}
            case values.Arithmetic(left, sign, right):
                x, y = self._all(left), self._all(right)
                with np.errstate(all="ignore"):
                    by_left = {"*": y, "/": 1 / y}.get(sign, np.ones(()))
                    by_right = {"+": np.ones(()), "-": -np.ones(()), "*": x, "/": -x / y**2}[sign]
                found = {name: by_left * slope for name, slope in self._slopes(left).items()}
                for name, slope in self._slopes(right).items():
                    found[name] = found.get(name, 0.0) + by_right * slope
                return found
        return {}

    def _density(self, by: Value, rank: Value) -> np.ndarray:
        """The slope of the ranks of a value, as a secant over a standard error to either side."""
        score, ranks, error = self._all(by), self._all(rank), self._error(by)
        scored = np.flatnonzero(np.isfinite(score))
        order = scored[np.argsort(score[scored])]
        x, y = score[order], ranks[order]
        rise = np.interp(score + error, x, y) - np.interp(score - error, x, y)
        return np.asarray(rise / np.where(error == 0, 1, 2 * error))

    def _all(self, value: Value) -> np.ndarray:
        return np.concatenate([np.broadcast_to(value.of(block), block.rows) for block in self.blocks]).astype(float)

    def _kept(self, work: Work, among: np.ndarray) -> np.ndarray:
        parts = np.split(among, np.cumsum([block.rows for block in self.blocks])[:-1])
        return np.concatenate([_mask(work, block, part) for block, part in zip(self.blocks, parts, strict=True)])

    def _rows(self) -> int:
        return sum(block.rows for block in self.blocks)


def _sampled(pool: ScoredPool) -> Iterator[ScoreBlock]:
    stride = min(max(1, sum(pool.sizes) // _SAMPLE), len(pool.sizes))
    for block in pool.blocks():
        if block.index % stride == stride // 2:
            yield block


def _mask(work: Work, block: ScoreBlock, among: np.ndarray) -> np.ndarray:
    mask = work.keep(block, among)
    if mask is None:
        raise AssertionError("the application is not finished")
    return mask
