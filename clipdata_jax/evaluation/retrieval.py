"""Image-text retrieval: ranks of an image's captions and of a caption's image, and recall at k."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Queries compared with all candidates at a time.
_BLOCK = 256
_KS = (1, 5, 10)


class RetrievalRanks(NamedTuple):
    """Ranks of the right answers; 0 is first.

    Attributes:
      image_to_text: int32 (n,), the number of candidates before the image's best caption.
      text_to_image: int32 (m,), the number of candidates before the caption's image.
      image_ties: bool (n,): whether a wrong caption is exactly as near as the image's best one.
      text_ties: bool (m,): whether a wrong image is exactly as near as the caption's best one.
    """

    image_to_text: Int[Array, " n"]
    text_to_image: Int[Array, " m"]
    image_ties: Bool[Array, " n"]
    text_ties: Bool[Array, " m"]


@jax.jit
def retrieval_ranks(
    image_emb: Float[Array, "n d"],
    text_emb: Float[Array, "m d"],
    image_of: Int[Array, " m"],
    text_of: Int[Array, " m"] | None = None,
) -> RetrievalRanks:
    """Ranks images' captions and captions' images by cosine.

        r_i = #{j not in R_i : g_j.f_i >= max_(k in R_i) g_k.f_i},   R_i = {j : t_j = t_k for a k with p_k = i}
        q_j = #{i not in S_j : f_i.g_j >= max_(k in S_j) f_k.g_j},   S_j = {p_k : t_k = t_j}

    An image is found at k if any of its captions is among the first k; in the other direction each caption is a
    query. A caption whose text is that of one of the image's own is right too, whichever image it was written for. A
    tie with a wrong answer counts against the model, and so does a NaN. The protocol of Karpathy and Fei-Fei 2015,
    arXiv:1412.2306, with CLIP's cosines.

    Args:
      image_emb: f, unit rows, shape (n, d), any float dtype; computed in float32.
      text_emb: g, unit rows, shape (m, d), one or several for an image, in any order.
      image_of: p, shape (m,), int: the row in `image_emb` that a caption belongs to; each image must have one.
      text_of: t, shape (m,), int in [0, m): equal for captions of the same text; default: all differ.

    Returns:
      r and q, int32, and the ties. At most 256 queries' cosines are in memory at a time.

    Raises:
      ValueError: the shapes don't fit.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import retrieval_ranks
    >>> images, texts = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.9, 0.4], [0.9, 0.5]])
    >>> ranks = retrieval_ranks(images, texts, np.array([0, 1, 1]))
    >>> print(ranks.image_to_text, ranks.text_to_image)
    [2 1] [0 1 1]
    """
    if image_emb.shape[1:] != text_emb.shape[1:] or text_emb.shape[:1] != image_of.shape:
        raise ValueError(f"shapes differ: images {image_emb.shape}, texts {text_emb.shape}, of {image_of.shape}")
    f_nd, g_md = image_emb.astype(jnp.float32), text_emb.astype(jnp.float32)
    texts = jnp.arange(len(g_md)) if text_of is None else text_of

    def image_rank(query: tuple[Float[Array, " d"], Int[Array, ""]]) -> tuple[Array, Array]:
        own = jnp.zeros(len(g_md), bool).at[texts].max(image_of == query[1])
        return _rank(query[0], g_md, own[texts])

    def text_rank(query: tuple[Float[Array, " d"], Int[Array, ""]]) -> tuple[Array, Array]:
        return _rank(query[0], f_nd, jnp.zeros(len(f_nd), bool).at[image_of].max(texts == query[1]))

    image_to_text, image_ties = jax.lax.map(image_rank, (f_nd, jnp.arange(len(f_nd))), batch_size=_BLOCK)
    text_to_image, text_ties = jax.lax.map(text_rank, (g_md, texts), batch_size=_BLOCK)
    return RetrievalRanks(image_to_text, text_to_image, image_ties, text_ties)


def _rank(query_d: Float[Array, " d"], candidates: Float[Array, "c d"], right_c: Array) -> tuple[Array, Array]:
    """The number of wrong candidates that are no farther than the best right one, and whether one is as near."""
    cosines = jnp.einsum("cd,d->c", candidates, query_d, precision="highest")
    best = jnp.max(cosines, where=right_c, initial=-jnp.inf)
    return jnp.sum(~right_c & ~(cosines < best), dtype=jnp.int32), jnp.any(~right_c & (cosines == best))


def recall(ranks: Int[Array | np.ndarray, " n"], candidates: int) -> dict[str, float | None]:
    """Computes recall at 1, 5 and 10: the share of queries with a right answer among the first k.

    Args:
      ranks: of at least one query, shape (n,), int; 0 is first.
      candidates: number of candidates of a query; recall at that k and above is None.

    Returns:
      Shares in [0, 1], by "r1", "r5" and "r10".

    Raises:
      ValueError: no query.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import recall
    >>> recall(np.array([0, 3, 1, 0]), candidates=6)
    {'r1': 0.5, 'r5': 1.0, 'r10': None}
    """
    if not len(ranks):
        raise ValueError("ranks is empty, expected at least one query")
    return {f"r{k}": float(np.mean(np.asarray(ranks) < k)) if candidates > k else None for k in _KS}
