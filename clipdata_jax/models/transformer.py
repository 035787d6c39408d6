"""The pre-norm transformer that both CLIP towers are made of, in Flax NNX."""

from __future__ import annotations

import contextlib
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
    if jnp.dtype(dtype) == jnp.float32:
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def layer_norm(config: TowerConfig, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm over the tower's width."""
    return nnx.LayerNorm(
        config.width,
        epsilon=config.layer_norm_eps,
        # The fast variance E[x^2] - E[x]^2 loses half the digits to cancellation.
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def linear(
    inputs: int, outputs: int, *, std: float, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs, bias: bool = True
) -> nnx.Linear:
    """A dense layer whose weights start normal with standard deviation `std`."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=nnx.initializers.normal(std),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(
        self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        def dense(std: float) -> nnx.Linear:
            return linear(config.width, config.width, std=std, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        self.heads, self.causal = config.heads, causal
        self.q, self.k, self.v = (dense(config.width**-0.5) for _ in range(3))
        self.out = dense(_residual_std(config))

    def __call__(self, x_bld: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        heads = (*x_bld.shape[:2], self.heads, -1)
        q_blhk, k_blhk, v_blhk = (dense(x_bld).reshape(heads) for dense in (self.q, self.k, self.v))
        mixed = jax.nn.dot_product_attention(q_blhk, k_blhk, v_blhk, is_causal=self.causal)
        return self.out(mixed.reshape(x_bld.shape))


class MLP(nnx.Module):
    """Two dense layers around the activation."""

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        width, hidden = config.width, config.mlp_width
        self.activation = config.activation
        self.fc1 = linear(width, hidden, std=(2 * width) ** -0.5, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fc2 = linear(hidden, width, std=_residual_std(config), dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x_bld: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x_bld)))


class Block(nnx.Module):
    """One layer: attention, then the MLP, each on a normed input and added back."""

    def __init__(
        self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.norm1 = layer_norm(config, dtype, param_dtype, rngs)
        self.attention = Attention(config, causal=causal, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm2 = layer_norm(config, dtype, param_dtype, rngs)
        self.mlp = MLP(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x_bld: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        x_bld = x_bld + self.attention(self.norm1(x_bld))
        return x_bld + self.mlp(self.norm2(x_bld))


def blocks(
    config: TowerConfig, *, causal: bool, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.List[Block]:
    """The tower's layers, in order."""
    return nnx.List(
        [
            Block(config, causal=causal, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            for _ in range(config.layers)
        ]
    )


def _residual_std(config: TowerConfig) -> float:
    # Each layer adds two terms to the residual stream: scaled so that its variance doesn't grow with depth.
    return float(config.width**-0.5 * (2 * config.layers) ** -0.5)
