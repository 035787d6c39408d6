"""The processes of a run, the device mesh, padding, and process-local rows as global arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import logging
import signal
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdata_jax.config import Workers
from clipdata_jax.errors import InputError
from clipdata_jax.runtime import console, stopping

if TYPE_CHECKING:
    import jax
    from jax import Device
    from jax.sharding import Mesh

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Share:
    """A process's share of the units of work: every count-th one from index on.

    >>> list(range(7))[Share(1, 3).index :: Share(1, 3).count]
    [1, 4]
    """

    index: int = 0
    count: int = 1


ALONE = Share()
# A process that is done waits for the others, which may have days of work left.
_LAST_WAIT_SECONDS = 30 * 24 * 3600
_STOPPED, _LEFT, _STOP_STEP = "clipdata/stopped", "clipdata/left", "clipdata/stop-step"
_LONG = 1000 * _LAST_WAIT_SECONDS
_GPUS = ("/dev/nvidia[0-9]*", "/dev/dxg")  # the second under WSL
_SECONDS_BETWEEN_LOOKS = 0.05
_GRACE_SECONDS = 0.2  # from a process's last message to its end


def start(workers: Workers) -> Share:
    """Starts this process's part of a run; must be called before anything uses a device.

    `--worker i/n` needs no other process; `--coordinator` joins a `jax.distributed` run, in which a lost process ends
    the others. `launch.detect` reads the environment, not this function.

    Raises:
      InputError: the coordinator can't be reached, or jax was already in use.

    >>> from clipdata_jax.config import Workers
    >>> start(Workers(worker="1/3"))
    Share(index=1, count=3)
    """
    if (share := workers.share()) is not None:
        return Share(*share)
    if workers.coordinator in (None, "none"):
        return ALONE
    import jax

    found = workers.coordinator == "auto"
    if not can_join():
        raise InputError(
            f"--coordinator {workers.coordinator}: joint runs need jax 0.8.2 or newer, this is {jax.__version__};"
            " upgrade jax, or give each process its share by --worker I/N"
        )
    # Its handler of SIGTERM would replace ours, and end nothing.
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
    peers = _Peers(joined)
    if stopping.couple_to(peers):
        threading.Thread(target=peers.listen, name="peers", daemon=True).start()
    return joined


def can_join() -> bool:
    """Tells whether jax lets a process of a joint run wait for days, and handle SIGTERM itself: from 0.8.2 on."""
    import jax

    return hasattr(jax.config, "jax_enable_preemption_service")


class _Peers:
    """The other processes of a run, reached through jax's coordinator, which runs in the first process."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._client = _client()
        # A process that waits in C++ for another that has stopped ends by the clock, the first one after the others.
        self.seconds = 2.0 if share.index else 5.0

    def notify(self) -> None:
        self._client.key_value_set(_STOPPED, "", allow_overwrite=True)

    def leave_run(self) -> None:
        self.notify()  # this may run before the thread that does it
        if self._share.index:
            self._client.key_value_set(f"{_LEFT}/{self._share.index}", "")
            return
        for index in range(1, self._share.count):
            self._client.blocking_key_value_get(f"{_LEFT}/{index}", _LONG)
        time.sleep(_GRACE_SECONDS)

    def listen(self) -> None:
        """Waits until another process is stopped, then stops this one."""
        with contextlib.suppress(Exception):  # the run is over
            self._client.blocking_key_value_get(_STOPPED, _LONG)
            if not stopping.asked():
                signal.pthread_kill(threading.main_thread().ident or 0, stopping.PEER_SIGNAL)


def stop_step(step: int, *, ahead: int) -> int | None:
    """Agrees with the other processes of the run on the step to stop after, once a signal has asked one of them to.

    Every process calls it before every step. No process may be more than `ahead` steps from another, so that all of
    them learn of the first one's proposal before they pass it.

    Args:
      step: number of steps that this process has begun.
      ahead: steps that another process may have begun meanwhile.

    Returns:
      The number of steps after which all processes stop; None if none is asked to.

    >>> stop_step(7, ahead=3) is None
    True
    """
    import jax

    if jax.process_count() == 1:
        return step if stopping.asked() else None
    client = _client()
    if stopping.asked():
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process has proposed one
            client.key_value_set(_STOP_STEP, str(step + ahead))
    try:
        return int(client.key_value_try_get(_STOP_STEP))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def meet(name: str) -> None:
    """Waits until all processes of the run have come here, without a collective, so that a signal ends the waiting.

    Args:
      name: of the meeting, another one each time.

    Raises:
      KeyboardInterrupt: a signal asked this process to stop before all were here.

    >>> meet("alone")
    """
    import jax

    if jax.process_count() == 1:
        return
    folder, client = f"clipdata/met/{name}/", _client()
    client.key_value_set(f"{folder}{jax.process_index()}", "")
    while len(client.key_value_dir_get(folder)) < jax.process_count():
        if stopping.asked():
            raise stopping.Stopped
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _client() -> Any:
    """The client of jax's coordinator, which runs in the first process."""
    from jax._src import distributed  # it has no public name; Orbax imports it from here, too

    return distributed.global_state.client


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@functools.cache
def warn_of_unused_gpu() -> None:
    """Says once, on standard error, that jax runs on the CPU unasked though there is an NVIDIA GPU."""
    import jax

    log = logging.getLogger("jax._src.xla_bridge")
    log.addFilter(_is_other_news)
    platform = jax.default_backend()
    log.removeFilter(_is_other_news)
    asked = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platform == "cpu" and not asked and any(map(glob.glob, _GPUS)):
        install = f"pip install 'jax[cuda12]=={jax.__version__}'"
        text = f"An NVIDIA GPU is present, but jax {jax.__version__} runs on the CPU; to use the GPU: {install}"
        console.say(text, log=True)


def _is_other_news(record: logging.LogRecord) -> bool:
    return "GPU may be present" not in record.getMessage()  # jax's own line says not what to do


def data_mesh(devices: Sequence[Device] | None = None) -> Mesh:
    """Makes the mesh of one axis "data" over this run's devices; an Auto axis, under which Flax model code runs.

    Args:
      devices: the devices to use; default: all, those of other processes too.

    >>> data_mesh().axis_names
    ('data',)
    """
    import jax
    from jax.sharding import AxisType

    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


def local_mesh() -> Mesh:
    """Makes the mesh over this process's own devices, for work that needs no other process.

    >>> local_mesh().axis_names
    ('data',)
    """
    import jax

    return data_mesh(jax.local_devices())


def replicated() -> jax.NamedSharding:
    """Returns the sharding of a model's parameters: whole on every device of this process.

    >>> replicated().is_fully_replicated
    True
    """
    import jax

    return jax.NamedSharding(local_mesh(), jax.P())


def computed_on() -> str:
    """Formats the devices of this run for a summary: "Computed on 1 CPU device", "Computed on 2 GPUs (NVIDIA H100)".

    >>> computed_on().startswith("Computed on ")
    True
    """
    import jax

    devices = jax.devices()
    platform = devices[0].platform.upper()
    if platform == "CPU":
        return f"Computed on {console.counted(len(devices), 'CPU device')}"
    return f"Computed on {console.counted(len(devices), platform)} ({devices[0].device_kind})"


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Pads an array with rows of zeros to `rows` rows.

    Raises:
      ValueError: it has more.

    >>> pad_rows(np.ones((1, 2)), 3).tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    """
    missing = rows - len(array)
    if missing < 0:
        raise ValueError(f"{len(array)} rows don't fit into {rows}")
    return np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)]) if missing else array


def to_global(local_rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Makes one array, sharded over "data" on all processes, of the rows that each of them holds.

    Args:
      local_rows: this process's rows, the same number in every process; a multiple of its devices.
      mesh: the run's mesh.

    >>> to_global(np.ones((len(data_mesh().local_devices), 2)), data_mesh()).shape[1]
    2
    """
    import jax

    sharding = jax.NamedSharding(mesh, jax.P(AXIS))
    rows: jax.Array = jax.make_array_from_process_local_data(sharding, local_rows)
    return rows
