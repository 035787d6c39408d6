"""Spherical k-means: rows to their nearest centroid by cosine, and centroids to the directions of their rows."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from clipdata_jax.scores.norm_sim import NearestTarget, check_norm, reduce_targets
from clipdata_jax.scores.products import AnyArray, data_devices, zero_like
from clipdata_jax.scores.row_blocks import Blocks

# A coordinate x is summed as the whole number round(2^20 x) = 2^10 high + low, in two int32 sums that hold 2^21 rows
# of a cluster each. Whole numbers add up to the same sum in any order, so on any number of devices, and on a GPU,
# whose atomic additions come in no fixed order. What is rounded, 2^-21, is less than float16's own step from 2^-10 on.
_HALF_BITS = 10
MOST_ROWS = 1 << 21


class LloydStep(NamedTuple):
    """The result of a step of k-means.

    Attributes:
      score: shape (n,), float32: each row's inner product with its nearest centroid before the step; 0 where masked.
      cluster: shape (n,), int32: that centroid, the lowest of several; k where masked.
      centroids: shape (k, d), float32: after the step, unit rows.
      size: shape (k,), int32: rows of each cluster.
    """

    score: Float[Array, " n"]
    cluster: Int[Array, " n"]
    centroids: Float[Array, "k d"]
    size: Int[Array, " k"]


def assign_clusters(
    image_emb: Float[AnyArray, "n d"], centroids: Float[AnyArray, "k d"], *, mesh: Mesh | None = None
) -> NearestTarget:
    """Finds the centroid nearest to each row, by the largest inner product: for unit rows, the cosine.

        row = argmax_j f . c_j

    The assignment of spherical k-means, Dhillon and Modha 2001.

    Centroids are streamed in blocks and nothing of size n x k is kept. A row's result doesn't depend on the others;
    its last bits may depend on the shape of its block, which is 2,048 rows where every device has a multiple of them.

    Args:
      image_emb: f, shape (n, d), any float dtype; computed in float32.
      centroids: c, shape (k, d), k >= 1; of any norm.
      mesh: a mesh with an axis "data", Auto or Explicit, to shard the rows over, without any communication; n must
        divide over it. Default: computed where the rows lie.

    Returns:
      score, the inner product, and row, the centroid, the lowest of several: shape (n,) each, float32 and int32.

    Raises:
      ValueError: wrong shapes, no centroids, or rows that don't divide over the devices.

    >>> import numpy as np
    >>> from clipdata_jax import assign_clusters
    >>> images = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
    >>> print(assign_clusters(images, np.array([[1.0, 0.0], [0.0, 1.0]])).row)
    [0 0 1 1]
    """
    _check(image_emb, centroids, mesh)
    if mesh is None:
        return _assign(image_emb, centroids)
    return _assign_sharded(*_place(image_emb, centroids, mesh=mesh), mesh=mesh)


def lloyd_step(
    image_emb: Float[AnyArray, "n d"], mask: Bool[AnyArray, " n"], centroids: Float[AnyArray, "k d"], *, mesh: Mesh
) -> LloydStep:
    """Takes a step of spherical k-means: assigns all rows, then moves each centroid to the direction of its rows' sum.

        c_j <- s_j / ||s_j||,   s_j = sum over {i : argmax_l f_i . c_l = j} of f_i

    Dhillon and Modha 2001, "Concept decompositions for large sparse text data using clustering". A centroid without
    rows stays where it is. Rows are sharded over "data"; assignments need no communication, and the sums are of whole
    numbers, so that the new centroids are the same bits on any number of devices where every device has a multiple of
    2,048 rows.

    Args:
      image_emb: f, unit rows, shape (n, d), any float dtype; n must divide over the devices.
      mask: shape (n,), bool; rows that are False count nowhere.
      centroids: c, unit rows, shape (k, d), float32.
      mesh: a mesh with an axis "data", Auto or Explicit.

    Returns:
      A `LloydStep`. The sum of a cluster of more than 2^21 rows may overflow: check `size`.

    Raises:
      ValueError: wrong shapes, no centroids, or rows that don't divide over the devices.

    >>> import jax, numpy as np
    >>> from clipdata_jax import lloyd_step
    >>> images = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
    >>> start, mesh = np.array([[1.0, 0.0], [0.0, 1.0]]), jax.make_mesh((1,), ("data",))
    >>> print(np.asarray(lloyd_step(images, np.ones(4, bool), start, mesh=mesh).centroids).round(3))
    [[ 0.949  0.316]
     [-0.316  0.949]]
    """
    _check(image_emb, centroids, mesh)
    if mask.shape != image_emb.shape[:1] or mask.dtype != jnp.bool_:
        raise ValueError(f"mask is {mask.dtype}{list(mask.shape)}, expected bool of shape ({len(image_emb)},)")
    return _lloyd_step(*_place(image_emb, centroids, mask, mesh=mesh), mesh=mesh)


def _check(image_emb: AnyArray, centroids: AnyArray, mesh: Mesh | None) -> None:
    check_norm(image_emb, centroids, float("inf"), True)
    devices = 1 if mesh is None else data_devices(mesh)
    if len(image_emb) % devices:
        raise ValueError(f"{len(image_emb)} rows don't divide over {devices} devices: pad them")


def _place(image_emb: AnyArray, centroids: AnyArray, *more: AnyArray, mesh: Mesh) -> tuple[Array, ...]:
    rows, everywhere = jax.NamedSharding(mesh, P("data")), jax.NamedSharding(mesh, P())
    return (jax.device_put(image_emb, rows), jax.device_put(centroids, everywhere), *jax.device_put(more, rows))


@jax.jit
def _assign(image_emb: Array, centroids: Array) -> NearestTarget:
    found = reduce_targets(image_emb, centroids, signed=True, nearest=True)
    return NearestTarget(found.most, found.row)


@functools.partial(jax.jit, static_argnames="mesh")
def _assign_sharded(image_emb: Array, centroids: Array, *, mesh: Mesh) -> NearestTarget:
    return jax.shard_map(_assign, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))(image_emb, centroids)


@functools.partial(jax.jit, static_argnames="mesh")
def _lloyd_step(image_emb: Array, centroids: Array, mask: Array, *, mesh: Mesh) -> LloydStep:
    whole = P("data"), P("data"), P(), P()

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=whole)
    def of_shard(f_nd: Array, c_kd: Array, mask_n: Array) -> tuple[Array, ...]:
        found = _assign(f_nd, c_kd)
        cluster_n = jnp.where(mask_n, found.row, len(c_kd))
        sums, size_k = jax.lax.psum(_sum_rows(f_nd, cluster_n, len(c_kd)), "data")
        return jnp.where(mask_n, found.score, 0), cluster_n, sums, size_k

    score_n, cluster_n, sums_kd, size_k = of_shard(image_emb, centroids, mask)
    return LloydStep(score_n, cluster_n, _directions(sums_kd, centroids), size_k)


def _sum_rows(f_nd: Array, cluster_n: Array, clusters: int) -> tuple[Array, Array]:
    """Both halves of every cluster's sum, int32 (k, 2 d), and its number of rows, (k,); cluster k is left out."""
    n, d = f_nd.shape
    zero = zero_like(f_nd, cluster_n).astype(jnp.int32)
    blocks = Blocks.of(n)

    def add(seen: tuple[Array, Array], block: Array) -> tuple[tuple[Array, Array], None]:
        sums_kd, size_k = seen
        f_sd, fresh_s = blocks.cut(f_nd, block)
        here_s = jax.lax.dynamic_slice_in_dim(cluster_n, blocks.start(block), blocks.side)
        here_s = jnp.where(fresh_s, here_s, clusters)
        whole_sd = jnp.round(f_sd.astype(jnp.float32) * 4.0**_HALF_BITS).astype(jnp.int32)
        high_sd = whole_sd >> _HALF_BITS
        halves_sd = jnp.concatenate([high_sd, whole_sd - (high_sd << _HALF_BITS)], axis=1)
        return (sums_kd.at[here_s].add(halves_sd, mode="drop"), size_k.at[here_s].add(1, mode="drop")), None

    start = jnp.broadcast_to(zero, (clusters, 2 * d)), jnp.broadcast_to(zero, (clusters,))
    return jax.lax.scan(add, start, jnp.arange(blocks.count))[0]


def _directions(halves_kd: Array, former_kd: Array) -> Array:
    """Unit rows in the direction of the sums; the former ones where there is none."""
    high_kd, low_kd = jnp.split(halves_kd.astype(jnp.float32), 2, axis=1)
    sum_kd = high_kd + low_kd * 2.0**-_HALF_BITS
    norm_k = jnp.sqrt((sum_kd * sum_kd).sum(axis=1, keepdims=True))
    return jnp.where(norm_k > 0, sum_kd / jnp.where(norm_k > 0, norm_k, 1), former_kd)
