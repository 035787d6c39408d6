"""Line charts of a run's throughput over time, and of the time its units took."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from clipdata_jax.report import lines, text
from clipdata_jax.runs.records import SECONDS, UnitTimes

_POINTS = 9  # as many as a chart can label
_LEAST = 3  # fewer units make no line


@dataclasses.dataclass(frozen=True)
class RunThroughput:
    """The throughput of a run.

    Attributes:
      name: its folder.
      units: how many.
      rows: in all.
      rows_per_second: mean over the units' rows, of one process.
      seconds: name -> (seconds in all, seconds for 1,000 rows).
      charts: title and drawing of each chart; empty with fewer than three units.
    """

    name: str
    units: int
    rows: int
    rows_per_second: float
    seconds: Mapping[str, tuple[float, float]]
    charts: tuple[tuple[str, lines.LineChart], ...]


def draw(name: str, units: Sequence[UnitTimes]) -> RunThroughput:
    """Sums units up, and draws three or more of them in at most nine stretches of as many units each.

    Args:
      name: of the run.
      units: at least one.
    """
    units = sorted(units, key=lambda unit: unit.time)
    rows = sum(unit.rows for unit in units)
    totals = {
        which: (math.fsum(unit.seconds[which] for unit in units), _for_thousand(units, which)) for which in SECONDS
    }
    charts = _charts(units) if len(units) >= _LEAST else ()
    return RunThroughput(name, len(units), int(rows), _rate(units), totals, charts)


def _charts(units: Sequence[UnitTimes]) -> tuple[tuple[str, lines.LineChart], ...]:
    count = min(_POINTS, len(units))
    edges = [len(units) * i // count for i in range(count + 1)]
    stretches = [units[start:end] for start, end in itertools.pairwise(edges)]
    labels = [_clock(part[-1].time - units[0].time) for part in stretches]
    rates = {"main": [_rate(part) for part in stretches]}
    waits = {
        "main": [_for_thousand(part, "compute") for part in stretches],
        "other": [_for_thousand(part, "wait") for part in stretches],
    }
    speed = lines.draw(labels, -1, rates, show=text.compact, from_zero=True, least_span=1.0)
    spent = lines.draw(labels, -1, waits, show=lambda value: text.value(value, 4), from_zero=True, least_span=1e-3)
    return ("Rows per second and process", speed), ("Seconds per 1,000 rows", spent)


def _rate(units: Sequence[UnitTimes]) -> float:
    """Rows a second over several units: their rows over the time these took."""
    timed = [unit for unit in units if unit.rows_per_second > 0]
    seconds = math.fsum(unit.rows / unit.rows_per_second for unit in timed)
    return sum(unit.rows for unit in timed) / seconds if seconds else math.nan


def _for_thousand(units: Sequence[UnitTimes], name: str) -> float:
    rows = sum(unit.rows for unit in units)
    return 1000 * math.fsum(unit.seconds[name] for unit in units) / rows if rows else math.nan


def _clock(seconds: float) -> str:
    """2:05, or 1h02, since the first unit was done: as short as nine labels of an axis must be."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}" if hours else f"{minutes}:{rest:02}"
