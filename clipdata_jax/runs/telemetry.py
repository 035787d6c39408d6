"""Where a run's time goes: a line of `run.jsonl` for every unit, with the same keys from every command."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipdata_jax import storage

SECONDS = ("read", "wait", "compute", "write")
# Of a stranger's file, as much as is looked at.
_MOST_LINES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit of work that is done.

    Attributes:
      time: when, in seconds since 1970.
      rows: of it.
      rows_per_second: of its process, since that one's unit before.
      seconds: what it took, by `SECONDS`; reading and writing may have gone on beside other units' work.
    """

    time: float
    rows: float
    rows_per_second: float
    seconds: Mapping[str, float]

    def is_plausible(self) -> bool:
        """Whether all of it are numbers that a chart can show."""
        values = (self.time, self.rows, self.rows_per_second, *self.seconds.values())
        return all(math.isfinite(value) and 0 <= value < 1e15 for value in values)


class Stopwatch:
    """Writes what a process's units took, in the order in which they are done.

    Args:
      process: this process's index.
    """

    def __init__(self, process: int) -> None:
        self._process, self._last, self._lock = process, time.monotonic(), threading.Lock()

    def line(self, rows: int, **seconds: float) -> dict[str, Any]:
        """What `work.Output.complete` takes of a unit that is done but for its writing.

        Args:
          rows: how many it has: pairs, images or samples.
          seconds: "read", in reading and decompressing, wherever that was done; "wait", for data with the devices
            idle; "compute", with the devices at work.

        Returns:
          `process`, `rows`, `rows_per_second` since the unit before or the watch's start, `<name>_seconds`, and the
          most memory so far: `resident_bytes` of the process, mapped files included, and `device_bytes` where a device
          tells.
        """
        with self._lock:
            now = time.monotonic()
            took, self._last = max(now - self._last, 1e-6), now
        return {
            "process": self._process,
            "rows": rows,
            "rows_per_second": round(rows / took, 1),
            **{f"{name}_seconds": round(spent, 3) for name, spent in seconds.items()},
            **_memory(),
        }


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


def timed(line: dict[str, Any]) -> dict[str, Any]:
    """A line with the time."""
    return {"time": round(time.time(), 3), **line}


def to_lines(lines: Sequence[dict[str, Any]]) -> bytes:
    """What a `run.jsonl` of these lines holds."""
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def append(path: str, line: dict[str, Any]) -> None:
    """Appends one line, with the time, to a local file."""
    # A full disk stops the run where results are written; times are not worth it. One write to a file that is
    # opened to append: lines of several processes don't mix.
    with contextlib.suppress(OSError), open(storage.Folder(path).inner, "ab", buffering=0) as file:
        file.write(to_lines([timed(line)]))


def _memory() -> dict[str, int]:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"resident_bytes": most if sys.platform == "darwin" else most * 1024}
    if "jax" in sys.modules:
        devices = [device.memory_stats() or {} for device in sys.modules["jax"].local_devices()]
        if peaks := [stats["peak_bytes_in_use"] for stats in devices if "peak_bytes_in_use" in stats]:
            found["device_bytes"] = max(peaks)
    return found


def read(folder: str) -> list[Unit]:
    """The units of a run in the order in which they were done; lines that tell of no unit are passed over."""
    at = storage.Folder(folder)
    if not at.exists(storage.TIMES):
        return []
    lines = at.read_bytes(storage.TIMES).decode(errors="replace").splitlines()[-_MOST_LINES:]
    return [unit for unit in map(_unit, lines) if unit is not None]


def _unit(line: str) -> Unit | None:
    try:
        told = json.loads(line)
        seconds = {name: float(told.get(f"{name}_seconds", 0.0)) for name in SECONDS}
        unit = Unit(float(told["time"]), float(told["rows"]), float(told["rows_per_second"]), seconds)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return unit if unit.is_plausible() else None
