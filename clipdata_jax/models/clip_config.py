"""The shape of a CLIP or SigLIP model."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
VisionPool = Literal["class", "mean", "attention"]
TextPool = Literal["end", "first", "last"]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
# SigLIP's initial values, Zhai et al. 2023, arXiv:2303.15343, section 3.2.
SIGLIP_LOGIT_SCALE, SIGLIP_LOGIT_BIAS = math.log(10), -10.0

# Older config.json files have eos_token_id 2, which is not the end token of any CLIP vocabulary: those models pool
# at the highest id.
LEGACY_EOS = 2
# Bounds what a bad config.json allocates before its weights are compared with it.
_MOST_LAYERS, _MOST = 1_000, 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Options that both transformers share; `heads` must divide `width`.

    `layer_scale_init`: initial value of the learnt scale of each residual branch; None for no scales.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    layer_scale_init: float | None = None

    def __post_init__(self) -> None:
        _require_counts(self, "width", "layers", "heads", "mlp_width")
        if self.layers > _MOST_LAYERS:
            raise ValueError(f"layers is {self.layers}, expected at most {_MOST_LAYERS}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        _require_choice("activation", self.activation, get_args(Activation))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """Options of the vision transformer: square images cut into square patches (both in pixels).

    `pool`: the kind of pooling:

    - "class": a class token (CLIP);
    - "mean": the mean of the patches, not of the class token, which the tower has too (open_clip's "avg");
    - "attention": a learnt query that attends to the patches (SigLIP). Such a tower has no class token and no
      projection, and ignores pixels at the right and the bottom that fill no patch.

    `pre_norm`: whether a norm stands before the layers, in a tower with a class token. `norm_after_pool`:
    whether the mean is taken before the last norm instead of after it.
    """

    image_size: int = 224
    patch_size: int = 32
    pool: VisionPool = "class"
    pre_norm: bool = True
    norm_after_pool: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_counts(self, "image_size", "patch_size")
        _require_choice("pool", self.pool, get_args(VisionPool))
        if self.image_size < self.patch_size or (self.has_class_token and self.image_size % self.patch_size):
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def has_class_token(self) -> bool:
        """Whether a class token stands before the patches."""
        return self.pool != "attention"

    @property
    def patches(self) -> int:
        """Number of patches in an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """Options of the text transformer; `causal`: whether a token attends only to those before it.

    `pool`: the token that is pooled: the "end" token, the "first" or the "last" of the row.
    `eos_token_id`: the end token is the first with this id; None: the highest id (the older rule, equivalent
    when the end token is the last of the vocabulary). `projection_bias`: whether the projection has a bias, as
    SigLIP's has.
    """

    vocab_size: int = 49408
    context_length: int = 77
    eos_token_id: int | None = 49407
    causal: bool = True
    pool: TextPool = "end"
    projection_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_counts(self, "vocab_size", "context_length")
        _require_choice("pool", self.pool, get_args(TextPool))
        if self.pool != "end" or self.eos_token_id is None:
            return
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id {self.eos_token_id} is outside a vocabulary of {self.vocab_size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """The shape of a CLIP or SigLIP model: two towers that embed into `embed_dim` dimensions.

    A model of one tower has None for the other and for `logit_scale_init`. `logit_bias_init`: initial value of the
    learnt bias of SigLIP's loss; None for no bias. `image_mean` and `image_std` normalise the images, whose values
    are in [0, 1].
    """

    vision: VisionConfig | None
    text: TextConfig | None
    embed_dim: int
    logit_scale_init: float | None = math.log(1 / 0.07)
    logit_bias_init: float | None = None
    image_mean: tuple[float, float, float] = OPENAI_MEAN
    image_std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        _require_counts(self, "embed_dim")
        if self.vision is None and self.text is None:
            raise ValueError("vision and text are both None, expected at least one tower")
        if self.vision is not None and self.vision.pool == "attention" and self.vision.width != self.embed_dim:
            raise ValueError(
                f"embed_dim is {self.embed_dim} but the vision tower, which has no projection, gives "
                f"{self.vision.width}"
            )
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} is {getattr(self, name)}, expected three numbers")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std}, expected numbers above 0")

    @property
    def image_size(self) -> int:
        """Side of an image in pixels; a ValueError without a vision tower."""
        if self.vision is None:
            raise ValueError("the model has no vision tower")
        return self.vision.image_size


def _require_counts(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
        if value > _MOST:
            raise ValueError(f"{name} is {value:.0e}, expected at most {_MOST:,}")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {choices}")
