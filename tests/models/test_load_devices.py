"""Loading onto devices: every parameter where it was asked for, and how much the host holds meanwhile."""

from __future__ import annotations

import ctypes
import gc
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig, load_clip, save_clip

# 28 million parameters, nearly all in equal layers, so that one tensor is little beside the whole.
WIDE = CLIPConfig(
    vision=VisionConfig(width=768, layers=4, heads=12, mlp_width=3072, image_size=32, patch_size=16),
    text=TextConfig(width=32, layers=1, heads=2, mlp_width=64, vocab_size=40, context_length=8, eos_token_id=39),
    embed_dim=16,
)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_parameter_goes_where_it_is_asked_for(devices: int, kind: AxisType, golden: Path):
    mesh = jax.make_mesh((devices,), ("data",), (kind,), devices=jax.devices()[-devices:])
    everywhere = NamedSharding(mesh, P())
    folder = golden / "models" / "hf_siglip"
    here, there = load_clip(folder), load_clip(folder, sharding=everywhere)
    for one, other in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        assert one.sharding.device_set == {jax.devices()[0]}
        assert other.sharding == everywhere
        assert len(other.addressable_shards) == devices
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 113 MB."""
    folder = tmp_path_factory.mktemp("wide")
    structure, state = nnx.split(nnx.eval_shape(lambda: CLIP(WIDE, rngs=nnx.Rngs(0))))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    save_clip(nnx.merge(structure, zeros), folder)
    return folder


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_host_holds_little_more_than_the_parameters(dtype: type, wide: Path):
    # What earlier tests freed goes back first, or loading would fill it unseen.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, done = anonymous_memory(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        model = load_clip(wide, dtype=dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[1]))
    finally:
        done.set()
        watcher.join()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    # The file's size once more would be 113 MB.
    assert peak - before < held + 40e6


def anonymous_memory() -> int:
    """Bytes of this process that no file backs."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024
