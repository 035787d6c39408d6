"""The shapes of the published models that data selection uses."""

from __future__ import annotations

from typing import Any

from clipdata_jax.config.model_sizes import named_sizes
from clipdata_jax.models.architectures import sized_config
from clipdata_jax.models.clip_config import (
    SIGLIP_LOGIT_BIAS,
    SIGLIP_LOGIT_SCALE,
    SIGLIP_MEAN,
    SIGLIP_STD,
    CLIPConfig,
    TextConfig,
    VisionConfig,
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
        logit_scale_init=SIGLIP_LOGIT_SCALE,
        logit_bias_init=SIGLIP_LOGIT_BIAS,
        image_mean=SIGLIP_MEAN,
        image_std=SIGLIP_STD,
    )


# OpenAI's, Radford et al. 2021, arXiv:2103.00020.
VIT_B_32 = sized_config(named_sizes("ViT-B-32-quickgelu"))
VIT_B_16 = sized_config(named_sizes("ViT-B-16-quickgelu"))
VIT_L_14 = sized_config(named_sizes("ViT-L-14-quickgelu"))
VIT_L_14_336 = sized_config(named_sizes("ViT-L-14-336-quickgelu"))
# LAION's, Cherti et al. 2022, arXiv:2212.07143, with the exact GELU, not OpenAI's quick approximation.
VIT_H_14 = sized_config(named_sizes("ViT-H-14"))
VIT_SMALL_G_14 = sized_config(named_sizes("ViT-g-14"))
VIT_BIG_G_14 = sized_config(named_sizes("ViT-bigG-14"))
# Google's, Zhai et al. 2023, arXiv:2303.15343.
SIGLIP_BASE_PATCH16_224 = _siglip(width=768, layers=12, heads=12, mlp_width=3072, image_size=224, patch=16)
SIGLIP_SO400M_PATCH14_384 = _siglip(width=1152, layers=27, heads=16, mlp_width=4304, image_size=384, patch=14)
