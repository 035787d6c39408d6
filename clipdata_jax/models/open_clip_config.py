"""The shape of a model from open_clip's `open_clip_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipdata_jax.errors import InputError
from clipdata_jax.models.clip_config import OPENAI_MEAN, OPENAI_STD, CLIPConfig, TextConfig, VisionConfig

_ANY = object()
# Every option of open_clip 3.3 by section: the supported values, or _ANY for an option that is read below or that
# changes only training or the form of outputs.
_MODEL = {
    "embed_dim": _ANY,
    "vision_cfg": _ANY,
    "text_cfg": _ANY,
    "quick_gelu": _ANY,
    "custom_text": _ANY,
    "init_logit_scale": _ANY,
    "init_logit_bias": _ANY,
    "nonscalar_logit_scale": _ANY,
    "cast_dtype": _ANY,
    "output_dict": _ANY,
    "multimodal_cfg": (None,),
}
_BLOCK = {
    "block_type": (None, "default"),
    "qk_norm": (None, False),
    "scaled_cosine_attn": (None, False),
    "scale_heads": (None, False),
    "scale_attn_inner": (None, False),
    "scale_attn": (None, False),
    "scale_fc": (None, False),
}
_TOWER = {
    "width": _ANY,
    "layers": _ANY,
    "mlp_ratio": _ANY,
    "ls_init_value": _ANY,
    "act_kwargs": _ANY,
    "norm_kwargs": _ANY,
    "final_ln_after_pool": _ANY,
    "output_tokens": (None, False),
    **_BLOCK,
}
_VISION = {
    **_TOWER,
    "image_size": _ANY,
    "patch_size": _ANY,
    "head_width": _ANY,
    "no_ln_pre": _ANY,
    "pool_type": ("tok", "avg"),
    "pos_embed_type": ("learnable", "sin_cos_2d"),  # the file holds the table either way
    "patch_dropout": _ANY,
    "attentional_pool": (None, False),
    "attn_pooler_queries": _ANY,
    "attn_pooler_heads": _ANY,
    "n_queries": _ANY,
    "input_patchnorm": (None, False),
    "global_average_pool": _ANY,
    "timm_model_name": (None,),
    "timm_model_pretrained": _ANY,
    "timm_pool": _ANY,
    "timm_proj": _ANY,
    "timm_proj_bias": _ANY,
    "timm_drop": _ANY,
    "timm_drop_path": _ANY,
}
_TEXT = {
    **_TOWER,
    "context_length": _ANY,
    "vocab_size": _ANY,
    "heads": _ANY,
    "pool_type": ("argmax", "eos", "first", "last"),
    "eos_id": _ANY,
    "no_causal_mask": _ANY,
    "pad_id": _ANY,  # acts with embed_cls only
    "embed_cls": (None, False),
    "proj_bias": (None, False),
    "proj_type": (None, "linear"),
    "hf_model_name": (None,),
    "hf_model_pretrained": _ANY,
    "hf_proj_type": _ANY,
    "hf_pooler_type": _ANY,
    "hf_tokenizer_name": _ANY,  # these three: see open_clip_tokenizer_options
    "tokenizer_kwargs": _ANY,
    "tokenizer_mode": _ANY,
}
_ACTIVATION = {"approximate": ("none", "tanh")}
_NORM = {"eps": _ANY}


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
            vision=_vision(vision, quick),
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


def open_clip_text_prefix(content: Mapping[str, Any]) -> str:
    """The prefix of the names of the text tower's tensors: "text." or empty."""
    return "text." if _section(content, "model_cfg").get("custom_text") else ""


def open_clip_tokenizer_options(content: Mapping[str, Any]) -> list[str]:
    """The settings that ask for another tokenizer than CLIP's, each as "name value"; none for most models."""
    text = _section(_section(content, "model_cfg"), "text_cfg")
    names = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
    return [f"text_cfg.{name} {text[name]!r}" for name in names if text.get(name)]


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
    if refused:
        raise InputError(
            f"unsupported settings: {', '.join(refused)}; take a ViT-based CLIP model of open_clip or, for SigLIP, a "
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


def _text(section: Mapping[str, Any], quick: bool) -> TextConfig:
    pool = section.get("pool_type", "argmax")
    if pool == "eos" and section.get("eos_id") is None:
        raise InputError("text_cfg has pool_type 'eos' but no eos_id, the id of the token that ends a caption")
    return TextConfig(
        **_tower(section, quick, width=section.get("width", 512), heads=section.get("heads", 8)),
        vocab_size=section.get("vocab_size", 49408),
        context_length=section.get("context_length", 77),
        eos_token_id=section["eos_id"] if pool == "eos" else None,
        causal=not section.get("no_causal_mask", False),
        pool="end" if pool in ("argmax", "eos") else pool,
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
