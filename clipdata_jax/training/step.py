"""The contrastive training step: gradients of the global batch's loss, the optimiser, and the training state.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from __future__ import annotations

import functools
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
from jaxtyping import Array, Bool, Float, Int, UInt8

from clipdata_jax.config.recipes import Precision
from clipdata_jax.models import CLIP
from clipdata_jax.runtime import parallel
from clipdata_jax.training.loss import contrastive_share, sigmoid_share

Params = dict[str, Array | np.ndarray]
Metrics = dict[str, Array]
# Pixels, ids and mask of this device's rows.
_Rows = tuple[Array, Array, Array]

LOGIT_SCALE, LOGIT_BIAS = "logit_scale", "logit_bias"
# A temperature below 0.01 makes training unstable; CLIP clips it there.
_MAX_LOGIT_SCALE = math.log(100)
# Numbers from which an array is worth sharding: what collectives of smaller ones cost is more than they save.
_LARGE = 2**14


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


def init_state(
    params: Params, optimizer: optax.GradientTransformation, mesh: Mesh, *, shard_params: bool = False
) -> TrainState:
    """Creates the state before the first step.

    Args:
      params: from `split_model`; their buffers are copied.
      optimizer: initialises its state from them.
      mesh: the run's devices.
      shard_params: as for `make_step`.

    Returns:
      The state, of step 0: replicated over the mesh, or its large arrays sharded.

    >>> import jax, jax.numpy as jnp
    >>> from clipdata_jax import training
    >>> optimizer = training.adamw(learning_rate=0.1, warmup=0, steps=10, weight_decay=0.0)
    >>> state = training.init_state({"scale": jnp.ones(2)}, optimizer, jax.make_mesh((1,), ("data",)))
    >>> int(state.step)
    0
    """

    def start(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    shardings = _shardings(jax.eval_shape(start, params), mesh, shard_params)
    # Via the host: all processes have the same parameters, and donating the state must not free the caller's.
    return jax.jit(start, out_shardings=shardings)(jax.device_get(params))


def whole_params(params: Params, mesh: Mesh) -> Params:
    """Copies parameters to the host, gathering those that are sharded; all processes of a run call it.

    >>> import jax, jax.numpy as jnp
    >>> from clipdata_jax import training
    >>> training.whole_params({"scale": jnp.ones(2)}, jax.make_mesh((1,), ("data",)))["scale"].tolist()
    [1.0, 1.0]
    """
    gather = jax.jit(lambda value: value, out_shardings=NamedSharding(mesh, P()))
    # One by one: the devices never hold all of them whole.
    return {name: jax.device_get(gather(value)) for name, value in params.items()}


def make_step(
    merge: Callable[[Params], CLIP],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    precision: Precision = "float32",
    remat: bool = False,
    microbatch: int | None = None,
    shard_params: bool = False,
) -> Callable[[TrainState, Any, Any, Any], tuple[TrainState, Metrics]]:
    """Creates a jitted training step on `contrastive_loss`, or `sigmoid_loss` for a model with a logit bias.

    Args:
      merge: from parameters to a model, from `split_model`.
      optimizer: from gradients to updates.
      mesh: a mesh with an Auto axis "data".
      precision: what the towers compute in. Parameters, moments, the last projections and the loss are float32.
      remat: whether the backward pass computes each layer again from its input, which takes a third more time and a
        fraction of the memory.
      microbatch: pairs that are embedded at a time, over all devices: a multiple of the devices that divides the
        batch. The embeddings of all come first, and each part is embedded again for its gradient, which is that of
        the whole batch (GradCache, Gao et al. 2021, arXiv:2101.06983). None: all at once.
      shard_params: whether each device keeps a part of every large parameter and of its moments, instead of all; the
        devices gather the parameters in every step.

    Returns:
      A function of the state, pixels, uint8 (b, size, size, 3), ids, int32 (b, context), and a mask, bool (b,), that
      returns the next state and metrics. Rows are sharded over "data"; masked ones count nowhere; the state is donated.
      The temperature is kept at least 0.01. The metrics, float32 scalars: "loss" and "temperature" before the step,
      "grad_norm" before any clipping, "pairs", the number of rows not masked.

    Raises:
      ValueError: (the returned function) the microbatch doesn't divide the batch, or doesn't divide over the devices.

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
    >>> pixels, ids, mask = np.zeros((4, 8, 8, 3), np.uint8), np.full((4, 4), 15, np.int32), np.ones(4, bool)
    >>> _, metrics = jax.eval_shape(step, training.init_state(params, optimizer, mesh), pixels, ids, mask)
    >>> sorted(metrics)
    ['grad_norm', 'loss', 'pairs', 'temperature']
    """
    rows = NamedSharding(mesh, P(parallel.AXIS))

    def step(
        state: TrainState, pixels: UInt8[Array, "b h w 3"], ids: Int[Array, "b l"], mask: Bool[Array, " b"]
    ) -> tuple[TrainState, Metrics]:
        parts = _parts(len(mask), microbatch, mesh)
        specs = {name: _spec(value, mesh, shard_params) for name, value in state.params.items()}
        own = functools.partial(_loss_and_gradient, merge, specs, precision=precision, remat=remat, parts=parts)
        data = P(parallel.AXIS)
        # Within, each device computes by itself: XLA has no choice of what to gather. Gradients are summed once, at
        # the end; checking what varies over devices would sum them where they arise, in loops too.
        mapped = jax.shard_map(
            own, mesh=mesh, in_specs=(specs, (data, data, data)), out_specs=(data, specs), check_vma=False
        )
        shares, gradient = mapped(state.params, (pixels, ids, mask))
        metrics = {
            "loss": shares.sum(),
            "grad_norm": optax.tree.norm(gradient),
            "temperature": jnp.exp(-state.params[LOGIT_SCALE]),
            "pairs": mask.sum(dtype=jnp.float32),
        }
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = dict(optax.apply_updates(state.params, updates))
        params[LOGIT_SCALE] = jnp.minimum(params[LOGIT_SCALE], _MAX_LOGIT_SCALE)
        new = TrainState(params, opt_state, state.step + 1)
        shardings = _shardings((new, metrics), mesh, shard_params)
        made: tuple[TrainState, Metrics] = jax.lax.with_sharding_constraint((new, metrics), shardings)
        return made

    return jax.jit(step, in_shardings=(None, rows, rows, rows), donate_argnums=0)


def _loss_and_gradient(
    merge: Callable[[Any], CLIP],
    specs: dict[str, P],
    params: Params,
    rows: _Rows,
    *,
    precision: Precision,
    remat: bool,
    parts: int,
) -> tuple[Float[Array, 1], dict[str, Array]]:
    """A device's share of the loss and, from all devices, its part of the gradient."""

    def encode(params: dict[str, Array], pixels: Array, ids: Array) -> tuple[Array, Array]:
        model = merge(params)
        for tower in (model.vision, model.text):
            assert tower is not None
            tower.dtype, tower.remat = jnp.dtype(precision), remat
        return model.encode_image(pixels), model.encode_text(ids)

    pixels, ids, mask_b = rows
    whole = {name: _gather(jnp.asarray(value), specs[name]) for name, value in params.items()}
    scalars = {name: whole[name] for name in (LOGIT_SCALE, LOGIT_BIAS) if name in whole}

    def share(emb: tuple[Array, Array], scalars: dict[str, Array]) -> Array:
        if LOGIT_BIAS in scalars:
            return sigmoid_share(*emb, mask_b, scalars[LOGIT_SCALE], scalars[LOGIT_BIAS], axis=parallel.AXIS)
        return contrastive_share(*emb, mask_b, scalars[LOGIT_SCALE], axis=parallel.AXIS)

    loss_and_gradient = jax.value_and_grad(share, argnums=(0, 1))
    if parts == 1:
        emb, backward = jax.vjp(lambda params: encode(params, pixels, ids), whole)
        loss, (emb_gradient, of_scalars) = loss_and_gradient(emb, scalars)
        (gradient,) = backward(emb_gradient)
    else:
        cut = functools.partial(jax.tree.map, lambda x: x.reshape(parts, -1, *x.shape[1:]))
        emb = jax.lax.map(lambda part: encode(whole, *part), cut((pixels, ids)))
        emb = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), emb)
        loss, (emb_gradient, of_scalars) = loss_and_gradient(emb, scalars)

        def add(total: dict[str, Array], part: tuple[Any, Any]) -> tuple[dict[str, Array], None]:
            (pixels, ids), emb_gradient = part
            _, backward = jax.vjp(lambda params: encode(params, pixels, ids), whole)
            return jax.tree.map(jnp.add, total, backward(emb_gradient)[0]), None

        zeros = jax.tree.map(jnp.zeros_like, whole)
        gradient, _ = jax.lax.scan(add, zeros, (cut((pixels, ids)), cut(emb_gradient)))
    gradient = {**gradient, **of_scalars}  # the towers don't use them
    return loss[None], {name: _sum_devices(value, specs[name]) for name, value in gradient.items()}


def _parts(batch: int, microbatch: int | None, mesh: Mesh) -> int:
    if microbatch is None:
        return 1
    devices = mesh.shape[parallel.AXIS]
    if microbatch < 1 or batch % microbatch or microbatch % devices:
        raise ValueError(
            f"microbatch is {microbatch}, expected a divisor of the batch of {batch} pairs and a multiple of the"
            f" {devices} devices"
        )
    return batch // microbatch


def _spec(value: Any, mesh: Mesh, shard_params: bool) -> P:
    """The sharding of a parameter or moment: along its longest axis that divides over the devices, if it is large."""
    devices = mesh.shape[parallel.AXIS]
    fitting = [axis for axis, size in enumerate(value.shape) if size % devices == 0]
    if not shard_params or not fitting or math.prod(value.shape) < _LARGE:
        return P()
    longest = max(fitting, key=lambda axis: value.shape[axis])
    return P(*[None] * longest, parallel.AXIS)


def _shardings(tree: Any, mesh: Mesh, shard_params: bool) -> Any:
    return jax.tree.map(lambda value: NamedSharding(mesh, _spec(value, mesh, shard_params)), tree)


def _gather(value: Array, spec: P) -> Array:
    return value if spec == P() else jax.lax.all_gather(value, parallel.AXIS, axis=len(spec) - 1, tiled=True)


def _sum_devices(value: Array, spec: P) -> Array:
    """The sum over devices: all of it, or this device's part."""
    if spec == P():
        return jax.lax.psum(value, parallel.AXIS)
    return jax.lax.psum_scatter(value, parallel.AXIS, scatter_dimension=len(spec) - 1, tiled=True)
