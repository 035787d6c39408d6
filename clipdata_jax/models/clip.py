"""CLIP and SigLIP in Flax NNX: images and captions as unit vectors in one space.

Radford et al. 2021, arXiv:2103.00020; Zhai et al. 2023, arXiv:2303.15343.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped, UInt8

from clipdata_jax.config.recipes import Initial
from clipdata_jax.models.clip_config import CLIPConfig, TextConfig, VisionConfig
from clipdata_jax.models.initial_weights import clip_layer, pytorch_layer, symmetric_uniform, text_layer
from clipdata_jax.models.transformer import AttentionPool, Builder, apply_layers, matmul_precision

_SMALLEST = 1.2e-38  # just above the least normal float32


class VisionTower(nnx.Module):
    """Patches through the transformer, then pooled: by a class token, their mean or an attention over them."""

    def __init__(self, config: VisionConfig, build: Builder, *, embed_dim: int, initial: Initial) -> None:
        width, patch, std = config.width, config.patch_size, config.width**-0.5
        token = config.has_class_token
        self.config, self.dtype, self.remat = config, build.dtype, False
        # The variance of a convolution's weights in PyTorch, which CLIP left as it was: 1 / (3 fan-in).
        fan_in = 3 * patch * patch
        uniform = symmetric_uniform(fan_in**-0.5)
        normal = nnx.initializers.normal((3 * fan_in) ** -0.5)
        self.patch_kernel = build.drawn(normal if initial == "clip" else uniform, patch, patch, 3, width)
        self.patch_bias = None if token else build.constant(0, width)
        self.class_embedding = build.normal(std, width) if token else None
        self.position = build.normal(std, token + config.patches, width)
        self.pre_norm = build.norm(config) if token and config.pre_norm else None
        init = clip_layer(config) if initial == "clip" else pytorch_layer(config)
        self.layers = build.blocks(config, init, causal=False)
        self.post_norm = build.norm(config)
        self.projection = build.projection(width, embed_dim) if token else None
        self.head = None if token else AttentionPool(config, build)

    def __call__(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "b embed_dim"]:
        with matmul_precision(self.dtype):
            x_bld = self._embed(pixels.astype(self.dtype))
            if self.pre_norm is not None:
                x_bld = self.pre_norm(x_bld)
            first_b = jnp.zeros_like(x_bld[:, 0, 0], jnp.int32) if self.config.pool == "class" else None
            pooled_bd = self._pool(apply_layers(self.layers, x_bld, only_b=first_b, remat=self.remat))
        if self.projection is None:
            return pooled_bd.astype(jnp.float32)
        with matmul_precision(jnp.float32):
            return self.projection(pooled_bd.astype(jnp.float32))

    def _pool(self, x_bld: Float[Array, "b l d"]) -> Float[Array, "b d"]:
        if self.head is not None:
            return self.head(self.post_norm(x_bld))
        if self.config.pool == "class":
            return self.post_norm(x_bld[:, 0])
        if self.config.norm_after_pool:
            return self.post_norm(jnp.mean(x_bld[:, 1:], axis=1))
        return jnp.mean(self.post_norm(x_bld[:, 1:]), axis=1)

    def _embed(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "b l d"]:
        side, patch = self.config.image_size // self.config.patch_size, self.config.patch_size
        # A convolution whose stride is its size is one matrix product; it reads whole patches only.
        whole = pixels[:, : side * patch, : side * patch]
        patches = whole.reshape(-1, side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(-1, patch * patch * 3)
        x_nd = patches @ self.patch_kernel[...].astype(self.dtype).reshape(-1, self.config.width)
        x_bld = x_nd.reshape(-1, side * side, self.config.width)
        if self.patch_bias is not None:
            x_bld = x_bld + self.patch_bias[...].astype(self.dtype)
        if self.class_embedding is not None:
            first = self.class_embedding[...].astype(self.dtype)
            first_bld = jnp.broadcast_to(first, (x_bld.shape[0], 1, self.config.width))
            x_bld = jnp.concatenate([first_bld, x_bld], axis=1)
        return x_bld + self.position[...].astype(self.dtype)


class TextTower(nnx.Module):
    """Tokens through a transformer, pooled at one of them: the end token in CLIP."""

    def __init__(self, config: TextConfig, build: Builder, *, embed_dim: int, initial: Initial) -> None:
        self.config, self.dtype, self.remat = config, build.dtype, False
        self.token = build.normal(0.02, config.vocab_size, config.width)
        self.position = build.normal(0.01, config.context_length, config.width)
        self.layers = build.blocks(config, text_layer(config, initial), causal=config.causal)
        self.post_norm = build.norm(config)
        self.projection = build.projection(config.width, embed_dim, bias=config.projection_bias)

    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b embed_dim"]:
        with matmul_precision(self.dtype):
            # An id outside the vocabulary gives NaN, not some other token: jit can't raise on it.
            x_bld = jnp.take(self.token[...].astype(self.dtype), ids, axis=0, mode="fill")
            x_bld = x_bld + self.position[: ids.shape[1]].astype(self.dtype)
            # A norm acts on each position alone, so only the pooled one needs it.
            x_b1d = apply_layers(self.layers, x_bld, only_b=self._read_at(ids), remat=self.remat)
            pooled_bd = self.post_norm(x_b1d[:, 0])
        with matmul_precision(jnp.float32):
            return self.projection(pooled_bd.astype(jnp.float32))

    def _read_at(self, ids: Int[Array, "b l"]) -> Int[Array, " b"]:
        """The position that a caption is pooled at."""
        if self.config.pool != "end":
            return jnp.full_like(ids[:, 0], 0 if self.config.pool == "first" else ids.shape[1] - 1)
        end = self.config.eos_token_id
        return jnp.argmax(ids if end is None else ids == end, axis=1).astype(jnp.int32)


class CLIP(nnx.Module):
    """Two towers and a learnt temperature; for SigLIP a learnt `logit_bias` too, else that is None.

    A checkpoint of one tower makes a model whose other tower, `vision` or `text`, and `logit_scale` are None.

    The constructor initialises the weights, ready to train; `load_clip` reads a trained model.
    It is a pytree of parameters, usable under `jax.jit`, `nnx.split` and `nnx.grad`. The towers are those of
    Radford et al. 2021, arXiv:2103.00020, section 2.4, and of Zhai et al. 2023, arXiv:2303.15343.

    Args:
      config: the shape of the towers.
      rngs: randomness of the initial weights, e.g. `nnx.Rngs(0)`.
      initial: "clip": normal weights scaled by width and depth, as in CLIP; "open_clip": as in open_clip and so in
        DataComp, where the vision layers and the biases of the text MLPs have PyTorch's defaults.
      dtype: compute dtype of the towers; float32 is multiplied at full precision on every device. The last
        projection and the normalisation are always float32.
      param_dtype: dtype of the parameters; the logit scale and bias are always float32.

    >>> import jax, numpy as np
    >>> from flax import nnx
    >>> from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig
    >>> tower = dict(width=8, layers=1, heads=2, mlp_width=16)
    >>> text = TextConfig(**tower, vocab_size=16, context_length=4, eos_token_id=15)
    >>> config = CLIPConfig(vision=VisionConfig(**tower, image_size=8, patch_size=4), text=text, embed_dim=6)
    >>> model = CLIP(config, rngs=nnx.Rngs(0))
    >>> jax.jit(CLIP.encode_image)(model, np.zeros((3, 8, 8, 3), np.uint8)).shape
    (3, 6)
    >>> jax.jit(CLIP.encode_text)(model, np.array([[14, 2, 15, 15]])).shape
    (1, 6)
    """

    def __init__(
        self,
        config: CLIPConfig,
        *,
        rngs: nnx.Rngs,
        initial: Initial = "clip",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ) -> None:
        build = Builder(rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        self.config = config
        vision, text, size = config.vision, config.text, config.embed_dim
        self.vision = None if vision is None else VisionTower(vision, build, embed_dim=size, initial=initial)
        self.text = None if text is None else TextTower(text, build, embed_dim=size, initial=initial)
        scale, bias = config.logit_scale_init, config.logit_bias_init
        self.logit_scale = None if scale is None else nnx.Param(jnp.asarray(scale, jnp.float32))
        self.logit_bias = None if bias is None else nnx.Param(jnp.asarray(bias, jnp.float32))

    @property
    def temperature(self) -> Float[Array, ""] | None:
        """The divisor of the cosines in the contrastive loss: 1 / exp(logit_scale), float32; None for one tower."""
        return None if self.logit_scale is None else jnp.exp(-self.logit_scale[...])

    def encode_image(
        self, pixels: Shaped[Array | np.ndarray, "b height width 3"], *, normalize: bool = True
    ) -> Float[Array, "b embed_dim"]:
        """Embeds images.

        Args:
          pixels: NHWC, shape (b, image_size, image_size, 3). uint8 in [0, 255] is scaled to [0, 1] and normalised
            with the model's mean and std; floats are taken as normalised.
          normalize: whether to scale rows to unit length.

        Returns:
          Embeddings, shape (b, embed_dim), float32.

        Raises:
          ValueError: another shape or dtype, or a model without a vision tower.
        """
        if self.vision is None:
            raise ValueError("the model has no vision tower")
        pixels, size = jnp.asarray(pixels), self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise ValueError(f"pixels have shape {pixels.shape}, expected (n, {size}, {size}, 3): NHWC")
        if pixels.dtype == jnp.uint8:
            pixels = normalized(pixels, mean=self.config.image_mean, std=self.config.image_std)
        elif not jnp.issubdtype(pixels.dtype, jnp.floating):
            raise ValueError(f"pixels are {pixels.dtype}, expected uint8 or an already normalised float")
        return _finish(_encode(self.vision, pixels), normalize)

    def encode_text(
        self, ids: Int[Array | np.ndarray, "b l"], *, normalize: bool = True
    ) -> Float[Array, "b embed_dim"]:
        """Embeds captions.

        Args:
          ids: tokens as a tokenizer of `load_tokenizer` returns them, integers of shape (b, l), l at most
            `context_length`. An id outside the vocabulary makes its row NaN. A model that is not causal
            (SigLIP) reads the padding too and needs full rows.
          normalize: whether to scale rows to unit length.

        Returns:
          Embeddings, shape (b, embed_dim), float32.

        Raises:
          ValueError: another shape or dtype, or a model without a text tower.
        """
        if self.text is None:
            raise ValueError("the model has no text tower")
        ids, longest = jnp.asarray(ids), self.text.config.context_length
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= longest:
            raise ValueError(f"ids have shape {ids.shape}, expected (n, 1 to {longest}): the context length")
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids are {ids.dtype}, expected int32")
        return _finish(_encode(self.text, ids.astype(jnp.int32)), normalize)


def normalized(
    pixels: UInt8[Array, "... 3"], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "... 3"]:
    """Normalises pixels in [0, 255]: scaled to [0, 1], less the mean, over the standard deviation."""
    return (pixels.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def _encode(tower: VisionTower | TextTower, rows: Shaped[Array, ...]) -> Float[Array, "b d"]:
    """Applies the tower under Auto axes, since its reshapes break the rules of Explicit ones."""
    sharding = jax.typeof(rows).sharding
    if not sharding.mesh.explicit_axes:
        return tower(rows)
    structure, state = nnx.split(tower)
    automatic = jax.sharding.auto_axes(
        lambda state, rows: nnx.merge(structure, state)(rows),
        axes=sharding.mesh.explicit_axes,
        out_sharding=NamedSharding(sharding.mesh, P(sharding.spec[0], None)),
    )
    return automatic(state, rows)


def _finish(emb_bd: Float[Array, "b d"], normalize: bool) -> Float[Array, "b d"]:
    if not normalize:
        return emb_bd
    # rsqrt of a clamped square, not a division by a norm: its gradient is finite for a zero row too.
    squares = jnp.sum(jnp.square(emb_bd), axis=-1, keepdims=True)
    return emb_bd * jax.lax.rsqrt(jnp.maximum(squares, _SMALLEST))
