"""Which pairs a step takes: a pure function of seed and step, so that resuming needs no other state."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int64

from clipdata_jax.formats.hashing import mix, scatter


def batch_rows(*, seed: int, step: int, pairs: int, batch_size: int) -> Int64[np.ndarray, " batch_size"]:
    """The rows of a step's batch.

    An epoch is pairs // batch_size batches without a repeated row; the remainder, other rows each time, sits out.
    The order comes from 64-bit hashes, so it depends on no library's generator.

    Args:
      seed: of the order.
      step: from 0.
      pairs: rows there are.
      batch_size: rows wanted, at most `pairs`.

    Raises:
      ValueError: fewer pairs than a batch.
    """
    if not 1 <= batch_size <= pairs:
        raise ValueError(f"batch_size is {batch_size}, expected 1 to {pairs}, the number of pairs")
    epoch, place = divmod(step, pairs // batch_size)
    return _permutation(seed, epoch, pairs)[place * batch_size : (place + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, pairs: int) -> np.ndarray:
    keys = np.arange(pairs, dtype=np.uint64)
    for word in (epoch, seed):
        keys = scatter(keys ^ mix(word))
    order = np.argsort(keys, kind="stable")
    order.setflags(write=False)
    return order
