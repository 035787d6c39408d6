"""The page of `clipdata sensitivity`: four settings, what each does to the selection, and one sentence of advice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from clipdata_jax.report import lines, page, text
from clipdata_jax.report.lines import Drawing


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting: its label, whether it is the base, and its four figures in the order of the columns."""

    label: str
    is_base: bool
    spearman: float
    overlap: float
    flips: float
    from_finest: float


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is varied: name, the flag of `score` that sets it, what it means, and its settings."""

    name: str
    flag: str
    meaning: str
    rows: Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Page:
    """What the page tells.

    Attributes:
      pool: its name.
      advice: one sentence.
      base: the setting that others differ from.
      finest: the setting they are compared with.
      fraction: share that is selected.
      sampled: pairs looked at.
      pairs: pairs in the pool.
      axes: what is varied.
      notes: sentences that a reader must see.
      facts: (name, value) of options and versions.
    """

    pool: str
    advice: str
    base: str
    finest: str
    fraction: float
    sampled: int
    pairs: int
    axes: Sequence[Axis]
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()


def render(told: Page) -> str:
    """Writes the page: HTML that opens offline, holds no script, and is the same for the same figures."""
    charts = {axis.name: (_flips(axis), _agreement(axis)) for axis in told.axes}
    template = page.environment().get_template("sensitivity.html.j2")
    return template.render(told=told, charts=charts, box={"width": lines.WIDTH, "height": lines.HEIGHT})


def _flips(axis: Axis) -> Drawing:
    series = {"main": [row.flips for row in axis.rows], "other": [row.from_finest for row in axis.rows]}
    return _draw(axis, series, text.percent, from_zero=True, least_span=0.005)


def _agreement(axis: Axis) -> Drawing:
    series = {"main": [row.spearman for row in axis.rows], "other": [row.overlap for row in axis.rows]}
    return _draw(axis, series, lambda value: text.value(value, 3), from_zero=False, least_span=0.02)


def _draw(
    axis: Axis,
    series: dict[str, list[float]],
    show: Callable[[float], str],
    *,
    from_zero: bool,
    least_span: float,
) -> Drawing:
    base = next((i for i, row in enumerate(axis.rows) if row.is_base), -1)
    labels = [row.label for row in axis.rows]
    return lines.draw(labels, base, series, show=show, from_zero=from_zero, least_span=least_span)
