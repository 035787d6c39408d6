"""Zero-shot classification: an image's class is the one whose prompts it is closest to.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1,
arXiv:2103.00020.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Images compared with all classes at a time: 4 MB of cosines for ImageNet's 1,000.
_BLOCK = 1024


class Accuracy(NamedTuple):
    """How often the classes were right; shares between 0 and 1.

    Attributes:
      top1: the true class comes first.
      top5: it is among the first five; None where there are no more than five classes.
      mean_per_class: the mean over the classes that occur of their share of `top1`.
    """

    top1: float
    top5: float | None
    mean_per_class: float


@jax.jit
def zero_shot_weights(text_emb: Float[Array, "classes templates d"]) -> Float[Array, "classes d"]:
    """Makes a classifier of prompts: the normalised mean of a class's normalised text embeddings.

    Args:
      text_emb: of each class in each template, any float dtype, any norm but zero.

    Returns:
      Unit rows, float32.
    """
    return _unit(jnp.mean(_unit(text_emb.astype(jnp.float32)), axis=1))


def _unit(emb: Float[Array, "... d"]) -> Float[Array, "... d"]:
    return emb / jnp.linalg.norm(emb, axis=-1, keepdims=True)


@jax.jit
def class_ranks(
    image_emb: Float[Array, "n d"], weights: Float[Array, "classes d"], labels: Int[Array, " n"]
) -> Int[Array, " n"]:
    """How many classes stand before the true one.

        r_i = #{c != y_i : w_c.f_i >= w_(y_i).f_i}

    A tie counts against the model (one that gives all classes the same cosine knows nothing), and so does a NaN.

    Args:
      image_emb: f, any float dtype.
      weights: w, from `zero_shot_weights`.
      labels: y, in [0, classes).

    Returns:
      r, int32; 0 is right. No more than 1,024 images' cosines are kept at a time.

    Raises:
      ValueError: as many labels as images are needed, and one dimension of the embeddings.
    """
    if image_emb.shape != (*labels.shape, weights.shape[1]):
        raise ValueError(
            f"shapes differ: images {image_emb.shape}, weights {weights.shape}, labels {labels.shape}"
        )

    def rank(row: tuple[Float[Array, " d"], Int[Array, ""]]) -> Int[Array, ""]:
        f_d, label = row
        cosines = jnp.einsum("cd,d->c", weights, f_d.astype(jnp.float32), precision="highest")
        return jnp.sum(~(cosines < cosines[label]), dtype=jnp.int32) - 1  # the true class itself is not less

    return jax.lax.map(rank, (image_emb, labels), batch_size=_BLOCK)


def accuracy(
    image_emb: Float[Array | np.ndarray, "n d"],
    weights: Float[Array | np.ndarray, "classes d"],
    labels: Int[Array | np.ndarray, " n"],
) -> Accuracy:
    """Zero-shot accuracy.

    Args:
      image_emb: of at least one image.
      weights: from `zero_shot_weights`.
      labels: the true classes, in [0, classes).

    Raises:
      ValueError: no images, a label out of range, or shapes that don't fit.
    """
    true = np.asarray(labels)
    if not true.size or true.min() < 0 or true.max() >= len(weights):
        raise ValueError(
            f"labels must be numbers of {len(weights)} classes, at least one, found {np.unique(true)}"
        )
    ranks = np.asarray(class_ranks(jnp.asarray(image_emb), jnp.asarray(weights), jnp.asarray(labels)))
    right, seen = np.bincount(true, ranks < 1), np.bincount(true)
    return Accuracy(
        top1=float(np.mean(ranks < 1)),
        top5=float(np.mean(ranks < 5)) if len(weights) > 5 else None,
        mean_per_class=float(np.mean(right[seen > 0] / seen[seen > 0])),
    )
