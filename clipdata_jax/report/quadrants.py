"""Two scores against each other: four quadrants at the medians, and an image of where the pairs lie."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from clipdata_jax.selection.ranking import Quantiles, chunks

# Order of the quadrants: as one reads them, top left first.
LOW_HIGH, HIGH_HIGH, LOW_LOW, HIGH_LOW = range(4)
_SIDE = 560
_HUES, _DEPTHS = 8, 32
_KEPT, _DROPPED = np.array([18, 150, 135]), np.array([163, 150, 132])  # legible on white and on near-black


@dataclasses.dataclass(frozen=True)
class Quadrants:
    """The pairs and kept pairs of a pool in the quadrants of two medians.

    Attributes:
      x: name of the column that grows to the right.
      y: name of the column that grows upwards.
      at: the two medians, (x, y).
      pairs: int64, (4,): pairs in each quadrant, those with a null score nowhere.
      kept: int64, (4,): kept pairs among them.
      image: data URI of a square PNG, transparent where no pair is. Its axes are ranks, from the pool's lowest
        score to its highest: long tails would leave most pairs in a corner.
    """

    x: str
    y: str
    at: tuple[float, float]
    pairs: np.ndarray
    kept: np.ndarray
    image: str


def quadrant_of(x: np.ndarray, y: np.ndarray, at: tuple[float, float]) -> np.ndarray:
    """The quadrant of each pair, scores at the median being high: int8, (n,), -1 where a score is null."""
    found = np.where(y >= at[1], LOW_HIGH, LOW_LOW) + (x >= at[0])
    return np.where(np.isfinite(x) & np.isfinite(y), found, -1).astype(np.int8)


def split(
    columns: Mapping[str, np.ndarray], ranks: Mapping[str, Quantiles], kept: np.ndarray, *, x: str, y: str
) -> Quadrants | None:
    """Divides a pool at the medians of two scores; None if either has no score at all.

    Args:
      columns: name -> float32, (n,).
      ranks: name -> the column's order.
      kept: bool, (n,).
      x: name of the column that grows to the right.
      y: name of the column that grows upwards.
    """
    if not ranks[x].rows or not ranks[y].rows:
        return None
    at = (ranks[x].value_at(0.5), ranks[y].value_at(0.5))
    pairs, of_kept = np.zeros(4, np.int64), np.zeros(4, np.int64)
    cells, kept_cells = np.zeros(_SIDE**2, np.int64), np.zeros(_SIDE**2, np.int64)
    for part in chunks(len(kept)):
        quadrant = quadrant_of(columns[x][part], columns[y][part], at)
        scored = quadrant >= 0
        chosen = kept[part][scored]
        column = _cell(ranks[x].middle(columns[x][part][scored]))
        row = _SIDE - 1 - _cell(ranks[y].middle(columns[y][part][scored]))
        cell = row * _SIDE + column
        pairs += np.bincount(quadrant[scored], minlength=4)
        of_kept += np.bincount(quadrant[scored][chosen], minlength=4)
        cells += np.bincount(cell, minlength=_SIDE**2)
        kept_cells += np.bincount(cell[chosen], minlength=_SIDE**2)
    image = _paint(cells.reshape(_SIDE, _SIDE), kept_cells.reshape(_SIDE, _SIDE))
    return Quadrants(x, y, at, pairs, of_kept, image)


def _cell(rank: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(rank * _SIDE, 0, _SIDE - 1).astype(np.int64))


def _paint(cells: np.ndarray, kept_cells: np.ndarray) -> str:
    """Draws dots that shrink as pairs grow more: ink by density, hue by the share kept."""
    radius = float(np.clip(9.0 - 1.6 * np.log10(max(cells.sum(), 1)), 0.5, 6))
    pool, kept = _spread(cells, radius), _spread(kept_cells, radius)
    # Scaled by a typical cell, so that even ground has contrast left for what is denser.
    full = np.log1p(max(2 * np.median(pool[pool > 0.5]), 1.5)) if (pool > 0.5).any() else 1.0
    depth = np.ceil(np.clip(np.log1p(pool) / full, 0, 1) * (_DEPTHS - 1))
    hue = np.divide(kept, pool, out=np.zeros(pool.shape), where=pool > 0) * (_HUES - 1)
    return _png((np.rint(hue) * _DEPTHS + depth).astype(np.uint8))


def _spread(cells: np.ndarray, radius: float) -> np.ndarray:
    """Every count copied over a disc around its cell, whose rim fades over one cell."""
    reach = int(np.ceil(radius))
    padded = np.pad(cells, reach)
    spread = np.zeros(cells.shape)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            weight = min(max(radius + 0.5 - float(np.hypot(down, right)), 0.0), 1.0)
            if weight:
                spread += weight * padded[reach + down :, reach + right :][:_SIDE, :_SIDE]
    return spread


def _png(index: np.ndarray) -> str:
    hue, depth = np.divmod(np.arange(_HUES * _DEPTHS), _DEPTHS)
    share = (hue / (_HUES - 1))[:, None]
    colours = np.rint(_DROPPED * (1 - share) + _KEPT * share).astype(np.uint8)
    alpha = np.rint(245 * depth / (_DEPTHS - 1)).astype(np.uint8)
    image = Image.fromarray(index).convert("P")
    image.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, transparency=alpha.tobytes())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
