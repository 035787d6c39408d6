"""Traces of the devices' work, on demand: a few steps of a run, once the first one has compiled."""

from __future__ import annotations

import os
from typing import Self

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.runtime import console


class Profiler:
    """Traces some steps of a run, from the second on, with `jax.profiler`; with no folder it does nothing.

    Args:
      folder: where the trace goes, for TensorBoard or Perfetto; local.
      steps: how many are traced.

    Raises:
      InputError: the folder can't be made, or is not local.
    """

    def __init__(self, folder: str | None, steps: int) -> None:
        self._folder, self._steps, self._begun, self._running = folder, steps, 0, False
        if folder is None:
            return
        if not storage.Folder(folder).is_local:
            raise InputError(f"--profile {folder}: is not local; name a local folder")
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--profile {folder}: can't be made ({(error.strerror or '').lower()}); name a local folder"
            ) from error

    def step(self) -> None:
        """Marks the start of a step: a unit, a batch."""
        if self._folder is None:
            return
        import jax

        self._begun += 1
        if self._begun == 2:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif self._begun == self._steps + 2:
            self._stop()

    def _stop(self) -> None:
        import jax

        self._running = False
        jax.profiler.stop_trace()
        traced = console.counted(min(self._begun - 1, self._steps), "step")
        console.say(f"the trace of {traced} is in {self._folder}", log=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()
        elif self._folder is not None and self._begun < 2:
            console.say(f"--profile {self._folder}: nothing traced, for there was no second step", log=True)
