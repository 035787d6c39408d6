"""Contrastive losses of a global batch, through tiles of its similarity matrix, on any number of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable

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
    cosines,
    data_devices,
    paired_cosines,
)
from clipdata_jax.scores.row_blocks import Blocks


def contrastive_loss(
    image_emb: Float[AnyArray, "b d"],
    text_emb: Float[AnyArray, "b d"],
    logit_scale: float | Float[AnyArray, ""],
    *,
    mask: Bool[AnyArray, " b"] | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Computes the symmetric cross-entropy of matching a batch's images and captions.

        L = -1/2b sum_i [ log softmax_j(e^s f_i.g_j)_i + log softmax_j(e^s f_j.g_i)_i ]

    The loss of CLIP, Radford et al. 2021, arXiv:2103.00020, figure 3. The b x b matrix is never kept, in a backward
    pass neither.

    Args:
      image_emb: f, unit rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit rows, shape (b, d); row i is the caption of image i.
      logit_scale: s, the logarithm of the inverse temperature.
      mask: shape (b,), False for rows that count nowhere: neither as pairs nor as others' negatives. They may hold
        anything, and b becomes the number of the other rows.
      mesh: a mesh with an axis "data", whose size divides b: each device computes its own rows against all captions.

    Returns:
      L, float32 scalar, in nats, at least 0; log(b) if all embeddings are equal; 0 if all rows are masked.

    Raises:
      ValueError: the shapes differ or are not (b, d), or the rows don't divide over the mesh.

    >>> import numpy as np
    >>> from clipdata_jax.training import contrastive_loss
    >>> images, texts = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.0, 1.0]])
    >>> round(float(contrastive_loss(images, texts, 0.0)), 3)
    0.449
    """
    return _over_devices(contrastive_share, image_emb, text_emb, (logit_scale,), mask, mesh)


def sigmoid_loss(
    image_emb: Float[AnyArray, "b d"],
    text_emb: Float[AnyArray, "b d"],
    logit_scale: float | Float[AnyArray, ""],
    logit_bias: float | Float[AnyArray, ""],
    *,
    mask: Bool[AnyArray, " b"] | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Computes the loss of telling each pair of a batch from all other combinations, one by one.

        L = -1/b sum_ij log sigmoid(z_ij (e^s f_i.g_j + c)),  z_ij = 1 for i = j, else -1

    The loss of SigLIP, Zhai et al. 2023, arXiv:2303.15343, equation 1. The b x b matrix is never kept.

    Args:
      image_emb: f, unit rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit rows, shape (b, d); row i is the caption of image i.
      logit_scale: s, the logarithm of the inverse temperature.
      logit_bias: c.
      mask: as in `contrastive_loss`.
      mesh: as in `contrastive_loss`.

    Returns:
      L, float32 scalar, in nats, at least 0.

    Raises:
      ValueError: the shapes differ or are not (b, d), or the rows don't divide over the mesh.

    >>> import numpy as np
    >>> from clipdata_jax.training import sigmoid_loss
    >>> images, texts = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.0, 1.0]])
    >>> round(float(sigmoid_loss(images, texts, 0.0, 0.0)), 3)
    1.207
    """
    return _over_devices(sigmoid_share, image_emb, text_emb, (logit_scale, logit_bias), mask, mesh)


def _over_devices(
    share: Callable[..., Array],
    image_emb: AnyArray,
    text_emb: AnyArray,
    scalars: tuple[float | AnyArray, ...],
    mask: AnyArray | None,
    mesh: Mesh | None,
) -> Float[Array, ""]:
    check_pairs(image_emb, text_emb)
    rows = image_emb.shape[0]
    check_mask(mask, rows)
    if mask is None:
        mask = jnp.ones(rows, bool)
    arrays = image_emb, text_emb, mask, *(jnp.float32(scalar) for scalar in scalars)
    if mesh is None:
        return share(*map(jnp.asarray, arrays), axis=None)
    if rows % data_devices(mesh):
        raise ValueError(f"{rows} rows don't divide over {mesh.shape['data']} devices: pad and mask")
    specs = (P("data"),) * 3 + (P(),) * len(scalars)

    # Checking what varies over devices would sum the scalars' derivatives in every turn of a loop, where XLA on CPUs
    # may let one process's collectives overtake others; gloo then aborts.
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False)
    def shares(*arrays: Array) -> Array:
        return share(*arrays, axis="data")[None]

    return shares(*arrays).sum()


def contrastive_share(
    f_bd: Float[Array, "b d"],
    g_bd: Float[Array, "b d"],
    mask_b: Bool[Array, " b"],
    logit_scale: Float[Array, ""],
    *,
    axis: str | None,
) -> Float[Array, ""]:
    """One device's share of `contrastive_loss`, for use in `shard_map`: the shares of all devices add up to it."""
    t = jnp.exp(-logit_scale)
    row_b, col_nb = _log_sums(f_bd, *_gathered((g_bd, mask_b), axis), mask_b, t)
    if axis is not None:  # of all devices' captions with own images, to own captions with all devices' images
        col_nb = jax.lax.all_to_all(col_nb, axis, split_axis=0, concat_axis=0)
    sum_b = jnp.where(mask_b, row_b + log_sum_exp(col_nb, axis=0), 0)
    pair_b = paired_cosines(f_bd, g_bd, mask_b) / t
    return jnp.sum(sum_b / 2 - pair_b) / _pairs(mask_b, axis)


@jax.custom_vjp
def _log_sums(
    f_bd: Float[Array, "b d"],
    g_nbd: Float[Array, "n b d"],
    g_mask_nb: Bool[Array, "n b"],
    mask_b: Bool[Array, " b"],
    t: Float[Array, ""],
) -> tuple[Float[Array, " b"], Float[Array, "n b"]]:
    """The log-sums of exp(f_i.g_j / t): of each image over all captions, of each caption over these images."""

    def against(row_b: Array, block: tuple[Array, ...]) -> tuple[Array, Array]:
        row_tbc, col_tbc = log_sum_tables(f_bd, block[0], mask_b, block[1], cells=1, temperatures=t[None])
        return log_sum_exp(jnp.stack([row_b, row_tbc[0, :, 0]]), axis=0), col_tbc[0, :, 0]

    empty_b = jnp.full_like(mask_b, -jnp.inf, dtype=jnp.float32)
    sums: tuple[Array, Array] = jax.lax.scan(against, empty_b, (g_nbd, g_mask_nb))
    return sums


def _log_sums_forward(*inputs: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    sums = _log_sums(*inputs)
    return sums, (*inputs, *sums)


def _log_sums_backward(kept: tuple[Array, ...], by_sums: tuple[Array, Array]) -> tuple[Array | None, ...]:
    """The derivative of a log-sum is the softmax, of which one product a tile is computed again."""
    f_bd, g_nbd, g_mask_nb, mask_b, t, row_b, col_nb = kept
    blocks = Blocks.of(len(f_bd))
    padding = blocks.count * blocks.side - len(f_bd)

    def tiles(x: Array, axis: int = 0) -> Array:
        widths = [(0, padding if at == axis else 0) for at in range(x.ndim)]
        return jnp.pad(x, widths).reshape(-1, blocks.side, *x.shape[axis + 1 :])

    images = tiles(f_bd), tiles(mask_b), tiles(row_b), tiles(by_sums[0])
    captions = tiles(g_nbd, 1), tiles(g_mask_nb, 1), tiles(col_nb, 1), tiles(by_sums[1], 1)

    def row_of_tiles(total: tuple[Array, Array], image: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        f_td, row_mask_t, row_t, by_row_t = image
        f_td = jnp.where(row_mask_t[:, None], f_td, 0)  # a masked row may hold NaN

        def tile(total: tuple[Array, Array], caption: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
            g_td, col_mask_t, col_t, by_col_t = caption
            g_td = jnp.where(col_mask_t[:, None], g_td, 0)
            pair = row_mask_t[:, None] & col_mask_t[None, :]
            logits_tt = cosines(f_td, g_td) / t

            def softmax(sums: Array) -> Array:
                return jnp.where(pair, jnp.exp(jnp.where(pair, logits_tt - sums, 0)), 0)

            by_tt = by_row_t[:, None] * softmax(row_t[:, None]) + by_col_t[None, :] * softmax(col_t[None, :])
            by_f_td = jnp.einsum("ij,jd->id", by_tt, g_td.astype(jnp.float32), precision="highest") / t
            by_g_td = jnp.einsum("ij,id->jd", by_tt, f_td.astype(jnp.float32), precision="highest") / t
            return (total[0] + by_f_td, total[1] - jnp.sum(by_tt * logits_tt) / t), by_g_td

        by_g, by_t = total
        start = jnp.zeros(f_td.shape, jnp.float32), by_t
        (by_f_td, by_t), more = jax.lax.scan(tile, start, captions)
        return (by_g + more, by_t), by_f_td

    start = jnp.zeros(captions[0].shape, jnp.float32), jnp.zeros_like(t)
    (by_g, by_t), by_f = jax.lax.scan(row_of_tiles, start, images)
    by_f_bd = by_f.reshape(-1, f_bd.shape[1])[: len(f_bd)]
    by_g_nbd = by_g.reshape(len(g_nbd), -1, f_bd.shape[1])[:, : len(f_bd)]
    return by_f_bd.astype(f_bd.dtype), by_g_nbd.astype(g_nbd.dtype), None, None, by_t


_log_sums.defvjp(_log_sums_forward, _log_sums_backward)


def sigmoid_share(
    f_bd: Float[Array, "b d"],
    g_bd: Float[Array, "b d"],
    mask_b: Bool[Array, " b"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    *,
    axis: str | None,
) -> Float[Array, ""]:
    """One device's share of `sigmoid_loss`, for use in `shard_map`: the shares of all devices add up to it."""
    blocks, scale = Blocks.of(len(f_bd)), jnp.exp(logit_scale)
    own = 0 if axis is None else jax.lax.axis_index(axis)

    @jax.checkpoint
    def tile(device: Array, h_bd: Array, m_b: Array, row: Array, col: Array) -> Array:
        (f_td, fresh_f), (h_td, fresh_h) = blocks.cut(f_bd, row), blocks.cut(h_bd, col)
        first_f, first_h = blocks.start(row), blocks.start(col)
        row_t = fresh_f & jax.lax.dynamic_slice_in_dim(mask_b, first_f, blocks.side)
        col_t = fresh_h & jax.lax.dynamic_slice_in_dim(m_b, first_h, blocks.side)
        # A masked row may hold NaN.
        cos_tt = cosines(jnp.where(row_t[:, None], f_td, 0), jnp.where(col_t[:, None], h_td, 0))
        logits_tt = cos_tt * scale + logit_bias
        numbers = jnp.arange(blocks.side)
        match_tt = (device == own) & (first_f + numbers[:, None] == first_h + numbers[None, :])
        terms_tt = jax.nn.softplus(jnp.where(match_tt, -logits_tt, logits_tt))
        return jnp.sum(jnp.where(row_t[:, None] & col_t[None, :], terms_tt, 0))

    def against(total: Array, block: tuple[Array, ...]) -> tuple[Array, None]:
        def add(total: Array, index: Array) -> tuple[Array, None]:
            return total + tile(*block, index // blocks.count, index % blocks.count), None

        return jax.lax.scan(add, total, jnp.arange(blocks.count**2))

    texts = _gathered((g_bd, mask_b), axis)
    total = jax.lax.scan(against, jnp.float32(0), (jnp.arange(len(texts[0])), *texts))[0]
    return total / _pairs(mask_b, axis)


def _gathered(arrays: tuple[Array, ...], axis: str | None) -> tuple[Array, ...]:
    """The arrays of all devices, stacked."""
    if axis is None:
        return tuple(array[None] for array in arrays)
    return tuple(jax.lax.all_gather(array, axis) for array in arrays)


def _pairs(mask_b: Array, axis: str | None) -> Float[Array, ""]:
    """The unmasked rows of all devices, at least 1."""
    count = mask_b.sum(dtype=jnp.float32)
    return jnp.maximum(count if axis is None else jax.lax.psum(count, axis), 1)
