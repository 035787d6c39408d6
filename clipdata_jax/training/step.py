"""The contrastive step: symmetric InfoNCE over the global batch and the training state.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from clipdata_jax.models import CLIP
from clipdata_jax.runtime import parallel

Params = dict[str, Array | np.ndarray]

LOGIT_SCALE = "logit_scale"
# A temperature below 0.01 makes training unstable; CLIP clips it there.
_MAX_LOGIT_SCALE = math.log(100)


class TrainState(NamedTuple):
    """The state of training, as in a checkpoint.

    Attributes:
      params: float32 arrays by the parameters' dotted paths in the model.
      opt_state: the optimiser's moments and counts.
      step: number of steps done, int32.
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def contrastive_loss(
    image_emb: Float[Array | np.ndarray, "b d"],
    text_emb: Float[Array | np.ndarray, "b d"],
    logit_scale: float | Float[Array | np.ndarray, ""],
) -> Float[Array, ""]:
    """Computes the symmetric cross-entropy of matching a batch's images and captions.

        L = -1/2b sum_i [ log softmax_j(e^s f_i.g_j)_i + log softmax_j(e^s f_j.g_i)_i ]

    The loss of CLIP, Radford et al. 2021, figure 3.

    Args:
      image_emb: f, unit rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit rows, shape (b, d); row i is the caption of image i.
      logit_scale: s, the logarithm of the inverse temperature.

    Returns:
      L, float32 scalar, in nats, at least 0; log(b) if all embeddings are equal.

    Raises:
      ValueError: the shapes differ.

    >>> import numpy as np
    >>> from clipdata_jax.training import contrastive_loss
    >>> images, texts = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.0, 1.0]])
    >>> round(float(contrastive_loss(images, texts, 0.0)), 3)
    0.449
    """
    if image_emb.shape != text_emb.shape:
        raise ValueError(f"shapes differ: images {image_emb.shape}, texts {text_emb.shape}")
    f_bd, g_bd = image_emb.astype(jnp.float32), text_emb.astype(jnp.float32)
    logits = jnp.einsum("id,jd->ij", f_bd, g_bd, precision="highest") * jnp.exp(logit_scale)
    sums_b = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    # Not the diagonal of the logits, whose rows are sharded over processes: extracting it takes collectives in a
    # branch, which XLA on CPUs may reorder with others, and gloo then aborts the process.
    pair_b = jnp.einsum("id,id->i", f_bd, g_bd, precision="highest") * jnp.exp(logit_scale)
    return jnp.mean(sums_b / 2 - pair_b)


def split_model(model: CLIP) -> tuple[Params, Callable[[Params], CLIP]]:
    """Splits a model into its parameters and a function that rebuilds the model from them.

    Args:
      model: the model; it is not modified.

    Returns:
      The parameters as arrays by dotted path, and the function from such parameters to a model.

    >>> from importlib.resources import files
    >>> from clipdata_jax import load_clip, training
    >>> params, merge = training.split_model(load_clip(files("clipdata_jax") / "demo" / "model"))
    >>> params["text.projection.kernel"].shape
    (128, 128)
    >>> merge(params).config.embed_dim
    128
    """
    structure, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    names = {path: ".".join(map(str, path)) for path, _ in flat}

    def merge(params: Params) -> CLIP:
        return nnx.merge(structure, nnx.from_flat_state([(path, params[name]) for path, name in names.items()]))

    return {names[path]: variable[...] for path, variable in flat}, merge


def init_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Creates the state before the first step, replicated over a mesh.

    Args:
      params: from `split_model`; their buffers are copied.
      optimizer: initialises its state from them.
      mesh: the run's devices.

    Returns:
      The state, of step 0.

    >>> import jax, jax.numpy as jnp
    >>> from clipdata_jax import training
    >>> optimizer = training.adamw(learning_rate=0.1, warmup=0, steps=10, weight_decay=0.0)
    >>> state = training.init_state({"scale": jnp.ones(2)}, optimizer, jax.make_mesh((1,), ("data",)))
    >>> int(state.step)
    0
    """
    replicated = NamedSharding(mesh, P())

    def start(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    # Via the host: all processes have the same parameters, and donating the state must not free the caller's.
    return jax.jit(start, out_shardings=replicated)(jax.device_get(params))


def make_step(
    merge: Callable[[Params], CLIP], optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Array]]:
    """Creates a jitted training step on `contrastive_loss`.

    Args:
      merge: from parameters to a model, from `split_model`.
      optimizer: from gradients to updates.
      mesh: a mesh with an Auto axis "data".

    Returns:
      A function of the state, pixels, uint8 (b, size, size, 3), and ids, int32 (b, context), that returns the next
      state and the loss before the step. Rows are sharded over "data"; the state is replicated and donated. The
      temperature is clipped to at least 0.01.

    >>> import jax, numpy as np
    >>> from flax import nnx
    >>> from clipdata_jax import training
    >>> from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig
    >>> tower = dict(width=8, layers=1, heads=2, mlp_width=16)
    >>> text = TextConfig(**tower, vocab_size=16, context_length=4, eos_token_id=15)
    >>> config = CLIPConfig(vision=VisionConfig(**tower, image_size=8, patch_size=4), text=text, embed_dim=6)
    >>> model, auto = CLIP(config, rngs=nnx.Rngs(0)), jax.sharding.AxisType.Auto
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(auto,))
    >>> optimizer = training.adamw(learning_rate=1e-3, warmup=0, steps=1, weight_decay=0.1)
    >>> params, merge = training.split_model(model)
    >>> step = training.make_step(merge, optimizer, mesh)
    >>> pixels, ids = np.zeros((4, 8, 8, 3), np.uint8), np.full((4, 4), 15, np.int32)
    >>> _, loss = jax.eval_shape(step, training.init_state(params, optimizer, mesh), pixels, ids)
    >>> loss.shape
    ()
    """
    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(parallel.AXIS))

    def loss_of(params: Params, pixels: UInt8[Array, "b h w 3"], ids: Int[Array, "b l"]) -> Float[Array, ""]:
        model = merge(params)
        return contrastive_loss(model.encode_image(pixels), model.encode_text(ids), params[LOGIT_SCALE])

    def step(
        state: TrainState, pixels: UInt8[Array, "b h w 3"], ids: Int[Array, "b l"]
    ) -> tuple[TrainState, Float[Array, ""]]:
        loss, gradient = jax.value_and_grad(loss_of)(state.params, pixels, ids)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = dict(optax.apply_updates(state.params, updates))
        params[LOGIT_SCALE] = jnp.minimum(params[LOGIT_SCALE], _MAX_LOGIT_SCALE)
        return TrainState(params, opt_state, state.step + 1), loss

    return jax.jit(
        step, in_shardings=(replicated, rows, rows), out_shardings=(replicated, replicated), donate_argnums=0
    )
