"""negCLIPLoss (also s-CLIPLoss): a pair's cosine less how well its halves match the rest of the batch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from clipdata_jax.scores.log_sums import log_sum_exp, log_sum_tables
from clipdata_jax.scores.products import (
    AnyArray,
    check_mask,
    check_pairs,
    check_temperature,
    data_devices,
    paired_cosines,
    under_auto_axes,
)

# A row's sums so far; the visiting texts, their mask and their columns' sums so far.
_Carry = tuple[Array, tuple[Array, Array, Array]]


def neg_clip_loss(
    image_emb: Float[AnyArray, "b d"],
    text_emb: Float[AnyArray, "b d"],
    *,
    temperature: float | Float[AnyArray, ""] = 0.01,
    mask: Bool[AnyArray, " b"] | None = None,
) -> Float[Array, " b"]:
    """Scores each pair by its cosine, less how well it matches the rest of the batch.

        s_i = f_i.g_i - t/2 (log sum_j exp(f_i.g_j / t) + log sum_j exp(f_j.g_i / t))

    The negCLIPLoss of Wang et al. 2024, arXiv:2405.19547 (s-CLIPLoss in its later versions); the sums are
    over the whole batch, j = i included. The b x b matrix is never kept.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d); row i is the caption of image i.
      temperature: t > 0, the teacher's 1/exp(logit_scale); traced, so it may be learnt.
      mask: shape (b,), False for padding: rows that count nowhere and score -inf.

    Returns:
      s, shape (b,), float32, in cosine units (not nats), at most 0. Higher is a better match.

    Raises:
      ValueError: the shapes differ or are not (b, d), or a Python temperature is not above 0.

    >>> import numpy as np
    >>> from clipdata_jax import neg_clip_loss
    >>> images, texts = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.0, 1.0]])
    >>> print(np.asarray(neg_clip_loss(images, texts, temperature=0.1)).round(3))
    [-0.006 -0.001]
    """
    check_pairs(image_emb, text_emb)
    check_mask(mask, image_emb.shape[0])
    check_temperature(temperature)
    return _neg_clip_loss(image_emb, text_emb, temperature, mask)


@jax.jit
def _neg_clip_loss(image_emb: Array, text_emb: Array, temperature: Array, mask: Array | None) -> Array:
    def score(image_emb: Array, text_emb: Array, temperature: Array, mask: Array | None) -> Array:
        temperatures = jnp.asarray(temperature, jnp.float32)[None]
        row_tbc, col_tbc = log_sum_tables(image_emb, text_emb, mask, cells=1, temperatures=temperatures)
        sum_b, cos_b = (row_tbc + col_tbc)[0, :, 0], paired_cosines(image_emb, text_emb, mask)
        return _finish(cos_b, sum_b, temperature, mask)

    return under_auto_axes(score, image_emb, text_emb, temperature, mask)


def _finish(cos_b: Array, sum_b: Array, temperature: Array, mask: Array | None) -> Array:
    if mask is None:
        return cos_b - temperature / 2 * sum_b
    # Masked twice: 0 * inf would reach the derivative by the temperature.
    return jnp.where(mask, cos_b - temperature / 2 * jnp.where(mask, sum_b, 0), -jnp.inf)


def neg_clip_loss_sharded(
    image_emb: Float[AnyArray, "b d"],
    text_emb: Float[AnyArray, "b d"],
    *,
    mesh: Mesh,
    temperature: float | Float[AnyArray, ""] = 0.01,
    mask: Bool[AnyArray, " b"] | None = None,
) -> Float[Array, " b"]:
    """Scores as `neg_clip_loss` does, one batch whose rows are sharded over the mesh axis "data".

    Blocks of texts travel once round the ring of devices with their column sums. A device keeps two blocks of
    rows and some tiles of 2,048 x 2,048 float32, however large b is.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d); row i is the caption of image i.
      mesh: a mesh with an axis "data", Auto or Explicit, whose size divides b.
      temperature: t > 0, traced.
      mask: shape (b,), False for padding: rows that count nowhere and score -inf.

    Returns:
      s, shape (b,), float32, sharded over "data".

    Raises:
      ValueError: the shapes differ, the mesh has no axis "data", the rows don't divide over its devices, or a Python
        temperature is not above 0.

    >>> import jax, numpy as np
    >>> from clipdata_jax import neg_clip_loss_sharded
    >>> images, texts = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.0, 1.0]])
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> print(np.asarray(neg_clip_loss_sharded(images, texts, mesh=mesh, temperature=0.1)).round(3))
    [-0.006 -0.001]
    """
    check_pairs(image_emb, text_emb)
    check_mask(mask, image_emb.shape[0])
    check_temperature(temperature)
    devices = data_devices(mesh)
    if image_emb.shape[0] % devices:
        raise ValueError(f"{image_emb.shape[0]} rows don't divide over {devices} devices: pad and mask")
    if mask is None:
        mask = jnp.ones(image_emb.shape[0], bool)
    rows = jax.NamedSharding(mesh, P("data"))
    placed = jax.device_put((image_emb, text_emb, mask), rows)
    return _neg_clip_loss_sharded(*placed, jnp.float32(temperature), mesh=mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _neg_clip_loss_sharded(image_emb: Array, text_emb: Array, mask: Array, temperature: Array, *, mesh: Mesh) -> Array:
    n = mesh.shape["data"]

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P("data"), P("data"), P()), out_specs=P("data"))
    def ring(f_bd: Array, g_bd: Array, mask_b: Array, t: Array) -> Array:
        empty_b = jnp.full_like(mask_b, -jnp.inf, dtype=jnp.float32)  # varies over "data", as what is added to it

        hop = [(i, (i + 1) % n) for i in range(n)]

        def step(carry: _Carry, _: None) -> tuple[_Carry, None]:
            row_b, (h_bd, m_b, col_b) = carry
            row_tbc, col_tbc = log_sum_tables(f_bd, h_bd, mask_b, m_b, cells=1, temperatures=t[None])
            row_b = log_sum_exp(jnp.stack([row_b, row_tbc[0, :, 0]]), axis=0)
            col_b = log_sum_exp(jnp.stack([col_b, col_tbc[0, :, 0]]), axis=0)
            return (row_b, jax.lax.ppermute((h_bd, m_b, col_b), "data", hop)), None

        start = empty_b, (g_bd, mask_b, empty_b)
        (row_b, (_, _, col_b)), _ = jax.lax.scan(step, start, length=n)  # n hops: home again
        return _finish(paired_cosines(f_bd, g_bd, mask_b), row_b + col_b, t, mask_b)

    return ring(image_emb, text_emb, mask, temperature)
