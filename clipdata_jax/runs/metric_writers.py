"""Writers of a run's figures for TensorBoard and Weights & Biases, which are extras."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from clipdata_jax import storage
from clipdata_jax.errors import InputError, install_extra

_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class MetricWriter(Protocol):
    """Takes the figures of steps, in their order."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the figures of a step, by name; "/" groups them."""

    def close(self) -> None:
        """Writes what is left."""


def check_writers(names: Sequence[str], out: str) -> None:
    """Raises InputError unless the writers of these names are installed and can write beside `out`."""
    for name in names:
        if importlib.util.find_spec(_MODULES[name]) is None:
            raise InputError(f"--log {name} needs {_MODULES[name]}, which is not installed; {install_extra(name)}")
        if not storage.Folder(out).is_local:
            raise InputError(f"--log {name} writes local files beside the checkpoints, and --out {out} is not local")


def open_writer(name: str, out: str, *, first: int, options: Mapping[str, Any]) -> MetricWriter:
    """Opens the writer of a run in the local folder `out`.

    Args:
      name: "tensorboard" or "wandb".
      out: of the run.
      first: steps done before; a writer continues there.
      options: of the run, to be shown with it.

    Raises:
      InputError: wandb can't begin a run.
    """
    folder = storage.Folder(out).inner
    return _TensorBoard(folder, first) if name == "tensorboard" else _Wandb(folder, options)


class _TensorBoard:
    """Event files in the folder `tensorboard`."""

    def __init__(self, folder: str, first: int) -> None:
        from tensorboardX import SummaryWriter

        # Steps that were done after the last checkpoint are done, and written, again.
        self._writer = SummaryWriter(storage.join(folder, "tensorboard"), purge_step=first + 1 if first else None)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run whose id comes from the folder's path, so that a resumed one continues it. WANDB_MODE may be "offline"."""

    def __init__(self, folder: str, options: Mapping[str, Any]) -> None:
        import wandb

        path = storage.absolute(folder)
        try:
            self._run = wandb.init(
                project="clipdata",
                name=path.rpartition("/")[2],
                id=hashlib.sha256(path.encode()).hexdigest()[:16],
                resume="allow",
                dir=folder,
                config=dict(options),
            )
        except wandb.Error as error:
            first_line = (str(error).splitlines() or [""])[0]
            raise InputError(f"--log wandb: {first_line}; run `wandb login`, or set WANDB_MODE=offline") from error

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()
