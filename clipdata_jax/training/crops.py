"""Random resized crops: a box per image, a pure function of a 64-bit key and the image's size."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, UInt64

from clipdata_jax.formats.hashing import mix

_TRIES = 10
_RATIOS = (3 / 4, 4 / 3)


def crop_uniforms(
    *, seed: int, epoch: int | np.ndarray, uid_hi: UInt64[np.ndarray, " n"], uid_lo: UInt64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n tries 4"]:
    """Draws the numbers that decide the crops of some pairs in an epoch, by hashing.

    Args:
      seed: of the run.
      epoch: its number, one for all pairs or one each.
      uid_hi: the first halves of the pairs' uids, shape (n,), uint64.
      uid_lo: the second halves.

    Returns:
      In [0, 1), shape (n, 10, 4), float64: for each try area, ratio, and place down and across.
    """
    keys = mix(seed, epoch if isinstance(epoch, int) else epoch.astype(np.uint64), uid_hi, uid_lo)
    words = mix(keys[:, None], np.arange(4 * _TRIES, dtype=np.uint64))
    return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(-1, _TRIES, 4)


def crop_box(
    width: int, height: int, uniforms: Float64[np.ndarray, "tries 4"], *, min_area: float
) -> tuple[int, int, int, int]:
    """Chooses a box of random area and shape.

    The area is `min_area` to 1 of the image's, uniformly; the ratio of width to height 3/4 to 4/3, uniformly in its
    logarithm; the first of ten tries that fits is taken, else the largest box in the middle whose ratio is allowed.
    These are torchvision's `RandomResizedCrop` and, with 0.9, open_clip's default.

    Args:
      width: of the image, in pixels.
      height: of the image, in pixels.
      uniforms: from `crop_uniforms`.
      min_area: the smallest share of the area.

    Returns:
      Left, top, right and bottom, in pixels.

    >>> crop_box(100, 100, np.full((10, 4), 0.5), min_area=0.9)
    (2, 2, 99, 99)
    >>> crop_box(300, 100, np.full((10, 4), 0.5), min_area=0.9)
    (83, 0, 216, 100)
    """
    low, high = (math.log(ratio) for ratio in _RATIOS)
    for area, ratio, down, across in uniforms.tolist():
        pixels = width * height * (min_area + (1 - min_area) * area)
        shape = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * _RATIOS[1])))
    h = max(1, min(height, round(width / _RATIOS[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
