"""NormSim to targets that are sharded over devices: each reduces its own, then they compare."""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from clipdata_jax.scores.norm_sim import NearestTarget, Reduced, check_norm, finish, reduce_targets
from clipdata_jax.scores.products import AnyArray, data_devices
from clipdata_jax.scores.second_moment import norm_sim_moment, sum_products


def norm_sim_sharded(
    image_emb: Float[AnyArray, "b d"],
    target_emb: Float[AnyArray, "n d"],
    *,
    mesh: Mesh,
    p: float = math.inf,
    signed: bool = False,
) -> Float[Array, " b"]:
    """Scores as `norm_sim` does, the targets sharded over the mesh axis "data": for more than a device holds.

    Every device takes all images and its own targets; a maximum and a sum of b floats over the devices
    follow (for p = 2 a sum of d x d).

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; replicated over the mesh.
      target_emb: T, unit-norm rows, shape (n, d), n >= 1. Rows that don't divide over the devices are
        padded: a NumPy array's on the host.
      mesh: a mesh with an axis "data", Auto or Explicit.
      p: the norm, at least 1; static.
      signed: p = inf only: the largest cosine itself rather than the largest absolute one; static.

    Returns:
      shape (b,), float32, replicated. For p = inf the devices' maximum is exact; for a finite p the last bits
      depend on how many devices add up.

    Raises:
      ValueError: wrong shapes, an empty target, p < 1, or `signed` with a finite p.

    >>> import jax, numpy as np
    >>> from clipdata_jax import norm_sim_sharded
    >>> images, targets = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]])
    >>> print(norm_sim_sharded(images, targets, mesh=jax.make_mesh((1,), ("data",))))
    [1.  0.8]
    """
    check_norm(image_emb, target_emb, p, signed)
    image_emb, target_emb = _place(image_emb, target_emb, mesh, p)
    return _norm_sim_sharded(image_emb, target_emb, mesh=mesh, p=float(p), signed=signed)


def nearest_target_sharded(
    image_emb: Float[AnyArray, "b d"], target_emb: Float[AnyArray, "n d"], *, mesh: Mesh, signed: bool = False
) -> NearestTarget:
    """Finds the nearest target as `nearest_target` does, the targets sharded over the mesh axis "data".

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; replicated over the mesh.
      target_emb: T, unit-norm rows, shape (n, d), n >= 1, as in `norm_sim_sharded`.
      mesh: a mesh with an axis "data", Auto or Explicit.
      signed: take the largest cosine itself rather than the largest absolute one; static.

    Returns:
      score and row, shape (b,) each, float32 and int32, replicated; row counts the rows of the whole target.

    Raises:
      ValueError: wrong shapes or an empty target.

    >>> import jax, numpy as np
    >>> from clipdata_jax import nearest_target_sharded
    >>> images, targets = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]])
    >>> print(nearest_target_sharded(images, targets, mesh=jax.make_mesh((1,), ("data",))).row)
    [2 1]
    """
    check_norm(image_emb, target_emb, math.inf, signed)
    last = len(target_emb) - 1
    image_emb, target_emb = _place(image_emb, target_emb, mesh, math.inf)
    return _nearest_target_sharded(image_emb, target_emb, mesh=mesh, signed=signed, last=last)


def _place(image_emb: AnyArray, target_emb: AnyArray, mesh: Mesh, p: float) -> tuple[Array, Array]:
    missing = -len(target_emb) % data_devices(mesh)
    if missing:
        pad = np.pad if isinstance(target_emb, np.ndarray) else jnp.pad
        # Padding must not count: zeros add nothing to a sum, the last row repeated nothing to a maximum.
        mode: Literal["edge", "constant"] = "edge" if p == math.inf else "constant"
        target_emb = pad(target_emb, ((0, missing), (0, 0)), mode=mode)
    everywhere, rows = jax.NamedSharding(mesh, P()), jax.NamedSharding(mesh, P("data"))
    return jax.device_put(image_emb, everywhere), jax.device_put(target_emb, rows)


@functools.partial(jax.jit, static_argnames=("mesh", "p", "signed"))
def _norm_sim_sharded(image_emb: Array, target_emb: Array, *, mesh: Mesh, p: float, signed: bool) -> Array:
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    def of_shard(f_bd: Array, t_cd: Array) -> Array:
        if p == 2:
            return norm_sim_moment(f_bd, jax.lax.psum(sum_products(t_cd), "data"))
        found = reduce_targets(f_bd, t_cd, p=p, signed=signed)
        most_b = jax.lax.pmax(found.most, "data")
        if p == math.inf:
            return most_b
        scale_b = jnp.where(most_b > 0, most_b, 1)
        total_b = jax.lax.psum(found.total * (found.most / scale_b) ** p, "data")
        return finish(Reduced(most_b, total_b, found.row), p)

    return of_shard(image_emb, target_emb)


@functools.partial(jax.jit, static_argnames=("mesh", "signed", "last"))
def _nearest_target_sharded(
    image_emb: Array, target_emb: Array, *, mesh: Mesh, signed: bool, last: int
) -> NearestTarget:
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    def of_shard(f_bd: Array, t_cd: Array) -> NearestTarget:
        found = reduce_targets(f_bd, t_cd, signed=signed, nearest=True)
        most_b = jax.lax.pmax(found.most, "data")
        row_b = jax.lax.axis_index("data") * len(t_cd) + found.row
        row_b = jax.lax.pmin(jnp.where(found.most == most_b, row_b, last), "data")
        return NearestTarget(most_b, jnp.minimum(row_b, last))

    return of_shard(image_emb, target_emb)
