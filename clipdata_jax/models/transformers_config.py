"""The shape of a CLIP or SigLIP model from and to transformers' `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clipdata_jax.errors import InputError
from clipdata_jax.models.clip_config import (
    LEGACY_EOS,
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


def config_from_transformers(content: Mapping[str, Any]) -> CLIPConfig:
    """Reads the content of a transformers `config.json`; omitted fields have transformers' defaults.

    Args:
      content: the parsed file, `model_type` "clip" or "siglip".

    Returns:
      The model's shape; mean and std are the published models', since `config.json` doesn't hold them.

    Raises:
      InputError: another model type, or a field is missing or has an unsupported value.
    """
    read = {"clip": _read_clip, "siglip": _read_siglip}.get(str(content.get("model_type")))
    if read is None:
        raise InputError(f"model_type is {content.get('model_type')!r}, expected 'clip' or 'siglip'")
    try:
        return read(content, _section(content, "vision"), _section(content, "text"))
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"these settings don't make a CLIP model: {error}") from error


def config_to_transformers(config: CLIPConfig) -> dict[str, Any]:
    """Converts a model's shape to the content of a transformers `config.json`.

    Raises:
      ValueError: transformers' CLIP and SigLIP have no such model; names the settings that differ.
    """
    content = _write_siglip(config) if is_siglip(config) else _write_clip(config)
    # A setting without a field would be read back as something else.
    again = dataclasses.replace(
        config_from_transformers(content), image_mean=config.image_mean, image_std=config.image_std
    )
    if lost := [*_differences(config, again)]:
        raise ValueError(f"transformers' config.json has no field for {', '.join(lost)}")
    return content


def is_siglip(config: CLIPConfig) -> bool:
    """Returns whether a model is of SigLIP's kind, by its attention pooling, rather than CLIP's."""
    return config.vision.pool == "attention"


def _section(content: Mapping[str, Any], tower: str) -> dict[str, Any]:
    # Old files hold a second copy under *_config_dict, and transformers lets that one win.
    found = content.get(f"{tower}_config_dict") or content.get(f"{tower}_config") or {}
    if not isinstance(found, Mapping):
        raise InputError(f"{tower}_config is a {type(found).__name__}, expected an object")
    return dict(found)


def _read_clip(content: Mapping[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> CLIPConfig:
    end = text.get("eos_token_id", 49407)
    return CLIPConfig(
        vision=_read_vision({**_CLIP_VISION, **vision}, patch=32),
        text=TextConfig(
            **_read_tower({**_CLIP_TEXT, **text}),
            vocab_size=text.get("vocab_size", 49408),
            context_length=text.get("max_position_embeddings", 77),
            eos_token_id=None if end == LEGACY_EOS else end,
        ),
        embed_dim=content.get("projection_dim", 512),
        logit_scale_init=content.get("logit_scale_init_value", 2.6592),
    )


def _read_siglip(content: Mapping[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> CLIPConfig:
    if not vision.get("vision_use_head", True):
        raise InputError("vision_use_head is false, expected true: the embedding comes from the head")
    tower = _read_tower({**_SIGLIP, **text})
    return CLIPConfig(
        vision=_read_vision({**_SIGLIP, **vision}, patch=16, pool="attention"),
        text=TextConfig(
            **tower,
            vocab_size=text.get("vocab_size", 32000),
            context_length=text.get("max_position_embeddings", 64),
            eos_token_id=None,  # not used, see pool
            causal=False,
            pool="last",
            projection_bias=True,
        ),
        embed_dim=text.get("projection_size") or tower["width"],
        # SigLIP's initial values, arXiv:2303.15343; not in its config.json.
        logit_scale_init=2.302585092994046,
        logit_bias_init=-10.0,
        image_mean=SIGLIP_MEAN,
        image_std=SIGLIP_STD,
    )


def _read_vision(section: dict[str, Any], *, patch: int, **kind: Any) -> VisionConfig:
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


def _write_clip(config: CLIPConfig) -> dict[str, Any]:
    end = config.text.eos_token_id
    # CLIP's vocabularies end in the start and the end token, and captions are padded with the latter.
    special = (0, 1, LEGACY_EOS) if end is None else (end - 1 if end else 0, end, end)
    projection = {"projection_dim": config.embed_dim}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "logit_scale_init_value": config.logit_scale_init,
        **projection,
        "vision_config": {"model_type": "clip_vision_model", **_vision(config), **projection},
        "text_config": {
            "model_type": "clip_text_model",
            **_text(config),
            **projection,
            **dict(zip(("bos_token_id", "pad_token_id", "eos_token_id"), special, strict=True)),
        },
    }


def _write_siglip(config: CLIPConfig) -> dict[str, Any]:
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {"model_type": "siglip_vision_model", **_vision(config), "vision_use_head": True},
        "text_config": {"model_type": "siglip_text_model", **_text(config), "projection_size": config.embed_dim},
    }


def _vision(config: CLIPConfig) -> dict[str, Any]:
    tower = config.vision
    sizes = {"image_size": tower.image_size, "patch_size": tower.patch_size, "num_channels": 3}
    return {**_write_tower(tower), **sizes}


def _text(config: CLIPConfig) -> dict[str, Any]:
    tower = config.text
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
