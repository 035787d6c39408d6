"""Zero-shot classification: an image's class is the one with the closest prompts.

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
    """Accuracies in [0, 1].

    Attributes:
      top1: the share of images whose true class comes first.
      top5: the share whose true class is among the first five; None for at most five classes.
      mean_per_class: the mean of `top1` over the classes that occur.
    """

    top1: float
    top5: float | None
    mean_per_class: float


@jax.jit
def zero_shot_weights(text_emb: Float[Array, "classes templates d"]) -> Float[Array, "classes d"]:
    """Builds a classifier from prompts: the normalised mean of a class's normalised text embeddings.

    Radford et al. 2021, arXiv:2103.00020, section 3.1.4.

    Args:
      text_emb: of each class in each template, shape (classes, templates, d), any float dtype, any norm above 0.

    Returns:
      Unit rows, shape (classes, d), float32.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import zero_shot_weights
    >>> print(np.asarray(zero_shot_weights(np.array([[[2.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [0.0, 1.0]]]))).round(3))
    [[0.707 0.707]
     [0.    1.   ]]
    """
    return _unit(jnp.mean(_unit(text_emb.astype(jnp.float32)), axis=1))


def _unit(emb: Float[Array, "... d"]) -> Float[Array, "... d"]:
    return emb / jnp.linalg.norm(emb, axis=-1, keepdims=True)


@jax.jit
def class_ranks(
    image_emb: Float[Array, "n d"], weights: Float[Array, "classes d"], labels: Int[Array, " n"]
) -> Int[Array, " n"]:
    """Ranks each image's true class by cosine.

        r_i = #{c != y_i : w_c.f_i >= w_(y_i).f_i}

    A tie counts against the model, and so does a NaN. The classifier of Radford et al. 2021, section 3.1.2.

    Args:
      image_emb: f, shape (n, d), any float dtype; computed in float32.
      weights: w, shape (classes, d), from `zero_shot_weights`.
      labels: y, shape (n,), int in [0, classes).

    Returns:
      r, shape (n,), int32; 0 is right. At most 1,024 images' cosines are in memory at a time.

    Raises:
      ValueError: the shapes don't fit.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import class_ranks
    >>> images, weights = np.array([[0.8, 0.6], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(class_ranks(images, weights, np.array([1, 1])))
    [1 0]
    """
    if image_emb.shape != (*labels.shape, weights.shape[1]):
        raise ValueError(f"shapes differ: images {image_emb.shape}, weights {weights.shape}, labels {labels.shape}")

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
    """Computes zero-shot accuracy from `class_ranks`.

    Args:
      image_emb: of at least one image, shape (n, d), any float dtype.
      weights: from `zero_shot_weights`, shape (classes, d).
      labels: the true classes, shape (n,), int in [0, classes).

    Returns:
      Top-1, top-5 and mean per-class accuracy, in [0, 1].

    Raises:
      ValueError: no images, a label out of range, or the shapes don't fit.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import accuracy
    >>> images, weights = np.array([[0.8, 0.6], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> accuracy(images, weights, np.array([1, 1]))
    Accuracy(top1=0.5, top5=None, mean_per_class=0.5)
    """
    true = np.asarray(labels)
    if not true.size or true.min() < 0 or true.max() >= len(weights):
        raise ValueError(f"labels are {np.unique(true)}, expected at least one, each from 0 to {len(weights) - 1}")
    ranks = np.asarray(class_ranks(jnp.asarray(image_emb), jnp.asarray(weights), jnp.asarray(labels)))
    right, seen = np.bincount(true, ranks < 1), np.bincount(true)
    return Accuracy(
        top1=float(np.mean(ranks < 1)),
        top5=float(np.mean(ranks < 5)) if len(weights) > 5 else None,
        mean_per_class=float(np.mean(right[seen > 0] / seen[seen > 0])),
    )
