"""open_clip's checkpoints: their options against a plain float64 transformer, their other names, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from clipdata_jax.errors import InputError
from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig, load_clip, open_clip_config, save_clip
from clipdata_jax.models.transformer import Dense, Norm

OPEN_CLIP = ("open_clip_config.json", "open_clip_model.safetensors")
SHAPE = {"layers": 1, "heads": 2, "layer_scale_init": 0.5}
OPTIONS = CLIPConfig(
    vision=VisionConfig(
        **SHAPE,
        width=16,
        mlp_width=40,
        image_size=8,
        patch_size=4,
        pool="mean",
        pre_norm=False,
        norm_after_pool=True,
        activation="gelu",
    ),
    text=TextConfig(
        **SHAPE,
        width=12,
        mlp_width=30,
        vocab_size=20,
        context_length=6,
        eos_token_id=None,
        causal=False,
        pool="last",
        activation="gelu_tanh",
    ),
    embed_dim=8,
)
image_of = jax.jit(CLIP.encode_image, static_argnames="normalize")
text_of = jax.jit(CLIP.encode_text, static_argnames="normalize")


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to change."""
    for name in OPEN_CLIP:
        shutil.copyfile(golden / "models" / "open_clip_gelu" / name, tmp_path / name)
    return tmp_path


def parameters(model: CLIP) -> dict[str, np.ndarray]:
    flat, _ = jax.tree.flatten_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def plain(value: object) -> np.ndarray:
    return np.asarray(value[...], np.float64)


def plain_dense(layer: Dense, x: np.ndarray) -> np.ndarray:
    return x @ plain(layer.kernel) + (0 if layer.bias is None else plain(layer.bias))


def plain_norm(norm: Norm, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * plain(norm.scale) + plain(norm.bias)


def plain_layer(layer: nnx.Module, x: np.ndarray, *, tanh: bool) -> np.ndarray:
    """One layer on the (l, d) of one sample: two heads, every position sees every other."""
    normed, mixed = plain_norm(layer.norm1, x), []
    q, k, v = (
        np.split(plain_dense(dense, normed), 2, 1)
        for dense in (layer.attention.q, layer.attention.k, layer.attention.v)
    )
    for head in range(2):
        scores = np.exp(q[head] @ k[head].T / math.sqrt(q[head].shape[1]))
        mixed.append(scores / scores.sum(1, keepdims=True) @ v[head])
    x = x + plain(layer.scale1) * plain_dense(layer.attention.out, np.concatenate(mixed, 1))
    h = plain_dense(layer.mlp.fc1, plain_norm(layer.norm2, x))
    inner = (
        np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)) if tanh else np.vectorize(math.erf)(h / math.sqrt(2))
    )
    return x + plain(layer.scale2) * plain_dense(layer.mlp.fc2, h * (1 + inner) / 2)


def plain_image(model: CLIP, image: np.ndarray) -> np.ndarray:
    tower = model.vision
    patches = [image[i : i + 4, j : j + 4].reshape(-1) for i in (0, 4) for j in (0, 4)]
    x = np.stack([plain(tower.class_embedding), *(np.array(patches) @ plain(tower.patch_kernel).reshape(48, 16))])
    x = x + plain(tower.position)
    x = plain_layer(tower.layers[0], x if tower.pre_norm is None else plain_norm(tower.pre_norm, x), tanh=False)
    if model.config.vision.norm_after_pool:
        return plain_dense(tower.projection, plain_norm(tower.post_norm, x[1:].mean(0)))
    return plain_dense(tower.projection, plain_norm(tower.post_norm, x[1:]).mean(0))


def plain_text(model: CLIP, ids: np.ndarray) -> np.ndarray:
    tower = model.text
    x = plain_layer(tower.layers[0], plain(tower.token)[ids] + plain(tower.position), tanh=True)
    read = 0 if model.config.text.pool == "first" else -1
    return plain_dense(tower.projection, plain_norm(tower.post_norm, x)[read])


@pytest.mark.parametrize("second", [False, True])
def test_the_options_are_the_plain_formula(second: bool, filled: Callable[[CLIPConfig], CLIP]):
    config = OPTIONS
    if second:
        config = dataclasses.replace(
            config,
            vision=dataclasses.replace(config.vision, norm_after_pool=False, pre_norm=True),
            text=dataclasses.replace(config.text, pool="first"),
        )
    model, rng = filled(config), np.random.default_rng(0)
    images = rng.normal(size=(3, 8, 8, 3)).astype(np.float32)
    ids = rng.integers(0, 20, (3, 6), np.int32)
    want = [plain_image(model, image) for image in images]
    np.testing.assert_allclose(image_of(model, images, normalize=False), want, atol=2e-6)
    want = [plain_text(model, row) for row in ids]
    np.testing.assert_allclose(text_of(model, ids, normalize=False), want, atol=2e-6)


def test_open_clips_other_names_give_the_same_model(folder: Path):
    want, (config, weights) = load_clip(folder), (folder / name for name in OPEN_CLIP)
    content, tensors = json.loads(config.read_text()), load_file(weights)
    content["model_cfg"].update(custom_text=True, nonscalar_logit_scale=True)
    config.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"open_clip_config\.json: tensors left over: ln_final\.bias.* missing: text\.ln"
    ):
        load_clip(folder)
    shared = ("visual.", "logit_scale")
    renamed = {name if name.startswith(shared) else f"text.{name}": array for name, array in tensors.items()}
    mask = {"text.attn_mask": np.zeros((12, 12), np.float32), "logit_scale": tensors["logit_scale"].reshape(1)}
    save_file({**renamed, **mask}, weights)
    got = parameters(load_clip(folder))
    assert all((got[path] == array).all() for path, array in parameters(want).items())


@pytest.mark.parametrize("name", ["open_clip_gelu", "open_clip_siglip"])
def test_open_clips_models_are_saved_in_transformers_layout(
    name: str, golden: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(open_clip_config._TIMM_SIZES, "tiny", (16, 2, 2, 4.0))  # the golden SigLIP's, not one of timm's
    model = load_clip(golden / "models" / name)
    save_clip(model, folder / "new")
    again = load_clip(folder / "new")
    assert (again.config.vision, again.config.text) == (model.config.vision, model.config.text)
    got = parameters(again)
    assert all((got[path] == array).all() for path, array in parameters(model).items())


def test_layer_scales_of_open_clip_are_read(folder: Path):
    config, weights = (folder / name for name in OPEN_CLIP)
    content, tensors = json.loads(config.read_text()), load_file(weights)
    content["model_cfg"]["vision_cfg"]["ls_init_value"] = 1e-4
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"missing: visual\.transformer\.resblocks\.0\.ls_1\.gamma, "):
        load_clip(folder)
    scales = {
        f"visual.transformer.resblocks.{layer}.ls_{which}.gamma": np.full(64, 10 * layer + which, np.float32)
        for layer in range(3)
        for which in (1, 2)
    }
    save_file({**tensors, **scales}, weights)
    model = load_clip(folder)
    assert [float(layer.scale2[0]) for layer in model.vision.layers] == [2, 12, 22]
    with pytest.raises(ValueError, match=r"has no field for vision\.layer_scale_init"):
        save_clip(model, folder / "new")
    assert not (folder / "new").exists()


def test_a_fused_tensor_of_another_shape_is_named(folder: Path):
    weights = folder / OPEN_CLIP[1]
    name = "transformer.resblocks.0.attn.in_proj_weight"
    save_file({**load_file(weights), name: np.zeros((96, 48), np.float32)}, weights)
    with pytest.raises(InputError, match=r"in_proj_weight of .* \(96, 48\), but open_clip_config\.json .* \(144, 48\)"):
        load_clip(folder)


def test_open_clips_pickles_are_refused_with_the_command_that_converts(folder: Path):
    (folder / OPEN_CLIP[1]).rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"no open_clip_model\.safetensors, only open_clip_pytorch_model\.bin: .*weights_only=True"
    ):
        load_clip(folder)


def test_the_folder_of_a_training_run_points_to_its_model(folder: Path):
    run = folder.with_name("run")
    run.mkdir()
    folder.rename(run / "model")
    with pytest.raises(InputError, match=r"run has no config\.json and .*; .*give .*run/model instead$"):
        load_clip(run)
