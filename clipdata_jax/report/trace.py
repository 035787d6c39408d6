"""Line charts of the steps of NormSim_2-D: remaining pairs, threshold and eigenvalues."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from clipdata_jax.report import lines, text

_POINTS = 9  # of hundreds of steps, as many as a chart can label


@dataclasses.dataclass(frozen=True)
class TraceStep:
    """One step.

    Attributes:
      step: its number; 0 is the start.
      rows: pairs remaining after it.
      threshold: the lowest score kept; None at the start.
      eigenvalues: the leading ones of the remaining pairs' second moment, largest first.
    """

    step: int
    rows: int
    threshold: float | None
    eigenvalues: tuple[float, ...]


def charts(steps: Sequence[TraceStep]) -> list[tuple[str, lines.LineChart]]:
    """Draws the charts; returns the title and drawing of each.

    Args:
      steps: in order, at least one.
    """
    last = len(steps) - 1
    shown = sorted({round(i * last / (_POINTS - 1)) for i in range(_POINTS)})
    picked = [steps[i] for i in shown]
    labels = [str(step.step) for step in picked]

    def draw(
        series: dict[str, list[float]], show: Callable[[float], str], *, from_zero: bool, least_span: float
    ) -> lines.LineChart:
        return lines.draw(labels, -1, series, show=show, from_zero=from_zero, least_span=least_span)

    def eigenvalue(index: int) -> list[float]:
        return [step.eigenvalues[index] if index < len(step.eigenvalues) else float("nan") for step in picked]

    rows = {"main": [float(step.rows) for step in picked]}
    kept = {"main": [float("nan") if step.threshold is None else step.threshold for step in picked]}
    moments = {"main": eigenvalue(0), "other": eigenvalue(1)}
    return [
        ("Remaining pairs", draw(rows, text.compact, from_zero=True, least_span=1.0)),
        ("Lowest score kept", draw(kept, lambda x: text.value(x, 4), from_zero=False, least_span=1e-3)),
        ("Largest and second eigenvalue", draw(moments, lambda x: text.value(x, 3), from_zero=True, least_span=1e-3)),
    ]
