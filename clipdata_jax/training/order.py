"""The order of the pairs: a pure function of seed and step, so that resuming needs no other state."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int64

from clipdata_jax.formats.hashing import mix, scatter


def batch_rows(*, seed: int, step: int, pairs: int, batch_size: int) -> Int64[np.ndarray, " batch_size"]:
    """Draws the rows of a step's batch.

    An epoch is pairs // batch_size batches without a repeated row; the remainder, other rows in each epoch, is left
    out. The order comes from 64-bit hashes and depends on no library's generator.

    Args:
      seed: of the order.
      step: from 0.
      pairs: number of rows.
      batch_size: rows of a batch, 1 to `pairs`.

    Returns:
      Row numbers in [0, pairs), shape (batch_size,), int64.

    Raises:
      ValueError: fewer pairs than a batch.

    >>> import numpy as np
    >>> from clipdata_jax.training import batch_rows
    >>> epoch = [batch_rows(seed=0, step=step, pairs=6, batch_size=3) for step in (0, 1)]
    >>> print(np.sort(np.concatenate(epoch)))
    [0 1 2 3 4 5]
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
