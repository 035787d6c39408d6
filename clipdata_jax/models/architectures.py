"""The shape of a CLIP from the sizes of its towers, as those of open_clip's named architectures."""

from __future__ import annotations

import dataclasses

from clipdata_jax.config.model_sizes import ModelSizes, TowerSizes
from clipdata_jax.models.clip_config import (
    SIGLIP_LOGIT_BIAS,
    SIGLIP_LOGIT_SCALE,
    CLIPConfig,
    TextConfig,
    VisionConfig,
)


def sized_config(
    sizes: ModelSizes, *, vocab_size: int = 49408, eos_token_id: int = 49407, sigmoid: bool = False
) -> CLIPConfig:
    """Makes the shape of a CLIP of these sizes.

    Args:
      sizes: of the towers, the images and the captions.
      vocab_size: tokens of the vocabulary; default: CLIP's.
      eos_token_id: the end token.
      sigmoid: whether it is to be trained with SigLIP's loss, whose scale starts at ln 10 and whose learnt bias starts
        at -10 (Zhai et al. 2023, arXiv:2303.15343, section 3.2).

    Returns:
      The shape, with OpenAI's image mean and standard deviation.

    >>> from clipdata_jax.config.model_sizes import named_sizes
    >>> from clipdata_jax.models import sized_config
    >>> config = sized_config(named_sizes("ViT-B-32"))
    >>> config.vision.width, config.text.width, config.text.activation
    (768, 512, 'gelu')
    """
    config = CLIPConfig(
        vision=VisionConfig(
            **dataclasses.asdict(sizes.vision),
            activation=sizes.activation,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
        ),
        text=TextConfig(
            **dataclasses.asdict(sizes.text),
            activation=sizes.activation,
            vocab_size=vocab_size,
            context_length=sizes.context_length,
            eos_token_id=eos_token_id,
        ),
        embed_dim=sizes.embed_dim,
    )
    if not sigmoid:
        return config
    return dataclasses.replace(config, logit_scale_init=SIGLIP_LOGIT_SCALE, logit_bias_init=SIGLIP_LOGIT_BIAS)


def sizes_of(config: CLIPConfig) -> ModelSizes:
    """The sizes of a model of two towers; the activation is the vision tower's.

    Raises:
      ValueError: the model has one tower.

    >>> from clipdata_jax.config.model_sizes import named_sizes
    >>> from clipdata_jax.models import sized_config, sizes_of
    >>> sizes_of(sized_config(named_sizes("ViT-B-32"))) == named_sizes("ViT-B-32")
    True
    """
    if config.vision is None or config.text is None:
        raise ValueError("the model has one tower, expected two")
    vision, text = (
        TowerSizes(width=one.width, layers=one.layers, heads=one.heads, mlp_width=one.mlp_width)
        for one in (config.vision, config.text)
    )
    return ModelSizes(
        vision=vision,
        text=text,
        embed_dim=config.embed_dim,
        image_size=config.vision.image_size,
        patch_size=config.vision.patch_size,
        context_length=config.text.context_length,
        activation=config.vision.activation,
    )
