"""The training step: its gradient by plain autodiff, in every setting; what it shards; lowered for other platforms."""

import functools
import math
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.losses import contrastive_float64, sigmoid_float64

from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig
from clipdata_jax.runtime import parallel
from clipdata_jax.training import adamw, init_state, make_step, split_model, whole_params

TOWER = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
CONFIG = CLIPConfig(
    vision=VisionConfig(**TOWER, image_size=16, patch_size=8),
    # A table large enough to be sharded; every device's part has whole rows.
    text=TextConfig(**TOWER, vocab_size=1024, context_length=6, eos_token_id=1023),
    embed_dim=12,
)
SIGLIP = CLIPConfig(**{**vars(CONFIG), "logit_bias_init": -1.0})
RATE = 0.5


def batch(b=16):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (b, 16, 16, 3), np.uint8)
    mask = np.arange(b) % 5 != 3
    return pixels, rng.integers(0, 1024, (b, 6)).astype(np.int32), mask


@functools.cache
def start(config=CONFIG):
    return split_model(CLIP(config, rngs=nnx.Rngs(0)))


@functools.cache
def program(devices, config=CONFIG, optimizer="sgd", **options):
    """By plain gradient descent the parameters' change is the gradient."""
    mesh = parallel.data_mesh(jax.devices()[:devices])
    chosen = optax.sgd(RATE) if optimizer == "sgd" else adamw(learning_rate=1e-2, warmup=1, steps=9, weight_decay=0.1)
    state = functools.partial(init_state, optimizer=chosen, mesh=mesh, shard_params=options.get("shard_params", False))
    return mesh, state, make_step(start(config)[1], chosen, mesh, **options)


@functools.cache
def one_step(devices, config=CONFIG, **options):
    """The metrics and the gradient of the first step."""
    mesh, state, step = program(devices, config, **options)
    params = start(config)[0]
    new, metrics = step(state(params), *(parallel.to_global(part, mesh) for part in batch()))
    after = whole_params(new.params, mesh)
    return {name: float(value) for name, value in metrics.items()}, {
        name: (np.asarray(params[name]) - after[name]) / RATE for name in params
    }


@pytest.mark.parametrize("config", [CONFIG, SIGLIP], ids=["clip", "siglip"])
def test_loss_and_metrics_are_those_of_the_unmasked_rows(config):
    params, merge = start(config)
    pixels, ids, mask = batch()
    encode = jax.jit(lambda params: (merge(params).encode_image(pixels), merge(params).encode_text(ids)))
    emb = [np.asarray(emb, np.float64)[mask] for emb in encode(params)]
    scalars = [float(params[name]) for name in ("logit_scale", "logit_bias") if name in params]
    want, by = (contrastive_float64 if config is CONFIG else sigmoid_float64)(*emb, *scalars)
    metrics, gradient = one_step(1, config)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    np.testing.assert_allclose(metrics["temperature"], math.exp(-params["logit_scale"]), rtol=1e-6)
    assert metrics["pairs"] == mask.sum()
    norm = math.sqrt(sum(np.sum(np.square(part, dtype=np.float64)) for part in gradient.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    for name, by_scalar in zip(("logit_scale", "logit_bias"), by[2:], strict=False):
        np.testing.assert_allclose(gradient[name], by_scalar, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("devices", "options"),
    [
        (2, {}),
        (8, {"shard_params": True}),
        (2, {"microbatch": 4, "remat": True, "shard_params": True}),
    ],
    ids=["2 devices", "8 devices, sharded", "2 devices, sharded, in parts, rematerialised"],
)
def test_gradient_is_the_same_in_every_setting(devices, options):
    metrics, gradient = one_step(devices, **options)
    metrics1, gradient1 = one_step(1)
    for name, value in metrics1.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    for name, value in gradient1.items():
        np.testing.assert_allclose(gradient[name], value, atol=1e-5 * max(1, np.abs(value).max()), err_msg=name)


def test_bfloat16_is_close_and_keeps_float32_parameters():
    metrics, gradient = one_step(1, precision="bfloat16")
    metrics1, gradient1 = one_step(1)
    np.testing.assert_allclose(metrics["loss"], metrics1["loss"], rtol=0.02)
    assert metrics["loss"] != metrics1["loss"]
    flat, flat1 = (np.concatenate([part.ravel() for part in parts.values()]) for parts in (gradient, gradient1))
    assert flat.dtype == np.float32
    assert np.linalg.norm(flat - flat1) < 0.05 * np.linalg.norm(flat1)


def test_a_sharded_step_replicates_no_large_parameter_or_moment_and_compiles_once():
    mesh, state, step = program(8, optimizer="adamw", shard_params=True)
    current = state(start()[0])
    wanted = jax.tree.map(lambda value: value.sharding, current)
    for _ in range(2):
        current, _ = step(current, *(parallel.to_global(part, mesh) for part in batch()))
        for value, sharding in zip(jax.tree.leaves(current), jax.tree.leaves(wanted), strict=True):
            assert value.sharding.is_equivalent_to(sharding, value.ndim)
            assert value.size < 2**14 or value.addressable_shards[0].data.size * 8 == value.size
    assert step._cache_size() == 1
    tables = [value for value in jax.tree.leaves(current) if value.shape == (1024, 16)]
    assert len(tables) == 3  # the parameter and its two moments
    # The table's gradient is summed to its parts: no device adds moments of all rows.
    text = step.lower(current, *batch()).compile().as_text()
    updates = re.findall(r"f32\[(\d+),16\]\S* (?:sqrt|divide)\(", text)
    assert "1024" not in updates


def test_adamw_lowers_the_loss_and_the_logit_scale_stays_at_most_log_100():
    mesh, state, step = program(1, optimizer="adamw")
    current = state({**start()[0], "logit_scale": jnp.float32(math.log(100) + 1)})
    losses = []
    for _ in range(3):
        current, metrics = step(current, *(parallel.to_global(part, mesh) for part in batch()))
        losses.append(float(metrics["loss"]))
        assert float(current.params["logit_scale"]) <= math.log(100) + 1e-6
    assert losses[-1] < losses[0]
    assert int(current.step) == 3
    assert np.isfinite(start()[0]["logit_scale"])  # the caller's parameters survive the donation of the state


@pytest.mark.parametrize("microbatch", [0, 5, 1])
def test_a_microbatch_that_does_not_divide_is_refused(microbatch):
    _, state, step = program(2, microbatch=microbatch)
    message = (
        rf"microbatch is {microbatch}, expected a divisor of the batch of 16 pairs and a multiple of the 2 devices"
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, state(start()[0]), *batch())


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_step_lowers_for_other_platforms(platform):
    _, state, step = program(2, microbatch=4, remat=True, shard_params=True, precision="bfloat16")
    exported = jax.export.export(step, platforms=[platform])(state(start()[0]), *batch())
    assert exported.platforms == (platform,)
