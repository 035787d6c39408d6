"""The pre-norm transformer of all towers, in Flax NNX."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from clipdata_jax.models.clip_config import TowerConfig
from clipdata_jax.models.initial_weights import LayerInit, clip_layer

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def matmul_precision(dtype: DTypeLike) -> contextlib.AbstractContextManager[object]:
    """A context in which float32 is multiplied as float32: a TPU's default is bfloat16, a GPU's TensorFloat-32."""
    full = jnp.dtype(dtype) == jnp.float32
    return jax.default_matmul_precision("highest") if full else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Builder:
    """Creates the parts of a tower with one compute dtype, parameter dtype and source of randomness."""

    rngs: nnx.Rngs
    dtype: DTypeLike
    param_dtype: DTypeLike

    def normal(self, std: float, *shape: int) -> nnx.Param[Array]:
        """A parameter initialised from a normal distribution."""
        return self.drawn(nnx.initializers.normal(std), *shape)

    def drawn(self, init: nnx.Initializer, *shape: int) -> nnx.Param[Array]:
        """A parameter initialised from a distribution."""
        return nnx.Param(init(self.rngs.params(), shape, self.param_dtype))

    def constant(self, value: float, *shape: int) -> nnx.Param[Array]:
        """A parameter initialised to one value."""
        return nnx.Param(jnp.full(shape, value, self.param_dtype))

    def linear(
        self, inputs: int, outputs: int, kernel: nnx.Initializer, bias: nnx.Initializer | None = nnx.initializers.zeros
    ) -> Dense:
        """A dense layer with initial weights from two distributions; without a bias if that is None."""
        return Dense(self.drawn(kernel, inputs, outputs), None if bias is None else self.drawn(bias, outputs))

    def projection(self, inputs: int, outputs: int, *, bias: bool = False) -> Dense:
        """The projection to the embedding."""
        zeros = nnx.initializers.zeros if bias else None
        return self.linear(inputs, outputs, nnx.initializers.normal(inputs**-0.5), zeros)

    def norm(self, config: TowerConfig) -> Norm:
        """A layer norm over the tower's width."""
        return Norm(self.constant(1, config.width), self.constant(0, config.width), config.layer_norm_eps)

    def blocks(self, config: TowerConfig, init: LayerInit, *, causal: bool) -> Sequence[TransformerBlock]:
        """The tower's layers, in order."""
        return nnx.List([TransformerBlock(config, self, init, causal=causal) for _ in range(config.layers)])


class Dense(nnx.Module):
    """x W + b, in x's dtype."""

    def __init__(self, kernel: nnx.Param[Array], bias: nnx.Param[Array] | None) -> None:
        self.kernel, self.bias = kernel, bias

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows m"]:
        # Of two dimensions: the kernel's gradient contracts all rows, and XLA on CPUs transposes both factors of a
        # product that contracts two axes, which takes as long as the product.
        y_nm = x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)
        if self.bias is not None:
            y_nm = y_nm + self.bias[...].astype(x.dtype)
        return y_nm.reshape(*x.shape[:-1], y_nm.shape[-1])


class Norm(nnx.Module):
    """A layer norm of the last axis; in float32, then rounded to x's dtype."""

    def __init__(self, scale: nnx.Param[Array], bias: nnx.Param[Array], eps: float) -> None:
        self.scale, self.bias, self.eps = scale, bias, eps

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        centred = x.astype(jnp.float32)
        centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
        # Not E[x^2] - E[x]^2, which loses half the digits to cancellation.
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        scale, bias = (part[...].astype(jnp.float32) for part in (self.scale, self.bias))
        return (centred * inverse * scale + bias).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: TowerConfig, build: Builder, init: LayerInit, *, causal: bool) -> None:
        width = config.width
        self.heads, self.causal = config.heads, causal
        self.q = build.linear(width, width, init.qkv)
        self.k = build.linear(width, width, init.qkv)
        self.v = build.linear(width, width, init.qkv)
        self.out = build.linear(width, width, init.out)

    def __call__(
        self,
        x_bld: Float[Array, "b l d"],
        *,
        query_bmd: Float[Array, "b m d"] | None = None,
        seen_b: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b m d"]:
        """Attends to x from each of its own positions or, if given, from each query.

        A query attends to the first `seen_b` positions of its row, all if None; `causal` applies to x's own.
        """
        asked_bmd = x_bld if query_bmd is None else query_bmd
        # Heads before positions, once: the products of both passes then read and write whole rows.
        q_bhmk, k_bhlk, v_bhlk = (
            dense(rows).reshape(*rows.shape[:2], self.heads, -1).swapaxes(1, 2)
            for dense, rows in ((self.q, asked_bmd), (self.k, x_bld), (self.v, x_bld))
        )
        logits = jnp.einsum("bhmk,bhlk->bhml", q_bhmk, k_bhlk, preferred_element_type=jnp.float32)
        logits = logits * q_bhmk.shape[-1] ** -0.5
        if seen_b is not None:
            logits = jnp.where(jnp.arange(x_bld.shape[1]) < seen_b[:, None, None, None], logits, -jnp.inf)
        elif self.causal and query_bmd is None:
            logits = jnp.where(jnp.tri(x_bld.shape[1], dtype=bool), logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(x_bld.dtype)
        mixed_bhmk = jnp.einsum("bhml,bhlk->bhmk", weights, v_bhlk)
        return self.out(mixed_bhmk.swapaxes(1, 2).reshape(asked_bmd.shape))


class MLP(nnx.Module):
    """Two dense layers around the activation."""

    def __init__(self, config: TowerConfig, build: Builder, init: LayerInit) -> None:
        self.activation = config.activation
        self.fc1 = build.linear(config.width, config.mlp_width, init.fc1, init.fc1_bias)
        self.fc2 = build.linear(config.mlp_width, config.width, init.fc2, init.fc2_bias)

    def __call__(self, x_bld: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x_bld)))


class TransformerBlock(nnx.Module):
    """A layer: attention, then the MLP, each on a normed input and added back, scaled if configured."""

    def __init__(self, config: TowerConfig, build: Builder, init: LayerInit, *, causal: bool) -> None:
        scale = config.layer_scale_init
        self.norm1 = build.norm(config)
        self.attention = Attention(config, build, init, causal=causal)
        self.scale1 = None if scale is None else build.constant(scale, config.width)
        self.norm2 = build.norm(config)
        self.mlp = MLP(config, build, init)
        self.scale2 = None if scale is None else build.constant(scale, config.width)

    def __call__(
        self, x_bld: Float[Array, "b l d"], *, only_b: Int[Array, " b"] | None = None
    ) -> Float[Array, "b m d"]:
        """The layer's output at every position or, with `only_b`, at one position of each row: (b, 1, d)."""
        normed_bld = self.norm1(x_bld)
        if only_b is None:
            mixed_bmd = self.attention(normed_bld)
        else:
            x_bld, query_b1d = (_at(rows_bld, only_b) for rows_bld in (x_bld, normed_bld))
            seen_b = only_b + 1 if self.attention.causal else None
            mixed_bmd = self.attention(normed_bld, query_bmd=query_b1d, seen_b=seen_b)
        x_bmd = x_bld + _scaled(mixed_bmd, self.scale1)
        return x_bmd + _scaled(self.mlp(self.norm2(x_bmd)), self.scale2)


def apply_layers(
    layers: Sequence[TransformerBlock],
    x_bld: Float[Array, "b l d"],
    *,
    only_b: Int[Array, " b"] | None = None,
    remat: bool = False,
) -> Float[Array, "b m d"]:
    """Applies the layers; with `only_b`, returns only that position of each row: (b, 1, d).

    The last layer needs the other positions only for its keys and values: at CLIP's widths this saves five sixths
    of its products. `remat`: a backward pass computes each layer again from its input, instead of keeping all that is
    inside.
    """
    *early, last = (jax.checkpoint(layer) if remat else layer for layer in layers)
    for layer in early:
        x_bld = layer(x_bld)
    return last(x_bld, only_b=only_b)


class AttentionPool(nnx.Module):
    """A learnt query attends to all positions, then an MLP: SigLIP's head (Zhai et al. 2022, arXiv:2106.04560)."""

    def __init__(self, config: TowerConfig, build: Builder) -> None:
        init = clip_layer(config)
        self.probe = build.normal(config.width**-0.5, 1, 1, config.width)
        self.attention = Attention(config, build, init, causal=False)
        self.norm = build.norm(config)
        self.mlp = MLP(config, build, init)

    def __call__(self, x_bld: Float[Array, "b l d"]) -> Float[Array, "b d"]:
        query_b1d = jnp.broadcast_to(self.probe[...].astype(x_bld.dtype), (x_bld.shape[0], 1, x_bld.shape[2]))
        pooled_b1d = self.attention(x_bld, query_bmd=query_b1d)
        return (pooled_b1d + self.mlp(self.norm(pooled_b1d)))[:, 0]


def _at(x_bld: Float[Array, "b l d"], position_b: Int[Array, " b"]) -> Float[Array, "b 1 d"]:
    return jnp.take_along_axis(x_bld, position_b[:, None, None], axis=1)


def _scaled(x_bld: Float[Array, "b l d"], scale: nnx.Param[Array] | None) -> Float[Array, "b l d"]:
    return x_bld if scale is None else x_bld * scale[...].astype(x_bld.dtype)
