"""The shape of a CLIP or SigLIP model from and to transformers' `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clipdata_jax.errors import InputError
from clipdata_jax.models.clip_config import (
    LEGACY_EOS,
    SIGLIP_LOGIT_BIAS,
    SIGLIP_LOGIT_SCALE,
    SIGLIP_MEAN,
    SIGLIP_STD,
    Activation,
    CLIPConfig,
    TextConfig,
    VisionConfig,
)

_ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_NAMES = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
_CLIP: dict[str, Any] = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_CLIP_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, **_CLIP}
_CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, **_CLIP}
_SIGLIP = {**_CLIP_VISION, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
FAMILIES = ("clip", "metaclip_2", "siglip")
"""The families of models that are read, by the `model_type` of a whole model."""


def model_family(content: Mapping[str, Any]) -> tuple[str, str | None]:
    """The family of a `config.json`'s model and the name of its tower, if it is of one tower: "vision" or "text"."""
    kind = str(content.get("model_type"))
    family, found, tower = kind.removesuffix("_model").rpartition("_")
    return (family, tower) if found and kind.endswith("_model") and tower in ("vision", "text") else (kind, None)


def config_from_transformers(content: Mapping[str, Any]) -> CLIPConfig:
    """Reads the content of a transformers `config.json`; omitted fields have transformers' defaults.

    Args:
      content: the parsed file. Its `model_type` is one of `FAMILIES` or that of one of their towers, such as
        "clip_vision_model" of `CLIPVisionModelWithProjection`.

    Returns:
      The model's shape; mean and std are the published models', since `config.json` doesn't hold them.

    Raises:
      InputError: another model type, or a field is missing or has an unsupported value.
    """
    family, tower = model_family(content)
    if family == "siglip2":
        raise InputError(
            f"model_type is {content['model_type']!r}: SigLIP 2 in its NaFlex form, whose images keep their shape, is"
            " not supported; take one of fixed resolution, whose model_type is 'siglip', such as"
            " google/siglip2-base-patch16-256"
        )
    if family not in FAMILIES:
        expected = ", ".join(map(repr, FAMILIES))
        raise InputError(f"model_type is {content.get('model_type')!r}, expected one of {expected} or of their towers")
    read = _read_siglip if family == "siglip" else _read_clip
    sections = [
        _section(content, name) if tower is None else dict(content) if tower == name else None
        for name in ("vision", "text")
    ]
    try:
        return read(content, *sections)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"these settings don't make a CLIP model: {error}") from error


def config_to_transformers(config: CLIPConfig) -> dict[str, Any]:
    """Converts a model's shape to the content of a transformers `config.json`.

    Raises:
      ValueError: transformers' CLIP, MetaCLIP 2 and SigLIP have no such model; names the settings that differ.
    """
    if config.vision is None or config.text is None:
        raise ValueError("the model has one tower, but only whole models are written")
    write = _write_siglip if is_siglip(config) else _write_clip
    content = write(config, config.vision, config.text)
    # A setting without a field would be read back as something else.
    again = dataclasses.replace(
        config_from_transformers(content), image_mean=config.image_mean, image_std=config.image_std
    )
    if lost := [*_differences(config, again)]:
        raise ValueError(f"transformers' config.json has no field for {', '.join(lost)}")
    return content


def is_siglip(config: CLIPConfig) -> bool:
    """Returns whether a model is of SigLIP's kind rather than CLIP's: by its attention pooling, or its projection."""
    if config.vision is not None:
        return config.vision.pool == "attention"
    return config.text is not None and config.text.projection_bias


def _section(content: Mapping[str, Any], tower: str) -> dict[str, Any]:
    # Old files hold a second copy under *_config_dict, and transformers lets that one win.
    found = content.get(f"{tower}_config_dict") or content.get(f"{tower}_config") or {}
    if not isinstance(found, Mapping):
        raise InputError(f"{tower}_config is a {type(found).__name__}, expected an object")
    return dict(found)


def _read_clip(content: Mapping[str, Any], vision: dict[str, Any] | None, text: dict[str, Any] | None) -> CLIPConfig:
    # MetaCLIP 2's config has the same fields, but 2 is the end token of its vocabulary.
    end = (text or {}).get("eos_token_id", 49407)
    legacy = end == LEGACY_EOS and model_family(content)[0] == "clip"
    return CLIPConfig(
        vision=_read_vision(vision, _CLIP_VISION, patch=32),
        text=_read_text(text, _CLIP_TEXT, vocabulary=49408, length=77, eos_token_id=None if legacy else end),
        embed_dim=content.get("projection_dim", 512),
        logit_scale_init=None if vision is None or text is None else content.get("logit_scale_init_value", 2.6592),
    )


def _read_siglip(content: Mapping[str, Any], vision: dict[str, Any] | None, text: dict[str, Any] | None) -> CLIPConfig:
    if vision is not None and not vision.get("vision_use_head", True):
        raise InputError("vision_use_head is false, expected true: the embedding comes from the head")
    pooling = {"eos_token_id": None, "causal": False, "pool": "last", "projection_bias": True}
    both = vision is not None and text is not None
    width = {**_SIGLIP, **(text or vision or {})}["hidden_size"]
    return CLIPConfig(
        vision=_read_vision(vision, _SIGLIP, patch=16, pool="attention"),
        text=_read_text(text, _SIGLIP, vocabulary=32000, length=64, **pooling),
        embed_dim=(text or {}).get("projection_size") or width,
        # Not in its config.json.
        logit_scale_init=SIGLIP_LOGIT_SCALE if both else None,
        logit_bias_init=SIGLIP_LOGIT_BIAS if both else None,
        image_mean=SIGLIP_MEAN,
        image_std=SIGLIP_STD,
    )


def _read_text(
    given: dict[str, Any] | None, defaults: dict[str, Any], *, vocabulary: int, length: int, **kind: Any
) -> TextConfig | None:
    if given is None:
        return None
    return TextConfig(
        **_read_tower({**defaults, **given}),
        vocab_size=given.get("vocab_size", vocabulary),
        context_length=given.get("max_position_embeddings", length),
        **kind,
    )


def _read_vision(
    given: dict[str, Any] | None, defaults: dict[str, Any], *, patch: int, **kind: Any
) -> VisionConfig | None:
    if given is None:
        return None
    section = {**defaults, **given}
    if (channels := section.get("num_channels", 3)) != 3:
        raise InputError(f"num_channels is {channels!r} but the vision tower expects 3 (RGB)")
    return VisionConfig(
        **_read_tower(section),
        image_size=section.get("image_size", 224),
        patch_size=section.get("patch_size", patch),
        **kind,
    )


def _read_tower(section: dict[str, Any]) -> dict[str, Any]:
    if (activation := section["hidden_act"]) not in _ACTIVATIONS:
        raise InputError(f"hidden_act is {activation!r}, expected one of {', '.join(_ACTIVATIONS)}")
    return {
        "width": section["hidden_size"],
        "layers": section["num_hidden_layers"],
        "heads": section["num_attention_heads"],
        "mlp_width": section["intermediate_size"],
        "activation": _ACTIVATIONS[activation],
        "layer_norm_eps": section["layer_norm_eps"],
    }


def _write_clip(config: CLIPConfig, vision: VisionConfig, text: TextConfig) -> dict[str, Any]:
    end = text.eos_token_id
    # CLIP's vocabularies end in the start and the end token, and captions are padded with the latter.
    special = (0, 1, LEGACY_EOS) if end is None else (end - 1 if end else 0, end, end)
    name, kind = "CLIP", "clip"
    if end == LEGACY_EOS:  # which would be the older rule in CLIP's config
        special, name, kind = (0, 1, end), "MetaClip2", "metaclip_2"
    projection = {"projection_dim": config.embed_dim}
    tokens = dict(zip(("bos_token_id", "pad_token_id", "eos_token_id"), special, strict=True))
    return {
        "architectures": [f"{name}Model"],
        "model_type": kind,
        "logit_scale_init_value": config.logit_scale_init,
        **projection,
        "vision_config": {"model_type": f"{kind}_vision_model", **_vision(vision), **projection},
        "text_config": {"model_type": f"{kind}_text_model", **_text(text), **projection, **tokens},
    }


def _write_siglip(config: CLIPConfig, vision: VisionConfig, text: TextConfig) -> dict[str, Any]:
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {"model_type": "siglip_vision_model", **_vision(vision), "vision_use_head": True},
        "text_config": {"model_type": "siglip_text_model", **_text(text), "projection_size": config.embed_dim},
    }


def _vision(tower: VisionConfig) -> dict[str, Any]:
    sizes = {"image_size": tower.image_size, "patch_size": tower.patch_size, "num_channels": 3}
    return {**_write_tower(tower), **sizes}


def _text(tower: TextConfig) -> dict[str, Any]:
    return {**_write_tower(tower), "vocab_size": tower.vocab_size, "max_position_embeddings": tower.context_length}


def _write_tower(tower: VisionConfig | TextConfig) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp_width,
        "hidden_act": _NAMES[tower.activation],
        "layer_norm_eps": tower.layer_norm_eps,
    }


def _differences(config: CLIPConfig, again: CLIPConfig) -> list[str]:
    """The settings that differ, except initial values, which don't matter to a trained model."""
    found = []
    for part in ("vision", "text"):
        ours, theirs = (dataclasses.asdict(getattr(model, part)) for model in (config, again))
        found += [f"{part}.{name} {value!r}" for name, value in ours.items() if value != theirs[name]]
    if (config.logit_bias_init is None) != (again.logit_bias_init is None):
        found.append(f"logit_bias_init {config.logit_bias_init!r}")
    return found
