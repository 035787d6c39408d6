"""The second moment of embeddings, and the scores that need nothing else of them: NormSim_2 and VAS."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clipdata_jax.scores.products import AnyArray, check_rows, under_auto_axes, zero_like
from clipdata_jax.scores.row_blocks import Blocks


def second_moment(target_emb: Float[AnyArray, "n d"]) -> Float[Array, "d d"]:
    """Sums the outer products of the target embeddings: their uncentred second moment, all that NormSim_2 needs.

        S = T'T = sum_j t_j t_j'

    Args:
      target_emb: T, shape (n, d), any float dtype; summed in float32, block by block.

    Returns:
      S, shape (d, d), float32, symmetric.

    Raises:
      ValueError: not (n, d) floats.

    >>> import numpy as np
    >>> from clipdata_jax import second_moment
    >>> print(second_moment(np.array([[0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])))
    [[1. 0.]
     [0. 2.]]
    """
    check_rows("target_emb", target_emb)
    return sum_products(target_emb)


@jax.jit
def sum_products(target_emb: Array) -> Array:
    """`second_moment` without its checks."""
    return under_auto_axes(_sum_products, target_emb, rows_axis=None)


def _sum_products(target_emb: Array) -> Array:
    d = target_emb.shape[1]
    empty = jnp.broadcast_to(zero_like(target_emb), (d, d))
    blocks = Blocks.of(len(target_emb))

    def add(total: Array, index: Array) -> tuple[Array, None]:
        rows, fresh = blocks.cut(target_emb, index)
        block = jnp.where(fresh[:, None], rows, 0).astype(jnp.float32)
        return total + jnp.einsum("nd,ne->de", block, block, precision="highest"), None

    return jax.lax.scan(add, empty, jnp.arange(blocks.count))[0]


def norm_sim_moment(image_emb: Float[AnyArray, "b d"], moment: Float[AnyArray, "d d"]) -> Float[Array, " b"]:
    """Scores each image by NormSim_2, from the target's second moment.

        NormSim_2(x) = sqrt(f' S f),   S = T'T

    Wang et al. 2024, arXiv:2405.19547.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      moment: S, shape (d, d), symmetric, positive semi-definite (`second_moment`).

    Returns:
      shape (b,), float32, at least 0.

    Raises:
      ValueError: the shapes don't fit.

    >>> import numpy as np
    >>> from clipdata_jax import norm_sim_moment
    >>> print(norm_sim_moment(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 4.0]])))
    [1. 2.]
    """
    # Rounding can leave a tiny negative number where an image is orthogonal to every target.
    return jnp.sqrt(jnp.maximum(vas(image_emb, moment), 0))


def vas(image_emb: Float[AnyArray, "b d"], moment: Float[AnyArray, "d d"]) -> Float[Array, " b"]:
    """Scores each image by its variance alignment: NormSim_2 squared, over the number of targets.

        VAS(x) = f' S f,   S = T'T / n

    Wang et al. 2024, arXiv:2402.02055. It ranks as NormSim_2 does.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      moment: S, shape (d, d), symmetric, positive semi-definite: `second_moment(target_emb) / n`.

    Returns:
      shape (b,), float32, in [0, 1] up to rounding.

    Raises:
      ValueError: the shapes don't fit.

    >>> import numpy as np
    >>> from clipdata_jax import vas
    >>> print(vas(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.25, 0.0], [0.0, 0.5]])))
    [0.25 0.5 ]
    """
    check_rows("image_emb", image_emb)
    check_rows("moment", moment)
    if moment.shape != (image_emb.shape[-1],) * 2:
        raise ValueError(
            f"shapes don't fit: images {image_emb.shape}, moment {moment.shape}, expected (b, d) and (d, d)"
        )
    return _vas(image_emb, moment)


@jax.jit
def _vas(image_emb: Array, moment: Array) -> Array:
    f_bd = image_emb.astype(jnp.float32)
    projected = jnp.einsum("bd,de->be", f_bd, moment.astype(jnp.float32), precision="highest")
    return jnp.einsum("be,be->b", projected, f_bd, precision="highest")
