"""The time that a run takes: a line of `_run.jsonl` for every unit, with the same keys from every command."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.runs.records import UnitTimes

_MOST_LINES = 1_000_000  # of a file that may be anybody's


class Stopwatch:
    """Measures a process's units in the order in which they are done.

    Args:
      process: this process's index.
    """

    def __init__(self, process: int) -> None:
        self._process, self._last, self._lock = process, time.monotonic(), threading.Lock()

    def lap(self, rows: int, **seconds: float) -> UnitTimes:
        """The times of a unit that is done but for its writing.

        Args:
          rows: how many it has: pairs, images or samples.
          seconds: "read", in reading and decompressing, wherever that was done; "wait", for data with the devices
            idle; "compute", with the devices at work.

        Returns:
          the times, with rows a second since the unit before, or since the watch's start.
        """
        with self._lock:
            now = time.monotonic()
            took, self._last = max(now - self._last, 1e-6), now
        rate = round(rows / took, 1)
        return UnitTimes(
            rows=rows,
            rows_per_second=rate,
            process=self._process,
            seconds=seconds,
            resident_bytes=_peak_memory(),
            device_bytes=_peak_device_memory(),
        )


class Seconds(dict[str, float]):
    """Seconds by what they were spent on."""

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Adds the block's."""
        start = time.monotonic()
        try:
            yield
        finally:
            self[name] = self.get(name, 0.0) + time.monotonic() - start


def finished_now(times: UnitTimes, unit: str, written: float) -> UnitTimes:
    """The times of a unit whose files have just been written, in `written` seconds."""
    seconds = {**times.seconds, "write": written}
    return dataclasses.replace(times, time=now(), unit=unit, seconds=seconds)


def append(path: str, times: UnitTimes) -> None:
    """Appends one line to a local file, with the time where it has none."""
    append_line(path, (times if times.time else dataclasses.replace(times, time=now())).to_json())


def append_line(path: str, line: Mapping[str, object]) -> None:
    """Appends one line of any content to a local file."""
    # A full disk stops the run where results are written; times are not worth it. One write to a file that is
    # opened to append: lines of several processes don't mix.
    with contextlib.suppress(OSError), open(storage.Folder(path).inner, "ab", buffering=0) as file:
        file.write(f"{json.dumps(line)}\n".encode())


def now() -> float:
    """The time of a line, in seconds since 1970."""
    return round(time.time(), 3)


def _peak_memory() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _peak_device_memory() -> int | None:
    if "jax" not in sys.modules:
        return None
    devices = [device.memory_stats() or {} for device in sys.modules["jax"].local_devices()]
    return max((stats["peak_bytes_in_use"] for stats in devices if "peak_bytes_in_use" in stats), default=None)


def read(path: str) -> list[UnitTimes]:
    """The units of a `_run.jsonl`, in the order in which they were done; lines of anything else are passed over."""
    if not storage.exists(path):
        return []
    lines = storage.read_bytes(path).decode(errors="replace").splitlines()[-_MOST_LINES:]
    return [times for times in map(_parse, lines) if times is not None]


def _parse(line: str) -> UnitTimes | None:
    try:
        return UnitTimes.from_json(json.loads(line))
    except (InputError, ValueError, RecursionError, OverflowError):
        return None
