"""The shape of a model from and to open_clip's `open_clip_config.json`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from clipdata_jax.errors import InputError
from clipdata_jax.models.clip_config import OPENAI_MEAN, OPENAI_STD, CLIPConfig, TextConfig, TowerConfig, VisionConfig

Cleaning = Literal["whitespace", "lower", "canonicalize"]
"""How open_clip cleans captions before they are split into tokens."""

_ANY = object()
_OFF = (None, False)


def _any(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, _ANY)


# Every option of open_clip 3.3 by section: the supported values, or _ANY for an option that is read below or that
# changes only training or the form of outputs.
_MODEL = {
    **_any("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"),
    **_any("nonscalar_logit_scale", "cast_dtype", "output_dict"),
    "multimodal_cfg": (None,),
}
_TOWER = {
    **_any("width", "layers", "mlp_ratio", "ls_init_value", "act_kwargs", "norm_kwargs", "final_ln_after_pool"),
    **dict.fromkeys(("output_tokens", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner"), _OFF),
    **dict.fromkeys(("scale_attn", "scale_fc"), _OFF),
    "block_type": (None, "default"),
}
_VISION = {
    **_TOWER,
    **_any("image_size", "patch_size", "head_width", "no_ln_pre", "patch_dropout", "global_average_pool"),
    **_any("attn_pooler_queries", "attn_pooler_heads", "n_queries"),
    **_any("timm_model_name", "timm_pool", "timm_proj"),  # SigLIP's towers are read, see _siglip_tower
    **_any("timm_model_pretrained", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    "pool_type": ("tok", "avg"),
    "pos_embed_type": ("learnable", "sin_cos_2d"),  # the file holds the table either way
    "attentional_pool": _OFF,
    "input_patchnorm": _OFF,
}
_TEXT = {
    **_TOWER,
    **_any("context_length", "vocab_size", "heads", "eos_id", "no_causal_mask", "proj_bias"),
    **_any("pad_id"),  # acts with embed_cls only
    **_any("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"),  # see open_clip_cleaning
    **_any("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    "pool_type": ("argmax", "eos", "first", "last"),
    "embed_cls": _OFF,
    "proj_type": (None, "linear"),
    "hf_model_name": (None,),
}
_ACTIVATION = {"approximate": ("none", "tanh")}
_NORM = {"eps": _ANY}
# timm's towers of SigLIP: the name's word to width, layers, heads and the ratio of the MLP's width.
_TIMM_SIZES: dict[str, tuple[int, int, int, float]] = {
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
_TIMM_NAME = re.compile(r"vit_([a-z0-9]+)_patch(\d+)_siglip_(\d+)")
# Those of SigLIP 2's own sizes have the tanh approximation of GELU, the others, which SigLIP had too, the exact one.
_TIMM_TANH = re.compile(r"vit_(base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt)")


def config_from_open_clip(content: Mapping[str, Any]) -> CLIPConfig:
    """Reads the content of an `open_clip_config.json`; omitted options have open_clip's defaults.

    Args:
      content: the parsed file, with `model_cfg` and, for mean and std, `preprocess_cfg`.

    Returns:
      The model's shape.

    Raises:
      InputError: a setting is missing, or settings are not supported (one error lists all).
    """
    model = _section(content, "model_cfg")
    vision, text = _section(model, "vision_cfg"), _section(model, "text_cfg")
    _check_known(model, vision, text)
    quick = bool(model.get("quick_gelu", False))
    try:
        return CLIPConfig(
            vision=_siglip_tower(vision) if vision.get("timm_model_name") else _vision(vision, quick),
            text=_text(text, quick),
            embed_dim=model["embed_dim"],
            logit_scale_init=model.get("init_logit_scale", CLIPConfig.logit_scale_init),
            logit_bias_init=model.get("init_logit_bias"),
            **_moments(_section(content, "preprocess_cfg")),
        )
    except KeyError as error:
        raise InputError(f"model_cfg has no {error}") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"these settings don't make a CLIP model: {error}") from error


def config_to_open_clip(config: CLIPConfig) -> dict[str, Any]:
    """Converts a model's shape to the content of an `open_clip_config.json`.

    Args:
      config: of a whole model with a class token.

    Returns:
      `model_cfg`, and `preprocess_cfg` of images whose shorter side is scaled and whose centre is cut out.

    Raises:
      ValueError: open_clip names no such vision tower by its sizes, or the model has one tower.
    """
    vision, text = config.vision, config.text
    if vision is None or text is None:
        raise ValueError("the model has one tower, but only whole models are written")
    if vision.pool == "attention":
        raise ValueError("open_clip takes towers that pool by attention from timm, by their names")
    quick = {tower.activation == "quick_gelu" for tower in (vision, text)}
    if len(quick) > 1:
        raise ValueError(f"open_clip has one quick_gelu for both towers: {vision.activation}, {text.activation}")
    end = text.eos_token_id
    by_id = text.pool == "end" and end not in (None, text.vocab_size - 1)
    section: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "init_logit_scale": config.logit_scale_init,
        "vision_cfg": {
            **_tower_options(vision),
            "head_width": vision.width // vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            **({} if vision.pool == "class" else {"pool_type": "avg"}),
            **({} if vision.pre_norm else {"no_ln_pre": True}),
            **({"final_ln_after_pool": True} if vision.norm_after_pool else {}),
        },
        "text_cfg": {
            **_tower_options(text),
            "heads": text.heads,
            "vocab_size": text.vocab_size,
            "context_length": text.context_length,
            **({"pool_type": "eos", "eos_id": end} if by_id else {}),
            **({} if text.pool == "end" else {"pool_type": text.pool}),
            **({} if text.causal else {"no_causal_mask": True}),
            **({"proj_bias": True} if text.projection_bias else {}),
        },
    }
    if quick == {True}:
        section["quick_gelu"] = True
    if config.logit_bias_init is not None:
        section["init_logit_bias"] = config.logit_bias_init
    moments = {"mean": list(config.image_mean), "std": list(config.image_std)}
    return {
        "model_cfg": section,
        "preprocess_cfg": {**moments, "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def open_clip_text_prefix(content: Mapping[str, Any]) -> str:
    """The prefix of the names of the text tower's tensors: "text." or empty."""
    return "text." if _section(content, "model_cfg").get("custom_text") else ""


def open_clip_cleaning(content: Mapping[str, Any]) -> Cleaning | None:
    """How captions are cleaned for a tokenizer that transformers reads; None for CLIP's own tokenizer.

    Raises:
      InputError: settings of the tokenizer are not supported.
    """
    text = _section(_section(content, "model_cfg"), "text_cfg")
    others = bool(text.get("hf_tokenizer_name"))
    options = dict(_section(text, "tokenizer_kwargs"))
    clean: Any = options.pop("clean", "whitespace" if others else "lower")
    refused = [f"tokenizer_kwargs.{name} {value!r}" for name, value in options.items()]
    if clean not in (get_args(Cleaning) if others else ("lower",)):
        refused.append(f"tokenizer_kwargs.clean {clean!r}")
    if others and text.get("tokenizer_mode"):
        refused.append(f"tokenizer_mode {text['tokenizer_mode']!r}")
    if refused:
        raise InputError(f"unsupported settings of the tokenizer: text_cfg.{', text_cfg.'.join(refused)}")
    return clean if others else None


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name) or {}
    if not isinstance(found, Mapping):
        raise InputError(f"{name} is a {type(found).__name__}, expected an object")
    return found


def _check_known(model: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    sections: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]
    sections = [("model_cfg", model, _MODEL), ("vision_cfg", vision, _VISION), ("text_cfg", text, _TEXT)]
    for name, section in (("vision_cfg", vision), ("text_cfg", text)):
        sections.append((f"{name}.act_kwargs", _section(section, "act_kwargs"), _ACTIVATION))
        sections.append((f"{name}.norm_kwargs", _section(section, "norm_kwargs"), _NORM))
    refused = []
    for place, section, known in sections:
        for name, value in section.items():
            allowed = known.get(name, ())
            if allowed is not _ANY and value not in allowed:
                refused.append(f"{place}.{name} {value!r}" + ("" if name in known else " (unknown)"))
    # Lists are the layers of a ResNet.
    refused += [f"vision_cfg.layers {found!r}" for found in [vision.get("layers")] if isinstance(found, list)]
    if (timm := vision.get("timm_model_name")) and not _is_siglip(vision):
        pooling = f"timm_pool {vision.get('timm_pool')!r}, timm_proj {vision.get('timm_proj')!r}"
        refused.append(f"vision_cfg.timm_model_name {timm!r} with {pooling}")
    if refused:
        raise InputError(
            f"unsupported settings: {', '.join(refused)}; take a ViT-based CLIP or SigLIP model of open_clip, or a "
            "folder in transformers' layout"
        )


def _tower(section: Mapping[str, Any], quick: bool, *, width: int, heads: int) -> dict[str, Any]:
    approximate = _section(section, "act_kwargs").get("approximate", "none")
    return {
        "width": width,
        "layers": section.get("layers", 12),
        "heads": heads,
        "mlp_width": int(width * section.get("mlp_ratio", 4.0)),
        "activation": "quick_gelu" if quick else "gelu_tanh" if approximate == "tanh" else "gelu",
        "layer_norm_eps": _section(section, "norm_kwargs").get("eps", 1e-5),
        "layer_scale_init": section.get("ls_init_value"),
    }


def _tower_options(tower: TowerConfig) -> dict[str, Any]:
    """Options of both towers; open_clip's defaults are left out."""
    found: dict[str, Any] = {"width": tower.width, "layers": tower.layers}
    if tower.mlp_width != 4 * tower.width:
        # It takes the whole part of the product, which rounding may leave just below.
        ratio = tower.mlp_width / tower.width
        whole = int(tower.width * ratio) == tower.mlp_width
        found["mlp_ratio"] = ratio if whole else math.nextafter(ratio, math.inf)
    if tower.activation == "gelu_tanh":
        found["act_kwargs"] = {"approximate": "tanh"}
    if tower.layer_norm_eps != TowerConfig.layer_norm_eps:
        found["norm_kwargs"] = {"eps": tower.layer_norm_eps}
    if tower.layer_scale_init is not None:
        found["ls_init_value"] = tower.layer_scale_init
    return found


def _vision(section: Mapping[str, Any], quick: bool) -> VisionConfig:
    width = section.get("width", 768)
    mean = section.get("pool_type", "tok") == "avg" or section.get("global_average_pool", False)
    return VisionConfig(
        **_tower(section, quick, width=width, heads=width // section.get("head_width", 64)),
        image_size=_square(section, "image_size", 224),
        patch_size=_square(section, "patch_size", 16),
        pool="mean" if mean else "class",
        pre_norm=not section.get("no_ln_pre", False),
        norm_after_pool=bool(mean and section.get("final_ln_after_pool", False)),
    )


def _is_siglip(section: Mapping[str, Any]) -> bool:
    name = _TIMM_NAME.fullmatch(str(section["timm_model_name"]))
    pooled = section.get("timm_pool") == "map" and section.get("timm_proj") in ("none", None)
    return name is not None and name[1] in _TIMM_SIZES and pooled


def _siglip_tower(section: Mapping[str, Any]) -> VisionConfig:
    """The tower of a timm model of SigLIP, whose shape its name says."""
    name = str(section["timm_model_name"])
    size, patch, side = _TIMM_NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    width, layers, heads, ratio = _TIMM_SIZES[size]
    if _square(section, "image_size", 224) != int(side):
        raise InputError(f"vision_cfg has image_size {section.get('image_size', 224)!r}, but {name} takes {side}")
    return VisionConfig(
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=int(width * ratio),
        activation="gelu_tanh" if _TIMM_TANH.match(name) else "gelu",
        layer_norm_eps=1e-6,
        image_size=int(side),
        patch_size=int(patch),
        pool="attention",
    )


def _text(section: Mapping[str, Any], quick: bool) -> TextConfig:
    pool = section.get("pool_type", "argmax")
    return TextConfig(
        **_tower(section, quick, width=section.get("width", 512), heads=section.get("heads", 8)),
        vocab_size=section.get("vocab_size", 49408),
        context_length=section.get("context_length", 77),
        eos_token_id=section.get("eos_id", 2) if pool == "eos" else None,
        causal=not section.get("no_causal_mask", False),
        pool="end" if pool in ("argmax", "eos") else pool,
        projection_bias=bool(section.get("proj_bias", False)),
    )


def _square(section: Mapping[str, Any], name: str, default: int) -> Any:
    found = section.get(name, default)
    if isinstance(found, list) and len(found) == 2 and found[0] == found[1]:
        return found[0]
    return found


def _moments(section: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and std; a single number stands for all three colours."""
    found = {"image_mean": section.get("mean", OPENAI_MEAN), "image_std": section.get("std", OPENAI_STD)}
    return {
        name: tuple(map(float, [value] * 3 if isinstance(value, int | float) else value))
        for name, value in found.items()
    }
