"""The nearest candidates of queries, the first of equals first: what DataComp's metrics are made of."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from clipdata_jax.runtime import parallel

# Queries at a time: 50 MB of cosines with the 25,000 captions of MSCOCO.
_BLOCK = 512


def nearest(
    query_emb: Float[np.ndarray, "n d"], candidate_emb: Float[np.ndarray, "m d"], k: int
) -> Int[np.ndarray, "n k"]:
    """Finds the k candidates with the largest cosine, nearest first; of equally near ones the first comes first.

        j_1, ..., j_k = the first k of 0, ..., m - 1, sorted by -f_i.g_j and then by j

    Args:
      query_emb: f, unit rows, shape (n, d), any float dtype; computed in float32.
      candidate_emb: g, unit rows, shape (m, d).
      k: how many, at most m.

    Returns:
      Rows of `candidate_emb`, int32, shape (n, k). At most 512 queries' cosines are in memory at a time.

    Raises:
      ValueError: k is out of range, or a number is not finite.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import nearest
    >>> nearest(np.array([[0.6, 0.8]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), k=2).tolist()
    [[1, 2]]
    """
    if not 1 <= k <= len(candidate_emb):
        raise ValueError(f"k is {k}, expected 1 to {len(candidate_emb)}, the number of candidates")
    if not (np.isfinite(query_emb).all() and np.isfinite(candidate_emb).all()):
        raise ValueError("an embedding holds a number that is not finite")
    candidates, found = jnp.asarray(candidate_emb, jnp.float32), np.empty((len(query_emb), k), np.int32)
    for start in range(0, len(query_emb), _BLOCK):
        block = query_emb[start : start + _BLOCK]
        # One shape for all blocks, so that a program is compiled once for a set of candidates.
        padded = parallel.pad_rows(np.asarray(block, np.float32), _BLOCK)
        found[start : start + _BLOCK] = np.asarray(_top(padded, candidates, k=k))[: len(block)]
    return found


@functools.partial(jax.jit, static_argnames="k")
def _top(query_emb: Float[Array, "n d"], candidate_emb: Float[Array, "m d"], *, k: int) -> Int[Array, "n k"]:
    cosines = jnp.einsum("nd,md->nm", query_emb, candidate_emb, precision="highest")
    return jax.lax.top_k(cosines, k)[1]  # of equal values the lower index comes first
