"""The device mesh, the start of a many-process run, padding, and process-local rows as global arrays."""

from __future__ import annotations

import dataclasses

import numpy as np

from clipdata_jax.config import Workers
from clipdata_jax.errors import InputError

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Share:
    """This process's share of the units of work: every count-th one from index on."""

    index: int = 0
    count: int = 1


def start(workers: Workers) -> Share:
    """Starts this process's part of a run: must come before anything touches a device.

    `--worker i/n` needs no other process; `--coordinator` joins a `jax.distributed` run.

    Raises:
      InputError: the coordinator can't be reached, or jax was already in use.
    """
    if (share := workers.share()) is not None:
        return Share(*share)
    if workers.coordinator is None:
        return Share()
    import jax

    try:
        jax.distributed.initialize(workers.coordinator, workers.num_processes, workers.process_id)
    except RuntimeError as error:
        raise InputError(
            f"--coordinator {workers.coordinator}: process {workers.process_id} could not join the run"
            f" ({str(error).splitlines()[0]}); start process 0 there, with the same --num-processes"
        ) from error
    return Share(jax.process_index(), jax.process_count())
