"""The towers on meshes: rows sharded, parameters replicated, axes of either kind, all ways of calling."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.towers import SIGLIP, SMALL, captions, images, jit

from clipdata_jax.models import CLIP, CLIPConfig

pytestmark = pytest.mark.optimized

Encode = Callable[..., tuple[jax.Array, jax.Array]]
CONFIGS = pytest.mark.parametrize("config", [SMALL, SIGLIP], ids=["clip", "siglip"])


def mesh_of(devices: int, kind: AxisType) -> Mesh:
    return jax.make_mesh((devices,), ("data",), (kind,), devices=jax.devices()[:devices])


def split(model: CLIP) -> tuple[Encode, nnx.State]:
    structure, state = nnx.split(model)

    def encode(state: nnx.State, pixels: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(structure, state)
        return model.encode_image(pixels), model.encode_text(ids)

    return encode, state


@CONFIGS
def test_jit_follows_the_rows(config: CLIPConfig, filled: Callable[[CLIPConfig], CLIP]):
    encode, state = split(filled(config))
    want = jit(encode)(state, images(16), captions(16))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of(8, kind)
        rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        if kind == AxisType.Auto:  # host arrays, which only in_shardings can tell where to go
            got = jit(encode, in_shardings=(everywhere, rows, rows))(state, images(16), captions(16))
        else:
            placed = jax.device_put((images(16), captions(16)), rows)
            got = jit(encode)(jax.device_put(state, everywhere), *placed)
        for got_nd, want_nd in zip(got, want, strict=True):
            assert got_nd.sharding.is_equivalent_to(rows, 2)
            np.testing.assert_allclose(got_nd, want_nd, atol=1e-6)


@CONFIGS
def test_shard_map_gives_the_same_bits_on_any_mesh(config: CLIPConfig, filled: Callable[[CLIPConfig], CLIP]):
    encode, state = split(filled(config))
    found = []
    for devices, kind in ((1, AxisType.Auto), (8, AxisType.Explicit)):
        mesh = mesh_of(devices, kind)
        specs = (P(), P("data"), P("data")), (P("data"), P("data"))
        mapped = jax.shard_map(encode, mesh=mesh, in_specs=specs[0], out_specs=specs[1])
        two_each = images(16)[: 2 * devices], captions(16)[: 2 * devices]
        found.append(jit(mapped)(state, *jax.device_put(two_each, NamedSharding(mesh, P("data")))))
    for one_nd, other_nd in zip(*found, strict=True):
        np.testing.assert_array_equal(one_nd, np.asarray(other_nd)[:2])


def test_gradients_cross_explicit_axes(filled: Callable[[CLIPConfig], CLIP]):
    encode, state = split(filled(SMALL))

    def loss(state: nnx.State, pixels: jax.Array, ids: jax.Array) -> jax.Array:
        image_bd, text_bd = encode(state, pixels, ids)
        return jnp.sum(image_bd * text_bd)

    want = jit(jax.grad(loss))(state, images(8), captions(8))
    mesh = mesh_of(8, AxisType.Explicit)
    placed = jax.device_put((images(8), captions(8)), NamedSharding(mesh, P("data")))
    got = jit(jax.grad(loss))(jax.device_put(state, NamedSharding(mesh, P())), *placed)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
