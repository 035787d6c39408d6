"""The stability of a selection: the share of the kept pairs that other batches would replace."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np

from clipdata_jax.selection.pools import ScoreBlock, ScoredPool
from clipdata_jax.selection.rules import Rule, Then
from clipdata_jax.selection.steps import Top
from clipdata_jax.selection.values import Column
from clipdata_jax.selection.work import Application, ThenWork, Work

_SAMPLE = 1 << 19  # rows to estimate from
_MOST_ERRORS = 8  # standard errors from the threshold, beyond which no pair changes sides
_KNOTS = np.linspace(0, _MOST_ERRORS, 1025)


def error_column(rule: Rule, columns: Collection[str]) -> str | None:
    """Names the column of standard errors from which a rule's stability can be estimated.

    Args:
      rule: the rule.
      columns: the known columns.

    Returns:
      `<score>_se` if exactly one of the steps joined by `>>` is `top` or `bottom` of a score with such a column;
      else None.

    >>> from clipdata_jax.selection import parse
    >>> error_column(parse("top(a, 0.3) >> top(b, 0.2)"), ["a", "a_se", "b"])
    'a_se'
    """
    found = [name for step in _steps(rule) if (name := _error_of(step)) in columns]
    return found[0] if len(found) == 1 else None


def replaced_share(rule: Rule, application: Application, pool: ScoredPool, error: str) -> float | None:
    """Estimates the share of the kept pairs that another draw of the batches would replace.

        share = sum_i p_i (1 - p_i) / |{i kept}|,   p_i = Phi((s_i - threshold) / se_i)

    with the score s_i of pair i, its standard error se_i, and the threshold between the lowest kept and the highest
    other score. Both sums are over the pairs that pass the rule's other steps, whose thresholds hardly move.

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
      error: the rule's `error_column`, which the pool must be able to read.

    Returns:
      The share, in [0, 1]; None where the step keeps every pair or none, or no pair has a standard error, as with
      one batch only.
    """
    others: list[Work] = []
    for step, work in zip(_steps(rule), _works(application.work), strict=True):
        if _error_of(step) == error and isinstance(step, Top):
            top, uncertain = step, work
        else:
            others.append(work)
    lowest, highest, kept, found = np.inf, -np.inf, 0, []
    for block in _sampled(pool):
        score = top.by.of(block) if top.highest else -top.by.of(block)
        scored = np.isfinite(score)
        inside = _mask(uncertain, block, scored)
        lowest = np.min(score[inside], initial=lowest)
        highest = np.max(score[scored & ~inside], initial=highest)
        errors = pool.read(block.index, error)
        use = scored & np.isfinite(errors)
        for work in others:
            use = _mask(work, block, use)
        kept += int(np.count_nonzero(inside & use))
        found.append((score[use], errors[use]))
    if not kept or not np.isfinite(lowest - highest):
        return None
    scores, errors = map(np.concatenate, zip(*found, strict=True))
    distance = np.abs(scores - (lowest + highest) / 2)
    near = distance < _MOST_ERRORS * errors
    p = np.array([math.erfc(z / math.sqrt(2)) / 2 for z in _KNOTS])
    replaced = np.interp(distance[near] / errors[near], _KNOTS, p * (1 - p)).sum()
    return min(float(replaced) / kept, 1.0)


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


def _steps(rule: Rule) -> tuple[Rule, ...]:
    return (*_steps(rule.left), *_steps(rule.right)) if isinstance(rule, Then) else (rule,)


def _works(work: Work) -> tuple[Work, ...]:
    return (*_works(work.left), *_works(work.right)) if isinstance(work, ThenWork) else (work,)


def _error_of(step: Rule) -> str | None:
    return f"{step.by}_se" if isinstance(step, Top) and isinstance(step.by, Column) else None
