"""Named architectures, initial weights, and checkpoints written in open_clip's layout."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from support.towers import SMALL, captions, images, jit

from clipdata_jax import errors, models
from clipdata_jax.config.model_sizes import ARCHITECTURES, named_sizes
from clipdata_jax.models.open_clip_config import config_from_open_clip, config_to_open_clip

# open_clip's name -> width, layers, heads and MLP width of the vision tower, then of the text tower; embedding, patch.
SIZES = {
    "ViT-S-16": ((384, 12, 6, 1536), (384, 12, 6, 1536), 384, 16),
    "ViT-B-32": ((768, 12, 12, 3072), (512, 12, 8, 2048), 512, 32),
    "ViT-B-16": ((768, 12, 12, 3072), (512, 12, 8, 2048), 512, 16),
    "ViT-L-14": ((1024, 24, 16, 4096), (768, 12, 12, 3072), 768, 14),
    "ViT-H-14": ((1280, 32, 16, 5120), (1024, 24, 16, 4096), 1024, 14),
    "ViT-g-14": ((1408, 40, 16, 6144), (1024, 24, 16, 4096), 1024, 14),
    "ViT-bigG-14": ((1664, 48, 16, 8192), (1280, 32, 20, 5120), 1280, 14),
}


@pytest.mark.parametrize("name", SIZES)
def test_named_architectures_have_their_sizes(name):
    config = models.sized_config(named_sizes(name))
    towers = [(one.width, one.layers, one.heads, one.mlp_width) for one in (config.vision, config.text)]
    assert (*towers, config.embed_dim, config.vision.patch_size) == SIZES[name]
    assert (config.image_size, config.text.context_length, config.text.vocab_size) == (224, 77, 49408)
    assert {config.vision.activation, config.text.activation} == {"gelu"}
    quick = models.sized_config(named_sizes(f"{name}-quickgelu"))
    assert {quick.vision.activation, quick.text.activation} == {"quick_gelu"}
    assert dataclasses.replace(quick.vision, activation="gelu") == config.vision


def test_an_unknown_architecture_is_named_with_one_that_is_near():
    with pytest.raises(errors.InputError, match=r"--arch is 'ViT-B32', expected one of .* did you mean ViT-B-32"):
        named_sizes("ViT-B32")


@pytest.mark.parametrize(("name", "millions"), [("ViT-B-32", 151.28), ("ViT-L-14", 427.62), ("ViT-bigG-14", 2539.57)])
def test_the_number_of_parameters_is_estimated_closely(name, millions):
    assert named_sizes(name).parameters(49408) / 1e6 == pytest.approx(millions, rel=2e-3)


VARIANTS = {
    "quick GELU": SMALL,
    "exact GELU": dataclasses.replace(
        SMALL,
        vision=dataclasses.replace(SMALL.vision, activation="gelu"),
        text=dataclasses.replace(SMALL.text, activation="gelu"),
    ),
    "sigmoid loss": dataclasses.replace(SMALL, logit_bias_init=-10.0, logit_scale_init=2.3),
    "everything else": dataclasses.replace(
        SMALL,
        vision=dataclasses.replace(
            SMALL.vision, pool="mean", pre_norm=False, norm_after_pool=True, layer_norm_eps=1e-6, mlp_width=50,
            activation="gelu_tanh", layer_scale_init=0.1,
        ),
        text=dataclasses.replace(
            SMALL.text, causal=False, pool="last", eos_token_id=None, projection_bias=True, activation="gelu"
        ),
    ),
    "end token in the middle": dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, eos_token_id=7)),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_open_clips_config_is_read_back(name):
    config = VARIANTS[name]
    got = config_from_open_clip(json.loads(json.dumps(config_to_open_clip(config))))
    if config.text.eos_token_id == config.text.vocab_size - 1:  # which is then the highest id
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, eos_token_id=None))
    assert got == config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_mlp_widths_survive_open_clips_ratio(name):
    config = models.sized_config(named_sizes(name))
    got = config_from_open_clip(config_to_open_clip(config))
    assert (got.vision, got.text.mlp_width) == (config.vision, config.text.mlp_width)


def test_a_model_in_open_clips_layout_is_read_back_in_the_same_bits(tmp_path):
    config = dataclasses.replace(SMALL, logit_bias_init=-10.0)
    model = models.CLIP(config, rngs=nnx.Rngs(0), initial="open_clip")
    assert models.layouts_of(config) == ["open_clip"]
    models.save_clip(model, tmp_path, layout="open_clip")
    again = models.load_clip(tmp_path)
    ours, theirs = (nnx.to_flat_state(nnx.state(one)) for one in (model, again))
    for (path, value), (_, read) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(value[...], read[...], err_msg=str(path))
    assert models.load_image_transform(tmp_path).size == config.image_size
    with pytest.raises(ValueError, match="no field for logit_bias_init"):
        models.save_clip(model, tmp_path)


def test_layouts_that_can_hold_a_model():
    assert models.layouts_of(SMALL) == ["transformers", "open_clip"]
    assert models.layouts_of(models.SIGLIP_BASE_PATCH16_224) == ["transformers"]
    with pytest.raises(ValueError, match="from timm"):
        config_to_open_clip(models.SIGLIP_BASE_PATCH16_224)
    mixed = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, activation="gelu"))
    with pytest.raises(ValueError, match="one quick_gelu for both towers: quick_gelu, gelu"):
        config_to_open_clip(mixed)


def clip_std(name, width, layers, std):
    """The deviation that CLIP's paper and code state for a tensor of the vision layers; else `std`."""
    scales = {"in_proj_weight": 1, "out_proj.weight": (2 * layers) ** -0.5, "c_fc.weight": 2**-0.5}
    scales["c_proj.weight"] = scales["out_proj.weight"]
    found = [scale for end, scale in scales.items() if name.startswith("visual.") and name.endswith(end)]
    return found[0] * width**-0.5 if found else std


@pytest.mark.parametrize("initial", ["open_clip", "clip"])
def test_initial_weights_have_open_clips_spreads(tmp_path, golden, initial):
    """Means, deviations and bounds of every tensor; CLIP's differ where open_clip leaves PyTorch's defaults."""
    config = models.load_clip(golden / "training").config
    structure = nnx.graphdef(nnx.eval_shape(lambda: models.CLIP(config, rngs=nnx.Rngs(0))))
    make = jit(lambda key: nnx.state(models.CLIP(config, rngs=nnx.Rngs(params=key), initial=initial), nnx.Param))
    drawn = []
    for seed in range(6):
        models.save_clip(nnx.merge(structure, make(jax.random.key(seed))), tmp_path, layout="open_clip")
        drawn.append(load_file(tmp_path / "open_clip_model.safetensors"))
    want = json.loads((golden / "training" / "initial.json").read_text())
    assert set(drawn[0]) == set(want)
    for name, (mean, std, most) in want.items():
        values = np.stack([one[name] for one in drawn]).astype(np.float64)
        is_uniform = 0 < most < 1.8 * std
        if initial == "clip":
            std = clip_std(name, config.vision.width, config.vision.layers, std)
            if is_uniform and name.endswith("bias"):
                mean = std = 0
        bar = 5 / np.sqrt(values.size)
        assert values.mean() == pytest.approx(mean, abs=bar * std + 1e-7), name
        assert values.std() == pytest.approx(std, rel=bar, abs=1e-7), name
        if is_uniform and initial == "open_clip":
            assert np.abs(values).max() <= most * 1.01, name


def test_open_clip_computes_the_same_from_what_is_written(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason='needs open_clip: pip install "clipdata_jax[bench]"')
    torch = pytest.importorskip("torch")
    model = models.CLIP(SMALL, rngs=nnx.Rngs(0), initial="open_clip")
    models.save_clip(model, tmp_path, layout="open_clip")
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    pixels, ids = images(4), captions(4)
    normalised = (pixels / 255 - np.array(SMALL.image_mean)) / np.array(SMALL.image_std)
    with torch.no_grad():
        image = theirs.eval().encode_image(torch.from_numpy(normalised).permute(0, 3, 1, 2).float(), normalize=True)
        text = theirs.encode_text(torch.from_numpy(ids).long(), normalize=True)
    np.testing.assert_allclose(model.encode_image(pixels), image.numpy(), atol=2e-5)
    np.testing.assert_allclose(model.encode_text(ids), text.numpy(), atol=2e-5)
