"""The order of the pairs: a pure function of seed and step, so that resuming needs no other state.

Everything comes from 64-bit hashes: no library's generator takes part, and no permutation is kept in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from clipdata_jax.config.recipes import Sampling
from clipdata_jax.formats.hashing import mix

_ROUNDS = 8


def batch_rows(
    *,
    seed: int,
    step: int,
    pairs: int,
    batch_size: int,
    sampling: Sampling = "epochs",
    numbers: np.ndarray | None = None,
) -> Int64[np.ndarray, " n"]:
    """Draws the rows of a step's batch.

    With "epochs", an epoch is pairs // batch_size batches without a repeated row; the remainder, other rows in each
    epoch, is left out. With "replacement", every row is drawn from all pairs.

    Args:
      seed: of the order.
      step: from 0.
      pairs: number of rows.
      batch_size: rows of a batch; with "epochs" 1 to `pairs`.
      sampling: how they are drawn.
      numbers: which of the batch's rows are wanted, shape (n,); None means all.

    Returns:
      Row numbers in [0, pairs), shape (n,), int64.

    Raises:
      ValueError: no pairs, or with "epochs" fewer than a batch.

    >>> import numpy as np
    >>> from clipdata_jax.training import batch_rows
    >>> epoch = [batch_rows(seed=0, step=step, pairs=6, batch_size=3) for step in (0, 1)]
    >>> print(np.sort(np.concatenate(epoch)))
    [0 1 2 3 4 5]
    """
    most = pairs if sampling == "epochs" else batch_size
    if not 1 <= batch_size <= most or not pairs:
        raise ValueError(f"batch_size is {batch_size}, expected 1 to {most}, the number of pairs")
    numbers = np.arange(batch_size) if numbers is None else numbers
    if sampling == "replacement":
        return _draw(seed, step * batch_size + numbers, pairs)
    epoch = epoch_of(step, pairs=pairs, batch_size=batch_size)
    first = (step - epoch * (pairs // batch_size)) * batch_size
    return permute(first + numbers, pairs, seed=seed, epoch=epoch)


def epoch_of(step: int, *, pairs: int, batch_size: int, sampling: Sampling = "epochs") -> int:
    """Returns the epoch of a step; with "replacement" each step is one."""
    return step // (pairs // batch_size) if sampling == "epochs" else step


def _draw(seed: int, numbers: np.ndarray, size: int) -> Int64[np.ndarray, " n"]:
    words = mix(seed, numbers.astype(np.uint64))
    # As a share of the range: the bias, size / 2^53, is far below what any run could show.
    return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53 * size).astype(np.int64)


def permute(places: np.ndarray, size: int, *, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Maps places in [0, size) one to one to places in [0, size): an epoch's permutation, place by place.

    A Feistel network over the smallest power of two that holds them, walked until it comes back into the range (Black
    and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"): it needs no memory however large the pool.

    Args:
      places: shape (n,), in [0, size).
      size: of the range.
      seed: of the order.
      epoch: its number.

    Returns:
      Shape (n,), int64.

    >>> sorted(permute(np.arange(5), 5, seed=0, epoch=0).tolist())
    [0, 1, 2, 3, 4]
    """
    bits = max((size - 1).bit_length(), 2)
    low, high = bits // 2, bits - bits // 2
    keys = mix(seed, epoch, np.arange(2 * _ROUNDS, dtype=np.uint64))
    words = places.astype(np.uint64)
    outside = np.arange(len(words))
    while len(outside):
        words[outside] = _feistel(words[outside], keys, low, high)
        outside = outside[words[outside] >= size]
    return words.astype(np.int64)


def _feistel(words: UInt64[np.ndarray, " n"], keys: np.ndarray, low: int, high: int) -> UInt64[np.ndarray, " n"]:
    masks = [np.uint64((1 << width) - 1) for width in (low, high)]
    right, left = words & masks[0], words >> np.uint64(low)
    for one, other in keys.reshape(-1, 2):
        left = left ^ (mix(one ^ right) & masks[1])
        right = right ^ (mix(other ^ left) & masks[0])
    return left << np.uint64(low) | right


def share_out(weights: Sequence[float], batch_size: int) -> list[int]:
    """Shares a batch out among sources: whole numbers as close to their weights as possible (largest remainders).

    Args:
      weights: positive numbers, one a source.
      batch_size: the sum of the result.

    >>> share_out([3.0, 1.0, 1.0], 8)
    [5, 2, 1]
    """
    exact = np.asarray(weights, np.float64) / np.sum(weights) * batch_size
    counts = np.floor(exact).astype(np.int64)
    rest = np.argsort(counts - exact, kind="stable")[: batch_size - counts.sum()]
    counts[rest] += 1
    return [int(count) for count in counts]


def interleave(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Spreads each source's rows evenly over a batch.

    Args:
      counts: of each source, the rows of a batch.

    Returns:
      For each row of the batch its source, and its number among that source's rows, which rises along the batch.

    >>> interleave([4, 2])
    (array([0, 1, 0, 0, 1, 0]), array([0, 0, 1, 2, 1, 3]))
    """
    source = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(count) for count in counts])
    at: Float64[np.ndarray, " n"] = (number + 0.5) / np.asarray(counts)[source]
    order = np.argsort(at, kind="stable")
    return source[order], number[order]
