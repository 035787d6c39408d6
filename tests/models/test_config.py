"""Shapes of models: as transformers' and open_clip's config files say them, and as published."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from flax import nnx

from clipdata_jax import models
from clipdata_jax.errors import InputError
from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig
from clipdata_jax.models.open_clip_config import config_from_open_clip
from clipdata_jax.models.transformers_config import config_from_transformers, config_to_transformers

SMALL = CLIPConfig(
    vision=VisionConfig(width=32, layers=2, heads=2, mlp_width=64, image_size=16, patch_size=8),
    text=TextConfig(width=24, layers=2, heads=2, mlp_width=48, vocab_size=40, context_length=8, eos_token_id=39),
    embed_dim=16,
)

# Millions of parameters of the image tower, the text tower and both: CLIP's and so400m/14-384's are those of
# open_clip's docs/model_profile.csv (ViT-B-32, ..., ViT-SO400M-14-SigLIP-384), base/16-224's too (ViT-B-16-SigLIP).
PUBLISHED = {
    "VIT_B_32": (87.85, 63.43, 151.28),
    "VIT_B_16": (86.19, 63.43, 149.62),
    "VIT_L_14": (303.97, 123.65, 427.62),
    "VIT_L_14_336": (304.29, 123.65, 427.94),
    "VIT_H_14": (632.08, 354.03, 986.11),
    "VIT_SMALL_G_14": (1012.65, 354.03, 1366.68),
    "VIT_BIG_G_14": (1844.91, 694.66, 2539.57),
    "SIGLIP_BASE_PATCH16_224": (92.88, 110.27, 203.16),
    "SIGLIP_SO400M_PATCH14_384": (428.23, 449.73, 877.96),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_size(name: str):
    config: CLIPConfig = getattr(models, name)
    towers = {tower: getattr(config, tower) for tower in ("vision", "text")}
    # Tracing takes long for deep towers, whose layers are all alike: one is traced, the others counted.
    shallow = {tower: dataclasses.replace(towers[tower], layers=1) for tower in towers}
    model = nnx.eval_shape(lambda: CLIP(dataclasses.replace(config, **shallow), rngs=nnx.Rngs(0)))
    counts = {
        tower: count(getattr(model, tower)) + (towers[tower].layers - 1) * count(getattr(model, tower).layers[0])
        for tower in towers
    }
    total = sum(counts.values()) + (1 if config.logit_bias_init is None else 2)
    assert tuple(round(n / 1e6, 2) for n in (counts["vision"], counts["text"], total)) == PUBLISHED[name]


def count(module: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_survive_transformers_form(name: str):
    config: CLIPConfig = getattr(models, name)
    assert config_from_transformers(config_to_transformers(config)) == config


def test_siglips_defaults_are_base_patch16_224():
    assert config_from_transformers({"model_type": "siglip"}) == models.SIGLIP_BASE_PATCH16_224


def test_config_survives_transformers_form():
    assert config_from_transformers(config_to_transformers(SMALL)) == SMALL
    older = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, eos_token_id=None))
    assert config_to_transformers(older)["text_config"]["eos_token_id"] == 2
    assert config_from_transformers(config_to_transformers(older)) == older
    metaclip = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, eos_token_id=2))
    assert config_to_transformers(metaclip)["model_type"] == "metaclip_2"  # CLIP's form reads 2 as the older rule
    assert config_from_transformers(config_to_transformers(metaclip)) == metaclip


def test_what_config_json_leaves_out_is_vit_b_32():
    config = config_from_transformers({"model_type": "clip", "text_config_dict": {"num_hidden_layers": 3}})
    assert (config.vision.width, config.vision.layers, config.vision.heads, config.embed_dim) == (768, 12, 12, 512)
    assert (config.text.width, config.text.layers, config.text.mlp_width) == (512, 3, 2048)
    assert config.text.eos_token_id == 49407


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model_type": "blip"},
            "model_type is 'blip', expected one of 'clip', 'metaclip_2', 'siglip' or of their tow",
        ),
        ({"model_type": "siglip2"}, "NaFlex form, .* take one of fixed resolution, .*'siglip', such as google/siglip2"),
        ({"model_type": "siglip_vision_model", "vision_use_head": False}, "vision_use_head is false"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "vision_use_head is false"),
        ({"model_type": "siglip", "text_config": {"projection_size": 9}}, "embed_dim is 9 but .* gives 768"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "relu"}}, "hidden_act is 'relu'"),
        ({"model_type": "clip", "vision_config": {"num_channels": 4}}, "num_channels is 4"),
        ({"model_type": "clip", "text_config": {"hidden_size": "wide"}}, "width is 'wide'"),
        ({"model_type": "clip", "text_config": [1]}, "text_config is a list, expected an object"),
    ],
)
def test_other_configs_are_refused(content: dict, message: str):
    with pytest.raises(InputError, match=message):
        config_from_transformers(content)


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("text", {"causal": False, "pool": "first"}, "has no field for text.causal False, text.pool 'first'"),
        ("vision", {"layer_scale_init": 0.1}, "has no field for vision.layer_scale_init 0.1"),
        ("vision", {"pool": "mean", "pre_norm": False}, "has no field for vision.pool 'mean', vision.pre_norm False"),
    ],
)
def test_what_transformers_form_cant_say_is_named(tower: str, change: dict, message: str):
    config = dataclasses.replace(SMALL, **{tower: dataclasses.replace(getattr(SMALL, tower), **change)})
    with pytest.raises(ValueError, match=message):
        config_to_transformers(config)


def open_clip(vision: dict | None = None, text: dict | None = None, **model: object) -> dict:
    return {"model_cfg": {"embed_dim": 512, "vision_cfg": vision or {}, "text_cfg": text or {}, **model}}


SIGLIP = {"timm_model_name": "vit_base_patch16_siglip_256", "timm_pool": "map", "timm_proj": "none"}
# timm's towers of SigLIP: the parameters, heads and GELU that timm 1.0.31 gives them.
TIMM = {
    ("base_patch16", 224): (92884224, 12, "gelu"),
    ("base_patch32", 256): (94552320, 12, "gelu_tanh"),
    ("large_patch16", 384): (316283904, 16, "gelu"),
    ("large_patch16", 512): (316742656, 16, "gelu_tanh"),
    ("so400m_patch14", 384): (428225600, 16, "gelu"),
    ("so400m_patch16", 256): (427888064, 16, "gelu_tanh"),
    ("giantopt_patch16", 256): (1163168256, 16, "gelu_tanh"),
}


@pytest.mark.parametrize(("name", "size"), TIMM)
def test_siglips_towers_have_the_shape_that_timm_gives_them(name: str, size: int):
    section = {**SIGLIP, "timm_model_name": f"vit_{name}_siglip_{size}", "image_size": size}
    width = {"base": 768, "large": 1024, "so400m": 1152, "giantopt": 1536}[name.split("_")[0]]
    config = config_from_open_clip(open_clip(section, embed_dim=width))
    tower = config.vision
    lone = dataclasses.replace(config, vision=dataclasses.replace(tower, layers=1), text=None)
    model = nnx.eval_shape(lambda: CLIP(lone, rngs=nnx.Rngs(0)))
    total = count(model.vision) + (tower.layers - 1) * count(model.vision.layers[0])
    assert (total, tower.heads, tower.activation) == TIMM[name, size]
    assert tower.layer_norm_eps == 1e-6


def test_open_clips_published_configs_are_read():
    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    want = models.VIT_B_32
    want = dataclasses.replace(want, text=dataclasses.replace(want.text, eos_token_id=None))
    assert config_from_open_clip(open_clip(vision, text, quick_gelu=True)) == want
    big = {"layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14}
    text = {"width": 1280, "heads": 20, "layers": 32}
    want = models.VIT_BIG_G_14
    want = dataclasses.replace(want, text=dataclasses.replace(want.text, eos_token_id=None))
    assert config_from_open_clip(open_clip(big, text, embed_dim=1280)) == want


def test_open_clips_options_are_read():
    vision = {
        "no_ln_pre": True,
        "pool_type": "avg",
        "final_ln_after_pool": True,
        "ls_init_value": 0.1,
        "pos_embed_type": "sin_cos_2d",
        "patch_dropout": 0.5,
        "norm_kwargs": {"eps": 1e-6},
        "timm_model_name": None,
    }
    text = {"no_causal_mask": True, "pool_type": "last", "act_kwargs": {"approximate": "tanh"}, "embed_cls": False}
    config = config_from_open_clip(
        {**open_clip(vision, text, init_logit_bias=-10, init_logit_scale=2.0), "preprocess_cfg": {"mean": 0.5}}
    )
    got = config.vision
    assert (got.pool, got.pre_norm, got.norm_after_pool, got.layer_scale_init) == ("mean", False, True, 0.1)
    assert (got.layer_norm_eps, got.activation, config.image_mean) == (1e-6, "gelu", (0.5, 0.5, 0.5))
    assert (config.text.causal, config.text.pool, config.text.activation) == (False, "last", "gelu_tanh")
    assert (config.logit_bias_init, config.logit_scale_init) == (-10, 2.0)
    worldwide = config_from_open_clip(open_clip(None, {"pool_type": "eos", "eos_id": 2}))
    assert (worldwide.text.pool, worldwide.text.eos_token_id) == ("end", 2)


def test_what_open_clips_towers_have_and_these_dont_is_one_error():
    content = open_clip(
        {"timm_model_name": "vit_base_patch16_siglip_gap_224", "layers": [3, 4, 6, 3], "attentional_pool": True},
        {"hf_model_name": "roberta-base", "embed_cls": True, "pool_type": "none", "rope": 1},
        multimodal_cfg={"width": 768},
    )
    content["model_cfg"]["vision_cfg"]["act_kwargs"] = {"inplace": True}
    with pytest.raises(InputError) as caught:
        config_from_open_clip(content)
    for named in (
        "model_cfg.multimodal_cfg {'width': 768}",
        "vision_cfg.timm_model_name 'vit_base_patch16_siglip_gap_224' with timm_pool None, timm_proj None",
        "vision_cfg.attentional_pool True",
        "vision_cfg.layers [3, 4, 6, 3]",
        "vision_cfg.act_kwargs.inplace True (unknown)",
        "text_cfg.hf_model_name 'roberta-base'",
        "text_cfg.embed_cls True",
        "text_cfg.pool_type 'none'",
        "text_cfg.rope 1 (unknown)",
    ):
        assert named in str(caught.value)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "model_cfg has no 'embed_dim'"),
        ({"model_cfg": [1]}, "model_cfg is a list, expected an object"),
        (open_clip({**SIGLIP, "image_size": 224}), "image_size 224, but vit_base_patch16_siglip_256 takes 256"),
        (open_clip({**SIGLIP, "timm_pool": "avg"}), "timm_model_name .* with timm_pool 'avg', timm_proj 'none'"),
        (open_clip({"image_size": [224, 196]}), r"image_size is \[224, 196\]"),
        (open_clip({"head_width": 0}), "these settings don't make a CLIP model"),
    ],
)
def test_broken_open_clip_configs_are_refused(content: dict, message: str):
    with pytest.raises(InputError, match=message):
        config_from_open_clip(content)


def test_the_file_is_named(tmp_path: Path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip({"timm_pool": "map", "qk_norm": True})))
    with pytest.raises(InputError, match=r"open_clip_config\.json: unsupported settings: vision_cfg\.qk_norm True;"):
        models.load_clip(tmp_path)
