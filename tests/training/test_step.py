"""The contrastive step against plain float64 formulas, on 1, 2 and 8 devices, and lowered for other platforms."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig
from clipdata_jax.runtime import parallel
from clipdata_jax.training import adamw, contrastive_loss, init_state, make_step, split_model

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = CLIPConfig(
    vision=VisionConfig(width=16, layers=1, heads=2, mlp_width=32, image_size=16, patch_size=8),
    text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, vocab_size=50, context_length=6, eos_token_id=49),
    embed_dim=12,
)


def unit_rows(seed, b, d):
    rows = np.random.default_rng(seed).standard_normal((b, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def loss_float64(f, g, scale):
    """One pair at a time, in both directions."""
    total = 0.0
    for i in range(len(f)):
        for query, candidates in ((f[i], g), (g[i], f)):
            logits = np.exp(scale) * candidates @ query
            total -= logits[i] - (np.log(np.sum(np.exp(logits - logits.max()))) + logits.max())
    return total / (2 * len(f))


@pytest.mark.parametrize("scale", [0.0, np.log(1 / 0.07), np.log(100)])
def test_loss_is_the_formula(scale):
    f, g = unit_rows(0, 24, 8), unit_rows(1, 24, 8)
    got = contrastive_loss(f.astype(np.float32), g.astype(np.float32), jnp.float32(scale))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, loss_float64(f, g, scale), rtol=2e-6)


def test_loss_of_pairs_that_are_all_the_same_is_log_b():
    same = np.tile(unit_rows(0, 1, 8), (16, 1)).astype(np.float16)
    np.testing.assert_allclose(contrastive_loss(same, same, jnp.float32(np.log(100))), np.log(16), rtol=1e-6)


def test_gradient_is_that_of_the_formula_by_finite_differences():
    f, g, scale, eps = unit_rows(0, 6, 4), unit_rows(1, 6, 4), np.log(20), 1e-5
    arguments = (f.astype(np.float32), g.astype(np.float32), jnp.float32(scale))
    gradient = jax.grad(contrastive_loss, argnums=(0, 1, 2))(*arguments)
    for place in [(0, 0), (2, 3), (5, 1)]:
        for which in (0, 1):
            bump = np.zeros_like(f)
            bump[place] = eps
            moved = [(f + s * bump, g) if which == 0 else (f, g + s * bump) for s in (1, -1)]
            want = (loss_float64(*moved[0], scale) - loss_float64(*moved[1], scale)) / (2 * eps)
            np.testing.assert_allclose(gradient[which][place], want, atol=1e-5)
    want = (loss_float64(f, g, scale + eps) - loss_float64(f, g, scale - eps)) / (2 * eps)
    np.testing.assert_allclose(gradient[2], want, atol=1e-5)


@pytest.mark.usefixtures("types_unchecked")
def test_loss_names_shapes_that_differ():
    with pytest.raises(ValueError, match=r"images \(4, 2\), texts \(3, 2\)"):
        contrastive_loss(jnp.ones((4, 2)), jnp.ones((3, 2)), jnp.float32(0))


def test_no_collective_is_in_a_branch_where_it_could_overtake_others():
    rows = jax.NamedSharding(parallel.data_mesh(jax.devices()[:2]), jax.P("data"))
    gradient = jax.jit(jax.grad(contrastive_loss, argnums=(0, 1)), in_shardings=(rows, rows, None))
    text = gradient.lower(jnp.ones((4, 2)), jnp.ones((4, 2)), jnp.float32(0)).compile().as_text()
    assert "all-gather(" in text
    assert "conditional(" not in text


def batch(b=16):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (b, 16, 16, 3), np.uint8), rng.integers(0, 50, (b, 6)).astype(np.int32)


@functools.cache
def start():
    return split_model(CLIP(CONFIG, rngs=nnx.Rngs(0)))


@functools.cache
def program(devices):
    """Compiling is what takes the time here."""
    mesh = parallel.data_mesh(jax.devices()[:devices])
    optimizer = adamw(learning_rate=1e-2, warmup=1, steps=10, weight_decay=0.1)
    return mesh, optimizer, make_step(start()[1], optimizer, mesh)


def two_steps(devices, **changed):
    mesh, optimizer, step = program(devices)
    state, losses = init_state({**start()[0], **changed}, optimizer, mesh), []
    for _ in range(2):
        state, loss = step(state, *(parallel.to_global(part, mesh) for part in batch()))
        losses.append(float(loss))
    return losses, state


def test_a_step_is_the_same_on_1_2_and_8_devices_and_follows_the_formula():
    found = {devices: two_steps(devices) for devices in (1, 2, 8)}
    losses, state = found[1]
    params, merge = start()
    for other in (2, 8):
        np.testing.assert_allclose(found[other][0], losses, rtol=2e-6)
        for name, value in found[other][1].params.items():
            np.testing.assert_allclose(value, state.params[name], atol=2e-4, err_msg=name)
    model = merge(params)  # the caller's parameters survive the donation of the state
    pixels, ids = batch()
    f, g = (np.asarray(emb, np.float64) for emb in (model.encode_image(pixels), model.encode_text(ids)))
    np.testing.assert_allclose(losses[0], loss_float64(f, g, float(params["logit_scale"])), rtol=1e-5)
    assert losses[1] < losses[0]
    assert int(state.step) == 2


def test_logit_scale_stays_at_most_log_100():
    state = two_steps(1, logit_scale=jnp.float32(np.log(100) + 1))[1]
    assert float(state.params["logit_scale"]) <= np.log(100) + 1e-6


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_step_lowers_for_other_platforms(platform):
    mesh, optimizer, step = program(2)
    exported = jax.export.export(step, platforms=[platform])(init_state(start()[0], optimizer, mesh), *batch())
    assert exported.platforms == (platform,)
