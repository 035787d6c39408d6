"""The contrastive step: symmetric InfoNCE over the global batch, AdamW, and the state that it moves.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from clipdata_jax.models import CLIP
from clipdata_jax.runtime import parallel

Params = dict[str, Array]

LOGIT_SCALE = "logit_scale"
# A temperature below 0.01 makes training unstable; CLIP clips there.
_MAX_LOGIT_SCALE = math.log(100)


class TrainState(NamedTuple):
    """All that training changes: what a checkpoint holds.

    Attributes:
      params: a parameter's dotted path in the model -> float32 array.
      opt_state: the optimiser's moments and counts.
      step: int32, steps done.
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def contrastive_loss(
    image_emb: Float[Array, "b d"], text_emb: Float[Array, "b d"], logit_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """How badly a batch's images and captions find each other.

        L = -1/2b sum_i [ log softmax_j(e^s f_i.g_j)_i + log softmax_j(e^s f_j.g_i)_i ]

    The loss of CLIP, Radford et al. 2021, figure 3.

    Args:
      image_emb: f, unit rows, any float dtype; computed in float32.
      text_emb: g, unit rows; row i is the caption of image i.
      logit_scale: s, the logarithm of the inverse temperature.

    Returns:
      L, float32, in nats; log(b) for embeddings that tell nothing apart.

    Raises:
      ValueError: the shapes differ.
    """
    if image_emb.shape != text_emb.shape:
        raise ValueError(f"shapes differ: images {image_emb.shape}, texts {text_emb.shape}")
    f_bd, g_bd = image_emb.astype(jnp.float32), text_emb.astype(jnp.float32)
    logits = jnp.einsum("id,jd->ij", f_bd, g_bd, precision="highest") * jnp.exp(logit_scale)
    sums_b = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    # Not the diagonal of the logits, which are split over processes by rows: to cut it out of them takes collectives
    # in a branch, where XLA on CPUs lets them overtake others; gloo then aborts the process.
    pair_b = jnp.einsum("id,id->i", f_bd, g_bd, precision="highest") * jnp.exp(logit_scale)
    return jnp.mean(sums_b / 2 - pair_b)


def adamw(
    *, learning_rate: float, warmup: int, steps: int, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW as CLIP trains with it: linear warm-up, a cosine to zero, gradients of global norm at most 1.

    Decayed are arrays of two or more dimensions: matrices and embedding tables, not gains, biases, the class
    embedding and the logit scale.

    Args:
      learning_rate: the peak.
      warmup: steps until the peak.
      steps: all steps, the warm-up included.
      weight_decay: share of a weight that a step at learning rate 1 would take away.
    """
    rate = optax.cosine_decay_schedule(learning_rate, steps)
    if warmup:
        rate = optax.warmup_cosine_decay_schedule(learning_rate / warmup, learning_rate, warmup, steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b1=0.9, b2=0.98, eps=1e-6, weight_decay=weight_decay, mask=_is_decayed),
    )


def _is_decayed(params: Params) -> dict[str, bool]:
    return {name: value.ndim >= 2 for name, value in params.items()}


def split_model(model: CLIP) -> tuple[Params, Callable[[Params], CLIP]]:
    """A model's parameters as arrays by dotted path, and the function that makes a model of such arrays."""
    structure, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    names = {path: ".".join(map(str, path)) for path, _ in flat}

    def merge(params: Params) -> CLIP:
        return nnx.merge(
            structure, nnx.from_flat_state([(path, params[name]) for path, name in names.items()])
        )

    return {names[path]: variable[...] for path, variable in flat}, merge


def init_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, on every device of the mesh. The parameters' buffers are not shared with it."""
    replicated = NamedSharding(mesh, P())

    def start(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    # Through the host: every process has the same parameters, and donating the state leaves the caller's alone.
    return jax.jit(start, out_shardings=replicated)(jax.device_get(params))


def make_step(
    merge: Callable[[Params], CLIP], optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Array]]:
    """Compiles a step of training.

    Args:
      merge: parameters -> model, from `split_model`.
      optimizer: what turns gradients into updates.
      mesh: devices along the axis "data".

    Returns:
      (state, pixels uint8 (b, size, size, 3), ids int32 (b, context)) -> (state after it, loss before it). Rows
      are sharded over "data", the state is replicated; its buffers are given up (donated).
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
        step,
        in_shardings=(replicated, rows, rows),
        out_shardings=(replicated, replicated),
        donate_argnums=0,
    )
