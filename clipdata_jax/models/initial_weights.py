"""Distributions of a layer's initial weights: CLIP's, and PyTorch's defaults, which open_clip leaves in places."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from clipdata_jax.config.recipes import Initial
from clipdata_jax.models.clip_config import TowerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerInit:
    """Initialisers of a transformer layer's matrices and of the MLP's biases; all other biases start at zero."""

    qkv: nnx.Initializer
    out: nnx.Initializer
    fc1: nnx.Initializer
    fc2: nnx.Initializer
    fc1_bias: nnx.Initializer = nnx.initializers.zeros
    fc2_bias: nnx.Initializer = nnx.initializers.zeros


def clip_layer(config: TowerConfig) -> LayerInit:
    """Initialisers as in CLIP: normal, with deviations by the width w and the number of layers n.

        queries, keys, values: w^-1/2    first of the MLP: (2 w)^-1/2    back to the residual stream: (2 n w)^-1/2

    Each layer adds two terms to the residual stream: scaled so that its variance doesn't grow with depth. Radford et
    al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
    """
    back = nnx.initializers.normal(config.width**-0.5 * (2 * config.layers) ** -0.5)
    return LayerInit(
        qkv=nnx.initializers.normal(config.width**-0.5),
        out=back,
        fc1=nnx.initializers.normal((2 * config.width) ** -0.5),
        fc2=back,
    )


def pytorch_layer(config: TowerConfig) -> LayerInit:
    """Initialisers that PyTorch's modules have by default: uniform within a bound.

    Of a dense layer of n inputs n^-1/2, biases too; of the queries, keys and values, which are one matrix of w inputs
    and 3 w outputs, (6 / 4 w)^1/2 (Glorot and Bengio 2010, equation 16), without biases.
    """
    of_width, of_mlp = symmetric_uniform(config.width**-0.5), symmetric_uniform(config.mlp_width**-0.5)
    return LayerInit(
        qkv=symmetric_uniform((6 / (4 * config.width)) ** 0.5),
        out=of_width,
        fc1=of_width,
        fc2=of_mlp,
        fc1_bias=of_width,
        fc2_bias=of_mlp,
    )


def text_layer(config: TowerConfig, initial: Initial) -> LayerInit:
    """Initialisers of the text tower's layers: CLIP's; in open_clip the MLP's biases are left as PyTorch's."""
    clip = clip_layer(config)
    if initial == "clip":
        return clip
    pytorch = pytorch_layer(config)
    return dataclasses.replace(clip, fc1_bias=pytorch.fc1_bias, fc2_bias=pytorch.fc2_bias)


def symmetric_uniform(bound: float) -> nnx.Initializer:
    """A uniform distribution between -bound and bound, whose standard deviation is bound / 3^1/2."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = float) -> Float[Array, ...]:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
