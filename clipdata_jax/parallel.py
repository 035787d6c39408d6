"""The device mesh, the start of a run of many processes, padding, and process-local rows as global arrays."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipdata_jax.config import Workers
from clipdata_jax.errors import InputError

if TYPE_CHECKING:
    import jax
    from jax import Device
    from jax.sharding import Mesh

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of the units of work: every count-th one from index on."""

    index: int = 0
    count: int = 1


ALONE = Share()
# A process that is done waits for the others before it leaves: they may have days of work left.
_LAST_WAIT_SECONDS = 30 * 24 * 3600


def start(workers: Workers) -> Share:
    """Starts this process's part of a run: must come before anything touches a device.

    `--worker i/n` needs no other process; `--coordinator` joins a `jax.distributed` run, in which a lost process takes
    the others with it. What the machines say of themselves is looked at by `launch.detect`, not here.

    Raises:
      InputError: the coordinator can't be reached, or jax was already in use.
    """
    if (share := workers.share()) is not None:
        return Share(*share)
    if workers.coordinator in (None, "none"):
        return ALONE
    import jax

    found = workers.coordinator == "auto"
    before = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            None if found else workers.coordinator,
            workers.num_processes,
            workers.process_id,
            shutdown_timeout_seconds=_LAST_WAIT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        who, advice = f"process {workers.process_id}", "start process 0 there, with the same --num-processes"
        if found:
            who, advice = "this process", "give --coordinator none to work alone, or HOST:PORT"
        raise InputError(
            f"--coordinator {workers.coordinator}: {who} could not join the run ({_first_line(error)}); {advice}"
        ) from error
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # jax has put its own in C there, which ends nothing
    return Share(jax.process_index(), jax.process_count())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def data_mesh(devices: Sequence[Device] | None = None) -> Mesh:
    """The mesh of one axis "data" over this run's devices; Auto axes, under which Flax model code runs.

    Args:
      devices: the devices to use; default: all, those of other processes too.
    """
    import jax
    from jax.sharding import AxisType

    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


def local_mesh() -> Mesh:
    """The mesh over this process's own devices: for work that needs no other process."""
    import jax

    return data_mesh(jax.local_devices())


def replicated() -> jax.NamedSharding:
    """On every device of this process, whole: where a model's parameters belong."""
    import jax

    return jax.NamedSharding(local_mesh(), jax.P())


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with rows of zeros added at the end, so that it has `rows` of them.

    Raises:
      ValueError: it has more already.
    """
    missing = rows - len(array)
    if missing < 0:
        raise ValueError(f"{len(array)} rows don't fit into {rows}")
    return np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)]) if missing else array


def to_global(local_rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Rows that this process holds as its part of one array sharded over "data" on all processes.

    Args:
      local_rows: this process's rows, the same number in every process; they must divide over its devices.
      mesh: the run's mesh.
    """
    import jax
    from jax.sharding import PartitionSpec as P

    return jax.make_array_from_process_local_data(jax.NamedSharding(mesh, P(AXIS)), local_rows)
