"""The device mesh, the start of a run of many processes, padding, and process-local rows as global arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdata_jax.config import Workers
from clipdata_jax.errors import InputError
from clipdata_jax.runtime import stopping

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
_STOPPED, _PARTED = "clipdata/stopped", "clipdata/parted"
_LONG = 1000 * _LAST_WAIT_SECONDS
_GRACE_SECONDS = 0.2  # from a process's last word to its end


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
    # It would put its own handler of SIGTERM in place of ours, and end nothing.
    jax.config.update("jax_enable_preemption_service", False)
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
    joined = Share(jax.process_index(), jax.process_count())
    partners = _Partners(joined)
    if stopping.couple_to(partners):
        threading.Thread(target=partners.listen, name="partners", daemon=True).start()
    return joined


class _Partners:
    """The other processes of a run, spoken to through jax's coordinator, which lives in the first process."""

    def __init__(self, share: Share) -> None:
        from jax._src import distributed  # there is no public name for it; Orbax takes it from here, too

        self._share = share
        self._client: Any = distributed.global_state.client
        # Whoever waits in C++ for what another will never send is ended by the clock, the first one after the others.
        self.seconds = 2.0 if share.index else 5.0

    def tell(self) -> None:
        self._client.key_value_set(_STOPPED, "", allow_overwrite=True)

    def leave_run(self) -> None:
        self.tell()  # it may come to this before another thread does
        if self._share.index:
            self._client.key_value_set(f"{_PARTED}/{self._share.index}", "")
            return
        for index in range(1, self._share.count):
            self._client.blocking_key_value_get(f"{_PARTED}/{index}", _LONG)
        time.sleep(_GRACE_SECONDS)

    def listen(self) -> None:
        """Waits for another process to be stopped, and stops this one, too."""
        with contextlib.suppress(Exception):  # the run is over
            self._client.blocking_key_value_get(_STOPPED, _LONG)
            if not stopping.asked():
                signal.pthread_kill(threading.main_thread().ident or 0, stopping.PEER_SIGNAL)


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
