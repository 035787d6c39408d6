"""Sizes of a CLIP model's two towers, and those of the architectures that have names."""

from __future__ import annotations

import dataclasses
from typing import Literal

from clipdata_jax.config.base import did_you_mean, require
from clipdata_jax.errors import InputError

_QUICK = "-quickgelu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """Sizes of one transformer; `heads` must divide `width`."""

    width: int
    layers: int
    heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of the width {self.width}")

    @property
    def parameters(self) -> int:
        """The number of weights in the layers, near enough: without norms and biases."""
        return self.layers * self.width * (4 * self.width + 2 * self.mlp_width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of a CLIP's vision and text towers; images are square, in pixels."""

    vision: TowerSizes
    text: TowerSizes
    embed_dim: int
    image_size: int = 224
    patch_size: int
    context_length: int = 77
    activation: Literal["gelu", "quick_gelu", "gelu_tanh"] = "gelu"

    def __post_init__(self) -> None:
        good = self.image_size % self.patch_size == 0
        require(good, "patch_size", self.patch_size, f"a divisor of the image size {self.image_size}")

    def parameters(self, vocab_size: int) -> int:
        """The number of weights, near enough: without norms and biases."""
        positions = (self.image_size // self.patch_size) ** 2 + 1 + 3 * self.patch_size**2 + self.embed_dim
        tokens = vocab_size + self.context_length + self.embed_dim
        return self.vision.parameters + self.vision.width * positions + self.text.parameters + self.text.width * tokens


def _sizes(
    vision: tuple[int, int, int],
    text: tuple[int, int, int],
    embed_dim: int,
    patch_size: int,
    image_size: int = 224,
    mlp_width: int | None = None,
) -> ModelSizes:
    """Sizes of (width, layers, heads) each; `mlp_width` of the vision tower, four times its width unless given."""
    return ModelSizes(
        vision=TowerSizes(width=vision[0], layers=vision[1], heads=vision[2], mlp_width=mlp_width or 4 * vision[0]),
        text=TowerSizes(width=text[0], layers=text[1], heads=text[2], mlp_width=4 * text[0]),
        embed_dim=embed_dim,
        patch_size=patch_size,
        image_size=image_size,
    )


_S, _M, _B = ((width, 12, width // 64) for width in (384, 512, 768))
_L, _H, _SMALL_G, _BIG_G = (1024, 24, 16), (1280, 32, 16), (1408, 40, 16), (1664, 48, 16)
_TEXT_B, _TEXT_L, _TEXT_H, _TEXT_BIG_G = (512, 12, 8), (768, 12, 12), (1024, 24, 16), (1280, 32, 20)

ARCHITECTURES = {
    "ViT-S-32": _sizes(_S, _S, 384, 32),
    "ViT-S-16": _sizes(_S, _S, 384, 16),
    "ViT-M-32": _sizes(_M, _M, 512, 32),
    "ViT-M-16": _sizes(_M, _M, 512, 16),
    "ViT-B-32": _sizes(_B, _TEXT_B, 512, 32),
    "ViT-B-32-256": _sizes(_B, _TEXT_B, 512, 32, image_size=256),
    "ViT-B-16": _sizes(_B, _TEXT_B, 512, 16),
    "ViT-L-16": _sizes(_L, _TEXT_L, 768, 16),
    "ViT-L-14": _sizes(_L, _TEXT_L, 768, 14),
    "ViT-L-14-336": _sizes(_L, _TEXT_L, 768, 14, image_size=336),
    "ViT-H-16": _sizes(_H, _TEXT_H, 1024, 16),
    "ViT-H-14": _sizes(_H, _TEXT_H, 1024, 14),
    "ViT-H-14-378": _sizes(_H, _TEXT_H, 1024, 14, image_size=378),
    "ViT-g-14": _sizes(_SMALL_G, _TEXT_H, 1024, 14, mlp_width=6144),
    "ViT-bigG-14": _sizes(_BIG_G, _TEXT_BIG_G, 1280, 14, mlp_width=8192),
}
"""open_clip's names of the architectures, with the exact GELU."""


def named_sizes(name: str) -> ModelSizes:
    """Finds the sizes of an architecture by open_clip's name for it; "-quickgelu" at its end means quick GELU.

    Raises:
      InputError: there is none of that name.

    >>> named_sizes("ViT-B-32").text.width, named_sizes("ViT-L-14-quickgelu").activation
    (512, 'quick_gelu')
    """
    plain = name.removesuffix(_QUICK)
    if plain not in ARCHITECTURES:
        near = did_you_mean(name, [*ARCHITECTURES, *(known + _QUICK for known in ARCHITECTURES)])
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"--arch is {name!r}, expected one of {known}, or one with {_QUICK} at its end{near}")
    found = ARCHITECTURES[plain]
    return found if name == plain else dataclasses.replace(found, activation="quick_gelu")
