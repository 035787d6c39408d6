"""Histograms of a score, kept pairs on top of dropped ones, and the paths that draw them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from clipdata_jax.report import text
from clipdata_jax.selection.ranking import Quantiles

# The drawing's units are pixels on a phone; a card is about as wide on a desk.
WIDTH, HEIGHT = 360, 196
_LEFT, _RIGHT, _TOP, _BASE = 6.0, 354.0, 22.0, 154.0
_STRIP_TOP, _STRIP_HEIGHT = 158.0, 6.0


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of kept and dropped pairs by score.

    Attributes:
      edges: float64, (bins + 1,); the outermost bins also hold what lies beyond them.
      kept: int64, (bins,).
      dropped: int64, (bins,).
      clipped: how many pairs lie beyond the edges.
    """

    edges: np.ndarray
    kept: np.ndarray
    dropped: np.ndarray
    clipped: int


@dataclasses.dataclass(frozen=True)
class HistogramDrawing:
    """A histogram as SVG in a box of 360 x 196.

    Attributes:
      kept: path of the kept pairs' bars, standing on the base line.
      dropped: path of the dropped pairs' bars, standing on the kept ones.
      strip: (x, width, share kept or None where no pair is) of each bin.
      x_ticks: (x, label).
      y_ticks: (y, label).
      marks: (class, x) of the medians that are known.
    """

    kept: str
    dropped: str
    strip: tuple[tuple[float, float, float | None], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[tuple[str, float], ...]


def count(values: np.ndarray, kept: np.ndarray, ranks: Quantiles) -> Histogram:
    """Counts a column's finite scores in even bins.

    The bins cover all scores, but for tails of less than 0.1 % of the pairs that reach far out.

    Args:
      values: shape (n,), float32.
      kept: shape (n,), bool.
      ranks: the column's order.
    """
    low, high = _range(ranks)
    if not low < high:
        margin = max(abs(low), 1.0) * 0.05
        low, high = low - margin, high + margin
    bins = int(np.clip(2 * ranks.rows ** (1 / 3), 8, 48))
    edges = np.linspace(low, high, bins + 1)
    finite = np.isfinite(values)
    beyond = int(((values[finite] < low) | (values[finite] > high)).sum())
    # Clipped in float32 an edge may round outwards and leave the range.
    sides = [np.clip(values[finite & side].astype(np.float64), low, high) for side in (kept, ~kept)]
    of_kept, of_dropped = (np.histogram(side, edges)[0] for side in sides)
    return Histogram(edges, of_kept, of_dropped, beyond)


def _range(ranks: Quantiles) -> tuple[float, float]:
    if not ranks.rows:
        return 0.0, 1.0
    least, low, high, most = (ranks.value_at(quantile) for quantile in (0, 0.001, 0.999, 1))
    reach = 0.3 * (high - low)
    return least if least > low - reach else low, most if most < high + reach else high


def draw(histogram: Histogram, medians: dict[str, float]) -> HistogramDrawing:
    """Lays a histogram out.

    Args:
      histogram: the counts.
      medians: class of the mark ("kept", "dropped") -> score; NaN is left out.
    """
    edges, total = histogram.edges, histogram.kept + histogram.dropped
    highest = max(int(total.max()), 1)
    x = _LEFT + (edges - edges[0]) / (edges[-1] - edges[0]) * (_RIGHT - _LEFT)
    scale = (_BASE - _TOP) / highest
    middle = _BASE - histogram.kept * scale
    ticks = ticks_between(float(edges[0]), float(edges[-1]), 5)
    places = max(text.decimals(ticks[1] - ticks[0]) - 2, 0) if len(ticks) > 1 else 3
    return HistogramDrawing(
        kept=_bars(x, middle, np.full(len(total), _BASE)),
        dropped=_bars(x, _BASE - total * scale, middle),
        strip=tuple(
            (round(float(x[i]), 2), round(float(x[i + 1] - x[i]), 2), float(k / n) if n else None)
            for i, (k, n) in enumerate(zip(histogram.kept, total, strict=True))
        ),
        x_ticks=tuple((_place(tick, edges), text.value(tick, places if places < 5 else 8)) for tick in ticks),
        y_ticks=tuple(
            (round(_BASE - tick * scale, 1), text.compact(tick)) for tick in ticks_between(0, highest, 3) if tick >= 1
        ),
        marks=tuple((kind, _place(at, edges)) for kind, at in medians.items() if math.isfinite(at)),
    )


def ticks_between(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within a range, about as many as wanted."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _place(at: float, edges: np.ndarray) -> float:
    share = min(max((at - edges[0]) / (edges[-1] - edges[0]), 0.0), 1.0)
    return round(_LEFT + float(share) * (_RIGHT - _LEFT), 1)


def _bars(x: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> str:
    gap = min(1.0, (x[1] - x[0]) / 6)
    return "".join(
        f"M{x[i]:.1f} {bottom[i]:.1f}V{top[i]:.1f}H{x[i + 1] - gap:.1f}V{bottom[i]:.1f}z"
        for i in range(len(top))
        if bottom[i] - top[i] > 0.01
    )
