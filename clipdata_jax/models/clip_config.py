"""The shape of a CLIP model, and how transformers' `config.json` says it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from clipdata_jax.errors import InputError

Activation = Literal["quick_gelu", "gelu"]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# In older config.json files eos_token_id is 2, which no CLIP vocabulary means: those models are read at the
# highest id.
_LEGACY_EOS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What the two transformers have in common; `heads` must divide `width`."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _require_counts(self, "width", "layers", "heads", "mlp_width")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation is {self.activation!r}, expected one of {get_args(Activation)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """The vision transformer: square pictures, cut into square patches (both in pixels)."""

    image_size: int = 224
    patch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_counts(self, "image_size", "patch_size")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")

    @property
    def patches(self) -> int:
        """Patches in a picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """The causal text transformer.

    `eos_token_id`: a caption is read at its first token of this id; None: at its highest id (the older rule,
    the same thing when the end token is the last of the vocabulary).
    """

    vocab_size: int = 49408
    context_length: int = 77
    eos_token_id: int | None = 49407

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_counts(self, "vocab_size", "context_length")
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(
                f"eos_token_id {self.eos_token_id} lies outside a vocabulary of {self.vocab_size}"
            )
        if self.eos_token_id == _LEGACY_EOS:
            raise ValueError("eos_token_id 2 means the older rule in config.json: give None, or another id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """A CLIP model: two towers that meet in `embed_dim` dimensions; mean and std normalise the pictures."""

    vision: VisionConfig
    text: TextConfig
    embed_dim: int
    logit_scale_init: float = math.log(1 / 0.07)
    image_mean: tuple[float, float, float] = OPENAI_MEAN
    image_std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        _require_counts(self, "embed_dim")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} is {getattr(self, name)}, expected three numbers")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}, expected numbers above 0")

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> CLIPConfig:
        """Reads the content of a transformers `config.json`; what it leaves out has transformers' default.

        Args:
          config: the parsed file, `model_type` "clip".

        Returns:
          The model's shape; mean and std are OpenAI's, since `config.json` doesn't hold them.

        Raises:
          InputError: another model type, a field missing or of a value this code doesn't know.
        """
        if config.get("model_type") != "clip":
            raise InputError(
                f"model_type is {config.get('model_type')!r}, expected 'clip': other models can't be read"
            )
        try:
            return cls(
                vision=_vision_from_transformers(_section(config, "vision")),
                text=_text_from_transformers(_section(config, "text")),
                embed_dim=config.get("projection_dim", 512),
                logit_scale_init=config.get("logit_scale_init_value", 2.6592),
            )
        except InputError:
            raise
        except (ValueError, TypeError) as error:
            raise InputError(f"no CLIP model has these settings: {error}") from error

    def to_transformers(self) -> dict[str, Any]:
        """The content of a transformers `config.json` for this model, ready for `json.dump`."""
        end = self.text.eos_token_id
        # CLIP's vocabularies end in the start and the end token, and captions are padded with the latter.
        special = (0, 1, _LEGACY_EOS) if end is None else (end - 1 if end else 0, end, end)
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.embed_dim,
            "logit_scale_init_value": self.logit_scale_init,
            "vision_config": {
                **_tower_to_transformers(self.vision, "clip_vision_model", self.embed_dim),
                "image_size": self.vision.image_size,
                "patch_size": self.vision.patch_size,
                "num_channels": 3,
            },
            "text_config": {
                **_tower_to_transformers(self.text, "clip_text_model", self.embed_dim),
                "vocab_size": self.text.vocab_size,
                "max_position_embeddings": self.text.context_length,
                **dict(zip(("bos_token_id", "pad_token_id", "eos_token_id"), special, strict=True)),
            },
        }


def _require_counts(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")


def _section(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    # Old files hold a second copy under *_config_dict, and transformers lets that one win.
    found = config.get(f"{tower}_config_dict") or config.get(f"{tower}_config") or {}
    if not isinstance(found, Mapping):
        raise InputError(f"{tower}_config is a {type(found).__name__}, expected an object")
    return dict(found)


def _tower_from_transformers(section: dict[str, Any], *, width: int, heads: int) -> dict[str, Any]:
    activation = section.get("hidden_act", "quick_gelu")
    if activation not in get_args(Activation):
        raise InputError(
            f"hidden_act is {activation!r} but the towers know {' and '.join(get_args(Activation))}"
        )
    return {
        "width": section.get("hidden_size", width),
        "layers": section.get("num_hidden_layers", 12),
        "heads": section.get("num_attention_heads", heads),
        "mlp_width": section.get("intermediate_size", 4 * width),
        "activation": activation,
        "layer_norm_eps": section.get("layer_norm_eps", 1e-5),
    }


def _vision_from_transformers(section: dict[str, Any]) -> VisionConfig:
    if (channels := section.get("num_channels", 3)) != 3:
        raise InputError(f"num_channels is {channels!r} but the vision tower takes 3 (RGB)")
    return VisionConfig(
        **_tower_from_transformers(section, width=768, heads=12),
        image_size=section.get("image_size", 224),
        patch_size=section.get("patch_size", 32),
    )


def _text_from_transformers(section: dict[str, Any]) -> TextConfig:
    end = section.get("eos_token_id", 49407)
    return TextConfig(
        **_tower_from_transformers(section, width=512, heads=8),
        vocab_size=section.get("vocab_size", 49408),
        context_length=section.get("max_position_embeddings", 77),
        eos_token_id=None if end == _LEGACY_EOS else end,
    )


def _tower_to_transformers(config: TowerConfig, model_type: str, embed_dim: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": config.activation,
        "layer_norm_eps": config.layer_norm_eps,
        "projection_dim": embed_dim,
    }
