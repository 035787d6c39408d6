"""Cosines of blocks of embeddings, at a precision that an exponential can bear."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

# Arrays of the host are accepted and moved to the device.
AnyArray = Array | np.ndarray


def cosines(f_rd: Float[Array, "r d"], g_cd: Float[Array, "c d"]) -> Float[Array, "r c"]:
    """All inner products of two blocks of rows, in float32.

    float16 blocks are multiplied as they are on a GPU: its tensor cores form exact products and add them in
    float32. Everything else is multiplied as float32 at the highest precision: a TPU's default would round
    the inputs to bfloat16, an error of 2^-9 that a temperature of 0.01 turns into 0.2 in the exponent.
    """

    def tensor_cores(f: Array, g: Array) -> Array:
        return jnp.einsum("rd,cd->rc", f, g, preferred_element_type=jnp.float32)

    def highest(f: Array, g: Array) -> Array:
        return jnp.einsum("rd,cd->rc", f.astype(jnp.float32), g.astype(jnp.float32), precision="highest")

    if f_rd.dtype == g_cd.dtype == jnp.float16:
        return jax.lax.platform_dependent(f_rd, g_cd, cuda=tensor_cores, rocm=tensor_cores, default=highest)
    return highest(f_rd, g_cd)


def paired_cosines(
    f_bd: Float[Array, "b d"], g_bd: Float[Array, "b d"], mask_b: Bool[Array, " b"] | None = None
) -> Float[Array, " b"]:
    """The inner product of row i with row i, in float32; 0 where masked, whatever the rows hold."""
    if mask_b is not None:
        f_bd, g_bd = jnp.where(mask_b[:, None], f_bd, 0), jnp.where(mask_b[:, None], g_bd, 0)
    return (f_bd.astype(jnp.float32) * g_bd.astype(jnp.float32)).sum(axis=1)


def under_auto_axes(
    function: Callable[..., Any], emb_bd: Float[Array, "b d"], *others: Any, rows_axis: int | None = 0
) -> Any:
    """Calls function(emb_bd, *others) under Auto axes, also where the rows lie on an Explicit mesh.

    The sharding of a block of sharded rows can't be stated beforehand. The results are sharded as the rows are,
    and XLA finds how to get there.

    Args:
      function: returns arrays of which `rows_axis` is the axis of the rows.
      emb_bd: rows, with or without a mesh.
      others: any arrays.
      rows_axis: None where the results have no such axis; they are then replicated.
    """
    sharding = jax.typeof(emb_bd).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(emb_bd, *others)
    spec = P() if rows_axis is None else P(*[None] * rows_axis, sharding.spec[0])
    out = jax.NamedSharding(sharding.mesh, spec)
    return jax.sharding.auto_axes(function, out_sharding=out)(emb_bd, *others)


def zero_like(*arrays: Array) -> Float[Array, ""]:
    """A float32 zero that varies over the mesh axes that any of the arrays varies over.

    Inside a caller's `shard_map` the start of a scan must vary over the axes that its result varies over.
    """
    return functools.reduce(jnp.add, [jnp.zeros_like(array, jnp.float32, shape=()) for array in arrays])


def check_rows(name: str, emb: AnyArray, rows: str = "rows") -> None:
    """Raises ValueError unless an argument of that name is an array of floats, (rows, dim)."""
    expected = f"expected floats of shape ({rows}, dim)"
    if not (hasattr(emb, "dtype") and hasattr(emb, "ndim")):
        raise ValueError(f"{name} is a {type(emb).__name__}, {expected}; numpy.asarray makes an array of it")
    if emb.ndim != 2 or not jnp.issubdtype(emb.dtype, jnp.floating):
        raise ValueError(f"{name} is {emb.dtype}{list(emb.shape)}, {expected}")


def data_devices(mesh: Mesh) -> int:
    """The size of a mesh's axis "data"; raises ValueError if it has no such axis."""
    if "data" not in mesh.shape:
        raise ValueError(f"the mesh has the axes {', '.join(mesh.shape) or 'none'}, expected one named data")
    return int(mesh.shape["data"])


def check_pairs(image_emb: AnyArray, text_emb: AnyArray) -> None:
    """Raises ValueError unless both are (b, d) floats of one shape."""
    for name, emb in (("image_emb", image_emb), ("text_emb", text_emb)):
        check_rows(name, emb, "pairs")
    if image_emb.shape != text_emb.shape:
        raise ValueError(f"shapes differ: images {image_emb.shape}, texts {text_emb.shape}")


def check_mask(mask: AnyArray | None, rows: int) -> None:
    """Raises ValueError unless the mask is None or bool of shape (rows,)."""
    if mask is not None and (mask.shape != (rows,) or mask.dtype != jnp.bool_):
        raise ValueError(f"mask is {mask.dtype}{list(mask.shape)}, expected bool of shape ({rows},)")


def check_temperature(temperature: object) -> None:
    """Raises ValueError for a Python number that is not above 0; an array's value is not read."""
    if isinstance(temperature, (int, float)) and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}, expected a number above 0")
