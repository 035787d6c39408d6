"""Whether a pool's units differ in their negatives by more than the draw of the batches explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_ONE_IN_A_THOUSAND = 3.09  # the quantile of the normal distribution


class UnitDifference(NamedTuple):
    """How far units are apart, in the score's units.

    Attributes:
      spread: standard deviation of the units' mean log-sums beyond chance.
      noise: what the column of standard errors says, on average.
    """

    spread: float
    noise: float


def unit_moments(columns: Mapping[str, np.ndarray], name: str, scored: np.ndarray) -> dict[str, float]:
    """The moments of a unit's log-sums, in nats, and the noise of its scores, in their own units.

    Args:
      columns: of the unit, with `name` and its log-sums and standard errors, float32 of shape (n,).
      name: the column of negCLIPLoss.
      scored: shape (n,), bool: rows that have a score.

    Returns:
      "rows", "mean", "variance" and "noise"; {} where no row has an error, as in a unit of one batch.

    >>> log_sums = {"s_log_sum_text": np.float32([1, 3]), "s_log_sum_image": np.float32([1, 1])}
    >>> unit_moments({"s_se": np.float32([0.1, 0.3]), **log_sums}, "s", np.array([True, True]))["mean"]
    3.0
    """
    error = columns[f"{name}_se"].astype(np.float64)
    rows = scored & np.isfinite(error)
    if rows.sum() < 2:
        return {}
    sums = columns[f"{name}_log_sum_text"].astype(np.float64) + columns[f"{name}_log_sum_image"]
    return {
        "rows": int(rows.sum()),
        "mean": float(sums[rows].mean()),
        "variance": float(sums[rows].var(ddof=1)),
        "noise": float(np.sqrt(np.square(error[rows]).mean())),
    }


def difference(units: Sequence[Mapping[str, Any]], temperature: float) -> UnitDifference | None:
    """Compares the units' mean log-sums with what chance would make of them.

    The mean of a unit of n pairs varies by variance / n, and at most by its scores' noise, which pairs that share
    negatives have in common. A sum of squares beyond that, as it has in one of a thousand pools by chance, is a
    difference between the units: shards of one topic each, say.

    Args:
      units: what `unit_moments` returned for each.
      temperature: t, of the score.

    Returns:
      The difference; None where there is none, or fewer than two units with noise.
    """
    known = [one for one in units if one]
    if len(known) < 2:
        return None
    half = temperature / 2
    means = np.array([one["mean"] for one in known])
    noise = math.sqrt(float(np.mean([one["noise"] ** 2 for one in known])))
    chance = float(np.mean([one["variance"] / one["rows"] for one in known])) + (noise / half) ** 2
    between, freedom = float(means.var(ddof=1)), len(known) - 1
    # The quantile of chi-squared by Wilson and Hilferty.
    part = 2 / (9 * freedom)
    if between * freedom <= chance * freedom * (1 - part + _ONE_IN_A_THOUSAND * math.sqrt(part)) ** 3:
        return None
    return UnitDifference(half * math.sqrt(between - chance), noise)
