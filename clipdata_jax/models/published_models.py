"""The shapes of the published models that data selection uses."""

from __future__ import annotations

from typing import Any

from clipdata_jax.models.clip_config import SIGLIP_MEAN, SIGLIP_STD, Activation, CLIPConfig, TextConfig, VisionConfig


def _clip(
    *,
    embed_dim: int,
    vision: tuple[int, int, int, int],
    text: tuple[int, int, int],
    patch_size: int = 14,
    image_size: int = 224,
    activation: Activation = "quick_gelu",
) -> CLIPConfig:
    """`vision` is (width, layers, heads, mlp_width), `text` (width, layers, heads)."""
    names = ("width", "layers", "heads", "mlp_width")
    shape: dict[str, Any] = {"activation": activation, **dict(zip(names, vision, strict=True))}
    text_shape: dict[str, Any] = {"activation": activation, **dict(zip(names, (*text, 4 * text[0]), strict=True))}
    return CLIPConfig(
        vision=VisionConfig(**shape, image_size=image_size, patch_size=patch_size),
        text=TextConfig(**text_shape),
        embed_dim=embed_dim,
    )


def _siglip(*, width: int, layers: int, heads: int, mlp_width: int, image_size: int, patch: int) -> CLIPConfig:
    shape: dict[str, Any] = {
        "width": width,
        "layers": layers,
        "heads": heads,
        "mlp_width": mlp_width,
        "activation": "gelu_tanh",
        "layer_norm_eps": 1e-6,
    }
    return CLIPConfig(
        vision=VisionConfig(**shape, image_size=image_size, patch_size=patch, pool="attention"),
        text=TextConfig(
            **shape,
            vocab_size=32000,
            context_length=64,
            eos_token_id=None,
            causal=False,
            pool="last",
            projection_bias=True,
        ),
        embed_dim=width,
        logit_scale_init=2.302585092994046,
        logit_bias_init=-10.0,
        image_mean=SIGLIP_MEAN,
        image_std=SIGLIP_STD,
    )


# OpenAI's, Radford et al. 2021, arXiv:2103.00020.
VIT_B_32 = _clip(embed_dim=512, vision=(768, 12, 12, 3072), text=(512, 12, 8), patch_size=32)
VIT_B_16 = _clip(embed_dim=512, vision=(768, 12, 12, 3072), text=(512, 12, 8), patch_size=16)
VIT_L_14 = _clip(embed_dim=768, vision=(1024, 24, 16, 4096), text=(768, 12, 12))
VIT_L_14_336 = _clip(embed_dim=768, vision=(1024, 24, 16, 4096), text=(768, 12, 12), image_size=336)
# LAION's, Cherti et al. 2022, arXiv:2212.07143, with the exact GELU, not OpenAI's quick approximation.
VIT_H_14 = _clip(embed_dim=1024, vision=(1280, 32, 16, 5120), text=(1024, 24, 16), activation="gelu")
VIT_SMALL_G_14 = _clip(embed_dim=1024, vision=(1408, 40, 16, 6144), text=(1024, 24, 16), activation="gelu")
VIT_BIG_G_14 = _clip(embed_dim=1280, vision=(1664, 48, 16, 8192), text=(1280, 32, 20), activation="gelu")
# Google's, Zhai et al. 2023, arXiv:2303.15343.
SIGLIP_BASE_PATCH16_224 = _siglip(width=768, layers=12, heads=12, mlp_width=3072, image_size=224, patch=16)
SIGLIP_SO400M_PATCH14_384 = _siglip(width=1152, layers=27, heads=16, mlp_width=4304, image_size=384, patch=14)
