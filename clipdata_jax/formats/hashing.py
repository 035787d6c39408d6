"""64-bit hashes that all random choices derive from: no generator state, the same in every version."""

from __future__ import annotations

import numpy as np

# The constants of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
_STEP, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def scatter(words: np.ndarray) -> np.ndarray:
    """Scatters the bits of uint64s one to one: every bit of the result depends on every bit of the word."""
    with np.errstate(over="ignore"):
        words = words + _STEP
        words = (words ^ (words >> np.uint64(30))) * _FIRST
        words = (words ^ (words >> np.uint64(27))) * _SECOND
    scattered: np.ndarray = words ^ (words >> np.uint64(31))
    return scattered


def mix(*parts: int | np.ndarray) -> np.ndarray:
    """Hashes several numbers.

        h = scatter(... scatter(scatter(0 ^ a) ^ b) ...)

    Args:
      parts: ints (taken modulo 2^64) or uint64 arrays that broadcast.

    Returns:
      uint64, of the parts' common shape.
    """
    state: np.ndarray = np.zeros((), np.uint64)
    for part in parts:
        word = np.uint64(part % (1 << 64)) if isinstance(part, int) else np.asarray(part, np.uint64)
        state = scatter(np.bitwise_xor(state, word))
    return state
