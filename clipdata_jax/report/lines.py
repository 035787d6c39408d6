"""Line charts as SVG paths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from clipdata_jax.report.histogram import HEIGHT, WIDTH, ticks_between

__all__ = ["HEIGHT", "WIDTH", "Line", "LineChart", "draw"]

_LEFT, _RIGHT, _TOP, _BASE = 46.0, 342.0, 16.0, 158.0


@dataclasses.dataclass(frozen=True)
class Line:
    """A line: its class, its path and its dots (x, y, label)."""

    kind: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclasses.dataclass(frozen=True)
class LineChart:
    """A line chart as SVG in a box of 360 x 196.

    Attributes:
      lines: in the order given.
      x_ticks: (x, label, whether it is the base).
      y_ticks: (y, label).
    """

    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str, bool], ...]
    y_ticks: tuple[tuple[float, str], ...]


def draw(
    labels: Sequence[str],
    base: int,
    series: Mapping[str, Sequence[float]],
    *,
    show: Callable[[float], str],
    from_zero: bool,
    least_span: float,
) -> LineChart:
    """Lays out lines over evenly spaced settings.

    Args:
      labels: of the settings, from left to right.
      base: index of the setting that the page's other charts keep.
      series: class of the line -> a value for each setting; NaN is left out.
      show: turns a value into text.
      from_zero: whether the axis starts at 0; else at the smallest value.
      least_span: of the axis: smaller differences must not look large.
    """
    values = [value for line in series.values() for value in line if math.isfinite(value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = 0.0 if from_zero else low
    middle, span = (low + high) / 2, max(high - low, least_span)
    low, high = (low, low + span) if from_zero else (middle - span / 2, middle + span / 2)
    margin = (high - low) * 0.08
    low, high = low if from_zero else low - margin, high + margin
    step = (_RIGHT - _LEFT) / max(len(labels) - 1, 1)
    x = [_LEFT + i * step if len(labels) > 1 else (_LEFT + _RIGHT) / 2 for i in range(len(labels))]

    def place(value: float) -> float:
        return round(_BASE - (value - low) / (high - low) * (_BASE - _TOP), 1)

    ticks = ticks_between(low, high, 4)
    lines = []
    for kind, line in series.items():
        dots = tuple(
            (round(x[i], 1), place(value), show(value)) for i, value in enumerate(line) if math.isfinite(value)
        )
        lines.append(Line(kind, "M" + "L".join(f"{a} {b}" for a, b, _ in dots) if dots else "", dots))
    return LineChart(
        tuple(lines),
        tuple((round(x[i], 1), label, i == base) for i, label in enumerate(labels)),
        tuple(zip(map(place, ticks), _shortened([show(tick) for tick in ticks]), strict=True)),
    )


def _shortened(labels: list[str]) -> list[str]:
    """Decimal numbers without the zeros that all of them end in."""
    while labels and all("." in label and label.endswith(("0", ".")) for label in labels):
        labels = [label[:-1] for label in labels]
    return labels
