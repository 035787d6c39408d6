"""The pre-norm transformer that both CLIP towers are made of, in Flax NNX."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clipdata_jax.models.clip_config import TowerConfig

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def matmul_precision(dtype: DTypeLike) -> contextlib.AbstractContextManager[object]:
    """Float32 means float32: by default a TPU would multiply in bfloat16 and a GPU in TensorFloat-32."""
    full = jnp.dtype(dtype) == jnp.float32
    return jax.default_matmul_precision("highest") if full else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Builder:
    """Makes the parts of a tower, all of one compute dtype, parameter dtype and source of randomness."""

    rngs: nnx.Rngs
    dtype: DTypeLike
    param_dtype: DTypeLike

    def normal(self, std: float, *shape: int) -> nnx.Param[Array]:
        """A parameter that starts normal."""
        return nnx.Param(nnx.initializers.normal(std)(self.rngs.params(), shape, self.param_dtype))

    def linear(self, inputs: int, outputs: int, *, std: float) -> nnx.Linear:
        """A dense layer whose weights start normal."""
        return nnx.Linear(
            inputs,
            outputs,
            kernel_init=nnx.initializers.normal(std),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def projection(self, inputs: int, outputs: int) -> nnx.Linear:
        """The last step to the embedding: no bias, and float32 whatever the tower computes in."""
        return nnx.Linear(
            inputs,
            outputs,
            use_bias=False,
            kernel_init=nnx.initializers.normal(inputs**-0.5),
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def norm(self, config: TowerConfig) -> nnx.LayerNorm:
        """A layer norm over the tower's width."""
        return nnx.LayerNorm(
            config.width,
            epsilon=config.layer_norm_eps,
            # The fast variance E[x^2] - E[x]^2 loses half the digits to cancellation.
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=self.rngs,
        )

    def blocks(self, config: TowerConfig, *, causal: bool) -> nnx.List[Block]:
        """The tower's layers, in order."""
        return nnx.List([Block(config, self, causal=causal) for _ in range(config.layers)])


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: TowerConfig, build: Builder, *, causal: bool) -> None:
        width, std = config.width, config.width**-0.5
        self.heads, self.causal = config.heads, causal
        self.q = build.linear(width, width, std=std)
        self.k = build.linear(width, width, std=std)
        self.v = build.linear(width, width, std=std)
        self.out = build.linear(width, width, std=_residual_std(config))

    def __call__(self, x_bld: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        heads = (*x_bld.shape[:2], self.heads, -1)
        q_blhk, k_blhk, v_blhk = (dense(x_bld).reshape(heads) for dense in (self.q, self.k, self.v))
        mixed = jax.nn.dot_product_attention(q_blhk, k_blhk, v_blhk, is_causal=self.causal)
        return self.out(mixed.reshape(x_bld.shape))


class MLP(nnx.Module):
    """Two dense layers around the activation."""

    def __init__(self, config: TowerConfig, build: Builder) -> None:
        self.activation = config.activation
        self.fc1 = build.linear(config.width, config.mlp_width, std=(2 * config.width) ** -0.5)
        self.fc2 = build.linear(config.mlp_width, config.width, std=_residual_std(config))

    def __call__(self, x_bld: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x_bld)))


class Block(nnx.Module):
    """One layer: attention, then the MLP, each on a normed input and added back."""

    def __init__(self, config: TowerConfig, build: Builder, *, causal: bool) -> None:
        self.norm1 = build.norm(config)
        self.attention = Attention(config, build, causal=causal)
        self.norm2 = build.norm(config)
        self.mlp = MLP(config, build)

    def __call__(self, x_bld: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        x_bld = x_bld + self.attention(self.norm1(x_bld))
        return x_bld + self.mlp(self.norm2(x_bld))


def _residual_std(config: TowerConfig) -> float:
    # Each layer adds two terms to the residual stream: scaled so that its variance doesn't grow with depth.
    return float(config.width**-0.5 * (2 * config.layers) ** -0.5)
