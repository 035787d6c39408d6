"""The towers: parity with PyTorch's outputs, inputs of every kind, gradients, lowering."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.towers import SIGLIP, SMALL, captions, images, jit

from clipdata_jax.models import CLIP, CLIPConfig, load_clip, open_clip_config
from clipdata_jax.models.initial_weights import clip_layer
from clipdata_jax.models.transformer import Builder, TransformerBlock

MODELS = [
    "hf_clip_quickgelu",
    "hf_clip_gelu_legacy_eos",
    "hf_clip_text",
    "hf_clip_vision",
    "hf_metaclip_2",
    "hf_siglip",
    "hf_siglip_vision",
    "open_clip_gelu",
    "open_clip_quickgelu",
    "open_clip_siglip",
]
image_of = jit(CLIP.encode_image, static_argnames="normalize")
text_of = jit(CLIP.encode_text, static_argnames="normalize")


@pytest.fixture(scope="module")
def small() -> CLIP:
    return CLIP(SMALL, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_those_of_pytorch(name: str, golden: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(open_clip_config._TIMM_SIZES, "tiny", (16, 2, 2, 4.0))  # the golden SigLIP's, not one of timm's
    expected = np.load(golden / "models" / name / "expected.npz")
    model = load_clip(golden / "models" / name)
    if "image_embeds" in expected:
        image = jax.jit(CLIP.encode_image)(model, expected["pixel_values"].transpose(0, 2, 3, 1))
        assert image.dtype == jnp.float32
        np.testing.assert_allclose(image, expected["image_embeds"], atol=2e-6)
    if "text_embeds" in expected:
        text = jax.jit(CLIP.encode_text)(model, expected["input_ids"].astype(np.int32))
        assert text.dtype == jnp.float32
        np.testing.assert_allclose(text, expected["text_embeds"], atol=2e-6)
    for field, encode in (("image", model.encode_image), ("text", model.encode_text)):
        if f"{field}_embeds" not in expected:
            assert model.temperature is None
            with pytest.raises(ValueError, match=r"the model has no (vision|text) tower"):
                encode(np.zeros((1, 16, 16, 3) if field == "image" else (1, 4), np.int32))
    if "logit_scale" in expected:
        np.testing.assert_array_equal(model.logit_scale[...], expected["logit_scale"])
    if "logits_per_image" in expected:
        bias = 0 if model.logit_bias is None else float(model.logit_bias[...])
        logits = np.asarray(image @ text.T) / float(model.temperature) + bias
        np.testing.assert_allclose(logits, expected["logits_per_image"], atol=1e-4)


@pytest.mark.parametrize("name", ["hf_clip_gelu_legacy_eos", "hf_siglip"])
def test_bfloat16_is_close(name: str, golden: Path):
    expected = np.load(golden / "models" / name / "expected.npz")
    model = load_clip(golden / "models" / name, dtype=jnp.bfloat16)
    assert model.text.token.dtype == jnp.bfloat16
    assert model.logit_scale.dtype == jnp.float32
    image = image_of(model, expected["pixel_values"].transpose(0, 2, 3, 1))
    text = text_of(model, expected["input_ids"])
    assert image.dtype == text.dtype == jnp.float32
    for got, want in ((image, expected["image_embeds"]), (text, expected["text_embeds"])):
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
        assert np.min(np.sum(np.asarray(got) * want, axis=1)) > 0.999


def test_parameters_may_be_wider_than_the_computation(golden: Path):
    model = load_clip(golden / "models" / MODELS[0], dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    assert model.vision.dtype == jnp.bfloat16


def test_uint8_pixels_are_scaled_and_normalised_with_the_models_moments(small: CLIP):
    by_hand = (images(4) / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    want = image_of(small, by_hand.astype(np.float32))
    np.testing.assert_allclose(image_of(small, images(4)), want, atol=1e-6)


def test_ways_of_calling_under_jit_agree(small: CLIP):
    pixels, ids = images(4), captions(4)
    structure, state = nnx.split(small)

    @jit
    def merged(state, pixels, ids):
        model = nnx.merge(structure, state)
        return model.encode_image(pixels), model.encode_text(ids)

    image, text = image_of(small, pixels), text_of(small, ids)
    for got_image, got_text in (
        merged(state, pixels, ids),
        nnx.jit(lambda m, p, t: (m.encode_image(p), m.encode_text(t)))(small, pixels, ids),
    ):
        np.testing.assert_allclose(got_image, image, atol=1e-6)
        np.testing.assert_allclose(got_text, text, atol=1e-6)


def test_normalize_false_gives_the_projection_itself(small: CLIP):
    raw = np.asarray(text_of(small, captions(4), normalize=False))
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1, atol=1e-2)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(text_of(small, captions(4)), unit, atol=1e-6)


def test_what_follows_the_end_token_changes_nothing(small: CLIP):
    ids = captions(4)
    after = np.cumsum(ids == 39, axis=1) - (ids == 39) > 0
    other = np.where(after, 7, ids)
    np.testing.assert_allclose(text_of(small, other), text_of(small, ids), atol=1e-6)
    np.testing.assert_allclose(text_of(small, ids[:, :4])[:2], text_of(small, ids)[:2], atol=1e-6)


def test_the_two_end_token_rules_read_different_tokens(filled: Callable[[CLIPConfig], CLIP]):
    first, highest, low_end = (
        filled(dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, eos_token_id=end)))
        for end in (39, None, 5)
    )
    ids, cut = np.array([[[38, 3, 5, 39, 5, 1, 1, 1]], [[38, 3, 5, 2, 2, 2, 2, 2]]], np.int32)
    # All three have the same weights; a causal tower's token sees only what stands before it.
    np.testing.assert_allclose(text_of(highest, ids), text_of(first, ids), atol=1e-6)
    np.testing.assert_allclose(text_of(low_end, ids), text_of(low_end, cut), atol=1e-6)
    assert not np.allclose(text_of(low_end, ids), text_of(first, ids), atol=1e-3)


@pytest.mark.optimized
@pytest.mark.parametrize("causal", [True, False])
def test_a_layer_gives_the_same_at_one_position_alone(causal: bool):
    build = Builder(rngs=nnx.Rngs(0), dtype=jnp.float32, param_dtype=jnp.float32)
    config = dataclasses.replace(SMALL.text, layer_scale_init=0.5)
    block = TransformerBlock(config, build, clip_layer(config), causal=causal)
    x_bld = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 24)), jnp.float32)
    at_b = np.array([0, 3, 7])
    alone_b1d = block(x_bld, only_b=jnp.asarray(at_b, jnp.int32))
    np.testing.assert_allclose(alone_b1d[:, 0], block(x_bld)[np.arange(3), at_b], atol=1e-6)


def test_siglip_reads_whole_patches_and_every_token(filled: Callable[[CLIPConfig], CLIP]):
    model, pixels, ids = filled(SIGLIP), images(2), captions(2)
    image, text = image_of(model, pixels), text_of(model, ids)
    edge, inside, padding = pixels.copy(), pixels.copy(), ids.copy()
    edge[:, 14:], edge[:, :, 14:], inside[:, 13], padding[:, 7] = 0, 0, 0, 3
    np.testing.assert_array_equal(image_of(model, edge), image)
    assert not np.allclose(image_of(model, inside), image, atol=1e-4)
    assert not np.allclose(text_of(model, padding), text, atol=1e-4)


def test_an_unknown_token_makes_its_row_nan_and_no_other(small: CLIP):
    ids = captions(4)
    ids[1, 1] = 40
    assert np.isnan(np.asarray(text_of(small, ids))).any(axis=1).tolist() == [False, True, False, False]


def test_initial_weights_have_clips_spread():
    config = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, vocab_size=4000))
    model = CLIP(config, rngs=nnx.Rngs(0))
    residual = 24**-0.5 * 2**-0.5
    for parameter, std in (
        (model.text.token, 0.02),
        (model.text.position, 0.01),
        (model.text.layers[0].attention.q.kernel, 24**-0.5),
        (model.text.layers[0].attention.out.kernel, residual),
        (model.text.layers[0].mlp.fc1.kernel, 48**-0.5),
        (model.text.layers[0].mlp.fc2.kernel, residual),
        (model.vision.patch_kernel, (3 * 192) ** -0.5),
        (model.vision.position, 32**-0.5),
        (model.vision.projection.kernel, 32**-0.5),
    ):
        np.testing.assert_allclose(np.std(parameter[...]), std, rtol=0.15)
    np.testing.assert_allclose(model.temperature, 0.07, rtol=1e-6)


def test_it_learns_to_match_eight_pairs(small: CLIP):
    structure, state = nnx.split(small)
    pixels, ids, optimizer = images(8), captions(8), optax.adam(1e-3)

    def loss(state):
        model = nnx.merge(structure, state)
        logits = model.encode_image(pixels) @ model.encode_text(ids).T / model.temperature
        either = jax.nn.log_softmax(logits, axis=0) + jax.nn.log_softmax(logits, axis=1)
        return -jnp.trace(either) / 16

    @jit
    def learn(state):
        def step(carry, _):
            state, moments = carry
            value, gradient = jax.value_and_grad(loss)(state)
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(state, updates), moments), (value, gradient)

        _, (losses, gradients) = jax.lax.scan(step, (state, optimizer.init(state)), length=40)
        return losses, gradients

    losses, gradients = learn(state)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradients))
    assert losses[0] > 1.5
    assert losses[-1] < 0.2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("config", [SMALL, SIGLIP], ids=["clip", "siglip"])
def test_towers_lower_for_other_hardware(config: CLIPConfig, platform: str, dtype: type):
    structure, state = nnx.split(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0), dtype=dtype)))

    def encode(state, pixels, ids):
        model = nnx.merge(structure, state)
        return model.encode_image(pixels), model.encode_text(ids)

    arguments = (
        nnx.to_pure_dict(state),
        jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.uint8),
        jax.ShapeDtypeStruct((4, 8), jnp.int32),
    )
    exported = jax.export.export(jax.jit(encode), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    full = "precision = [HIGHEST, HIGHEST]"
    assert (exported.mlir_module().count(full) > 2) == (dtype == jnp.float32)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 3, 16, 16), np.uint8), r"\(2, 3, 16, 16\), expected \(n, 16, 16, 3\): NHWC"),
        (np.zeros((16, 16, 3), np.uint8), r"\(16, 16, 3\), expected"),
        (np.zeros((2, 32, 32, 3), np.float32), r"\(2, 32, 32, 3\), expected \(n, 16, 16, 3\)"),
        (np.zeros((2, 16, 16, 3), np.int32), "int32, expected uint8 or"),
    ],
)
def test_wrong_pixels_are_named(small: CLIP, pixels: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        small.encode_image(pixels)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((2, 9), np.int32), r"\(2, 9\), expected \(n, 1 to 8\)"),
        (np.zeros((2, 0), np.int32), r"\(2, 0\), expected"),
        (np.zeros(8, np.int32), r"\(8,\), expected"),
        (np.zeros((2, 8), np.float32), "float32, expected int32"),
    ],
)
def test_wrong_ids_are_named(small: CLIP, ids: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        small.encode_text(ids)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("vision", {"heads": 3}, "width 32 is not a multiple of heads 3"),
        ("vision", {"patch_size": 5}, "image_size 16 is not a multiple of patch_size 5"),
        ("vision", {"layers": 0}, "layers is 0, expected a whole number"),
        ("text", {"activation": "relu"}, "activation is 'relu', expected one of"),
        ("text", {"eos_token_id": 40}, "eos_token_id 40 is outside a vocabulary of 40"),
        ("text", {"pool": "mean"}, "pool is 'mean', expected one of"),
    ],
)
def test_impossible_shapes_are_refused(tower: str, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(getattr(SMALL, tower), **change)
