"""CLIPScore: the cosine of a pair."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from clipdata_jax.scores.products import AnyArray, check_pairs, paired_cosines


def clip_score(image_emb: Float[AnyArray, "b d"], text_emb: Float[AnyArray, "b d"]) -> Float[Array, " b"]:
    """Scores each pair by the cosine of image and caption.

        s_i = f_i . g_i

    CLIPScore of Hessel et al. 2021, arXiv:2104.08718, without its factor 2.5 and its cut at 0, as data
    selection uses it (DataComp, arXiv:2304.14108).

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d); row i is the caption of image i.

    Returns:
      s, shape (b,), float32, in [-1, 1]. Higher is a better match.

    Raises:
      ValueError: the shapes differ or are not (b, d) floats.

    >>> import numpy as np
    >>> from clipdata_jax import clip_score
    >>> images, texts = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.8, -0.6]])
    >>> print(np.asarray(clip_score(images, texts)).round(3))
    [ 0.8 -0.6]
    """
    check_pairs(image_emb, text_emb)
    return _clip_score(image_emb, text_emb)


@jax.jit
def _clip_score(image_emb: Array, text_emb: Array) -> Array:
    return paired_cosines(image_emb, text_emb)
