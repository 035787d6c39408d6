"""Checkpoints of training: written by Orbax in the background, and restored sharded as the state is."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

import jax

from clipdata_jax import storage
from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.runtime import stopping
from clipdata_jax.training.step import TrainState

_LATEST = 2
_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoints:
    """A folder of checkpoints, one for each saved step, every one whole or absent.

    The last two are kept, and those of every `keep_every`-th step. All processes of a run open it and save together.

    Args:
      folder: local path or URL; made if need be.
      keep_every: steps between checkpoints that are never removed; None for none.

    >>> import tempfile, jax.numpy as jnp
    >>> from clipdata_jax.training import Checkpoints, TrainState
    >>> state = TrainState({"scale": jnp.ones(2)}, (), jnp.int32(7))
    >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
    ...     checkpoints.save(7, state)
    ...     checkpoints.wait()
    ...     restored = checkpoints.restore(state)
    ...     print(checkpoints.latest, int(restored.step))
    7 7
    """

    def __init__(self, folder: str, *, keep_every: int | None = None) -> None:
        import orbax.checkpoint as ocp

        policies = ocp.checkpoint_managers
        kept: list[Any] = [policies.LatestN(_LATEST)]
        if keep_every is not None:
            kept.append(policies.EveryNSteps(keep_every))
        # Orbax accepts neither "~" nor "file://".
        at = storage.Folder(folder)
        self.folder = folder
        self._writing = ""
        self._manager: Any = ocp.CheckpointManager(
            at.inner if at.is_local else folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
            ),
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    @property
    def latest(self) -> int:
        """The step of the newest checkpoint, one that is being written included; 0 if there is none."""
        return int(self._manager.latest_step() or 0)

    def save(self, step: int, state: TrainState) -> None:
        """Begins to write a checkpoint, once the one before is written; the state may be donated afterwards.

        Raises:
          StorageError: this or the last checkpoint could not be written.
        """
        import orbax.checkpoint as ocp

        self.wait()
        if jax.process_index() == 0:
            # Removed when the process is stopped; Orbax would remove it at the next start.
            self._writing = f"{self._manager.directory}/{step}{_UNFINISHED}"
            stopping.temporary_files.add(self._writing)
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state))
        except Exception as error:
            raise self._not_written(step, error) from error

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          StorageError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(self.latest, error) from error
        stopping.temporary_files.discard(self._writing)

    def _not_written(self, step: int, error: Exception) -> StorageError:
        return StorageError(
            f"{self.folder}: the checkpoint of step {step} could not be written ({_first_line(error)}); free space or"
            " repair the disk, and give the same command again: it resumes from the checkpoint before"
        )

    def restore(self, state: TrainState) -> TrainState:
        """Restores the newest checkpoint, or returns `state` if there is none.

        Args:
          state: of the same shapes; its shardings are taken, whatever those of the checkpoint were.

        Raises:
          InputError: the checkpoint is of another model or optimiser, or can't be read.
        """
        if not (step := self.latest):
            return state
        import orbax.checkpoint as ocp

        name = f"{self.folder}: the checkpoint of step {step}"
        try:
            saved = _shapes(self._manager.item_metadata(step))
            if not (
                difference := _first_difference(saved, _shapes(ocp.tree.serialize_tree(state, keep_empty_nodes=True)))
            ):
                restored: TrainState = self._manager.restore(step, args=ocp.args.StandardRestore(state))
                return restored
        except Exception as error:
            raise InputError(
                f"{name} can't be read ({_first_line(error)}); delete the folder {step} in it to resume from the"
                " checkpoint before"
            ) from error
        raise InputError(f"{name} is of another model or optimiser ({difference}); choose another --out")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            self.wait()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[object, ...]]:
    """The shape and dtype of each array, by its dotted path."""
    import orbax.checkpoint as ocp

    flat = ocp.tree.to_flat_dict(tree)
    arrays = {".".join(map(str, path)): leaf for path, leaf in flat.items() if hasattr(leaf, "shape")}
    return {path: (*leaf.shape, str(leaf.dtype)) for path, leaf in arrays.items()}


def _first_difference(saved: dict[str, tuple[object, ...]], expected: dict[str, tuple[object, ...]]) -> str:
    for name in sorted({*saved, *expected}, key=lambda name: (not name.startswith("params."), name)):
        was, now = ("x".join(map(str, one.get(name, ("missing",)))) for one in (saved, expected))
        if was != now:
            return f"{name} is {was}, expected {now}"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
