"""The training loop: batches in a fixed order, checkpoints, and bit-exact resumption."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Int32

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.models import CLIP
from clipdata_jax.runtime import parallel, stopping
from clipdata_jax.training import order
from clipdata_jax.training.step import TrainState, init_state, make_step, split_model

KEPT_CHECKPOINTS = 2
_UNFINISHED = ".orbax-checkpoint-tmp"
# Steps dispatched before the first one's loss is read: keeps the devices busy, and bounds what is in flight.
_IN_FLIGHT = 2
_SECONDS_TO_SAVE = 15.0


@dataclasses.dataclass(frozen=True)
class TrainingPairs:
    """Decoded images and tokenised captions, in memory.

    Attributes:
      pixels: n arrays, or one array, of uint8 (size, size, 3): 12 kB each at 64 pixels a side.
      ids: tokens, shape (n, context), int32.
    """

    pixels: Sequence[np.ndarray] | np.ndarray
    ids: Int32[np.ndarray, "n context"]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gathers the pixels and tokens of some rows."""
        return np.stack([self.pixels[row] for row in rows]), self.ids[rows]


def train(
    model: CLIP,
    pairs: TrainingPairs,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    checkpoints: str | None = None,
    checkpoint_every: int = 200,
    report: Callable[[int, float | None], None] = lambda step, loss: None,
) -> CLIP:
    """Trains a model with the contrastive loss, resuming from the last checkpoint if there is one.

    On the same devices the parameters after `steps` steps are the same bits whether or not the run was stopped
    in between. Every process of a run calls this with the same arguments and pairs. One that trains alone writes a
    checkpoint when a signal asks it to stop.

    Args:
      model: the initial model; it is not modified.
      pairs: the training set.
      optimizer: e.g. `adamw(...)` for as many steps.
      steps: total number of steps.
      batch_size: pairs in a batch, over all devices and processes; the number of devices must divide it.
      seed: of the order of the pairs.
      mesh: a mesh of the run's devices with an Auto axis "data".
      checkpoints: a folder; None writes no checkpoints. The last two are kept.
      checkpoint_every: steps between checkpoints; the last step has one too.
      report: called after each step, with a delay of some steps, with its number from 1 and its loss; in a resumed
        run first with the checkpoint's step and None.

    Returns:
      The trained model.

    Raises:
      InputError: fewer pairs than a batch, a batch that doesn't divide over the devices, or a loss that is not
        finite.
      KeyboardInterrupt: a signal asked the process to stop.

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
    >>> pairs = training.TrainingPairs(np.zeros((4, 8, 8, 3), np.uint8), np.full((4, 4), 15, np.int32))
    >>> setting = dict(optimizer=optimizer, steps=1, batch_size=4, seed=0, mesh=mesh)
    >>> trained = training.train(model, pairs, **setting, report=lambda step, loss: print(step, round(loss, 3)))
    1 1.386
    """
    _check_batch(len(pairs), batch_size, mesh)
    params, merge = split_model(model)
    state = init_state(params, optimizer, mesh)
    step_function = make_step(merge, optimizer, mesh)
    # Processes that train together get a signal at different steps, and can't write a checkpoint each.
    alone = checkpoints is not None and jax.process_count() == 1
    with (
        open_checkpoints(checkpoints) as manager,
        stopping.deferred(_SECONDS_TO_SAVE) if alone else contextlib.nullcontext(),
    ):
        state, done = _restore(manager, state)
        if done:
            report(done, None)
        pending: collections.deque[tuple[int, jax.Array]] = collections.deque()
        for step in range(done, steps):
            rows = order.batch_rows(seed=seed, step=step, pairs=len(pairs), batch_size=batch_size)
            batch = (parallel.to_global(part, mesh) for part in pairs.take(_own(rows)))
            state, loss = step_function(state, *batch)
            pending.append((step + 1, loss))
            stopped = alone and stopping.asked()
            due = manager is not None and ((step + 1) % checkpoint_every == 0 or step + 1 == steps or stopped)
            # A checkpoint must not hold the parameters after a loss that is not finite.
            _settle(pending, report, 0 if due or step + 1 == steps else _IN_FLIGHT)
            if due:
                save(manager, step + 1, state)
            if stopped:
                break
        if alone and stopping.asked():
            raise stopping.Stopped
    return merge(jax.device_get(state.params))


def _check_batch(pairs: int, batch_size: int, mesh: Mesh) -> None:
    devices = mesh.shape[parallel.AXIS]
    if batch_size % devices:
        raise InputError(f"--batch-size is {batch_size}, expected a multiple of the {devices} devices of the run")
    if pairs < batch_size:
        raise InputError(
            f"found {pairs} pairs to train on, expected at least a batch of {batch_size}; give more pairs, or a smaller"
            " --batch-size"
        )


def _own(rows: np.ndarray) -> np.ndarray:
    """The process's share of a batch; the division is arbitrary, since the loss is of the whole batch."""
    each = len(rows) // jax.process_count()
    return rows[jax.process_index() * each :][:each]


def _settle(
    pending: collections.deque[tuple[int, jax.Array]], report: Callable[[int, float | None], None], most: int
) -> None:
    while len(pending) > most:
        step, loss = pending.popleft()
        if not math.isfinite(value := float(loss)):
            raise InputError(f"the loss is {value} at step {step}: training diverged; lower --learning-rate")
        report(step, value)


@contextlib.contextmanager
def open_checkpoints(folder: str | None) -> Iterator[Any]:
    """Opens a folder of checkpoints, of which the last two are kept; yields None for None."""
    if folder is None:
        yield None
        return
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT_CHECKPOINTS),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
    )
    # Orbax accepts neither "~" nor "file://".
    at = storage.Folder(folder)
    path = at.inner if at.is_local else folder
    with ocp.CheckpointManager(path, options=options) as manager:
        yield manager


def last_checkpoint(folder: str) -> int:
    """Returns the step of the newest checkpoint in a folder; 0 if there is none.

    >>> from clipdata_jax.training import last_checkpoint
    >>> last_checkpoint("checkpoints")
    0
    """
    with open_checkpoints(folder) as manager:
        return int(manager.latest_step() or 0)


def save(manager: Any, step: int, state: TrainState) -> None:
    """Writes a checkpoint, synchronously."""
    import orbax.checkpoint as ocp

    # Removed when the process is stopped; Orbax would remove it at the next start.
    temporary = f"{manager.directory}/{step}{_UNFINISHED}"
    if jax.process_index() == 0:
        stopping.temporary_files.add(temporary)
    manager.save(step, args=ocp.args.StandardSave(state))
    stopping.temporary_files.discard(temporary)


def _restore(manager: Any, state: TrainState) -> tuple[TrainState, int]:
    """Restores the newest checkpoint's state, sharded as `state` is, and its step; else returns `state` and 0."""
    if manager is None or manager.latest_step() is None:
        return state, 0
    import orbax.checkpoint as ocp

    restored = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
    return restored, int(restored.step)
