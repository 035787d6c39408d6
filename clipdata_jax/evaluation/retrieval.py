"""Image-text retrieval: whether an image finds one of its captions, and a caption its image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Queries compared with all candidates at a time.
_BLOCK = 256
_KS = (1, 5, 10)


class RetrievalRanks(NamedTuple):
    """Where the right answers stand; 0 is first.

    Attributes:
      image_to_text: int32 (n,), candidates before the image's best caption.
      text_to_image: int32 (m,), candidates before the caption's image.
    """

    image_to_text: Int[Array, " n"]
    text_to_image: Int[Array, " m"]


@jax.jit
def retrieval_ranks(
    image_emb: Float[Array, "n d"], text_emb: Float[Array, "m d"], image_of: Int[Array, " m"]
) -> RetrievalRanks:
    """RetrievalRanks images' captions and captions' images by cosine.

        r_i = #{j : p_j != i, g_j.f_i >= max_(k : p_k = i) g_k.f_i}
        q_j = #{i != p_j : f_i.g_j >= f_(p_j).g_j}

    So an image is found at k if any of its captions is among its first k; each caption is a query of its own the
    other way. A tie with a wrong answer counts against the model, and so does a NaN.

    Args:
      image_emb: f, any float dtype; computed in float32.
      text_emb: g, one or several rows for an image, in any order.
      image_of: p, the row in `image_emb` that a caption belongs to; each image must have a caption.

    Returns:
      r and q. No more than 256 queries' cosines are kept at a time.

    Raises:
      ValueError: the shapes don't fit.
    """
    if image_emb.shape[1:] != text_emb.shape[1:] or text_emb.shape[:1] != image_of.shape:
        raise ValueError(
            f"shapes differ: images {image_emb.shape}, texts {text_emb.shape}, of {image_of.shape}"
        )
    f_nd, g_md = image_emb.astype(jnp.float32), text_emb.astype(jnp.float32)
    images = jnp.arange(len(f_nd))

    def image_rank(query: tuple[Float[Array, " d"], Int[Array, ""]]) -> Int[Array, ""]:
        return _rank(query[0], g_md, image_of == query[1])

    def text_rank(query: tuple[Float[Array, " d"], Int[Array, ""]]) -> Int[Array, ""]:
        return _rank(query[0], f_nd, images == query[1])

    return RetrievalRanks(
        jax.lax.map(image_rank, (f_nd, images), batch_size=_BLOCK),
        jax.lax.map(text_rank, (g_md, image_of), batch_size=_BLOCK),
    )


def _rank(query_d: Float[Array, " d"], candidates: Float[Array, "c d"], right_c: Array) -> Int[Array, ""]:
    cosines = jnp.einsum("cd,d->c", candidates, query_d, precision="highest")
    best = jnp.max(cosines, where=right_c, initial=-jnp.inf)
    return jnp.sum(~right_c & ~(cosines < best), dtype=jnp.int32)


def recall(ranks: Int[Array | np.ndarray, " n"], candidates: int) -> dict[str, float | None]:
    """The share of queries that find a right answer among their first 1, 5 and 10.

    Args:
      ranks: of at least one query, 0 being first.
      candidates: how many there were; beyond that many a recall says nothing and is None.

    Raises:
      ValueError: no query.
    """
    if not len(ranks):
        raise ValueError("ranks is empty: recall needs a query")
    return {f"r{k}": float(np.mean(np.asarray(ranks) < k)) if candidates > k else None for k in _KS}
