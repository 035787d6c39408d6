"""What a command will take, and the machine that it is planned for. Imports no jax."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from clipdata_jax import config, helpers
from clipdata_jax.data import files
from clipdata_jax.errors import InputError

_GIB = 2**30


class Probe:
    """A process beside this one that has jax: it says what devices there are, reads models' shapes, and measures."""

    def __init__(self) -> None:
        self._pool: helpers.Pool | None = None

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of `plan_probe` returns there.

        Raises:
          InputError: the process ended without an answer.
        """
        from clipdata_jax.pipeline import plan_probe

        if self._pool is None:
            self._pool = helpers.Pool(1)
        try:
            return self._pool.submit(plan_probe.quietly, function, *arguments).result()
        except BrokenProcessPool as error:
            raise InputError(
                "measuring ended abruptly, for want of memory most likely; plan with --no-calibrate"
            ) from error

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a process.

    Attributes:
      platform: "cpu", "gpu", "tpu"; "?" where nobody looked.
      count: how many.
      memory: bytes that each has of its own, None where it is the host's.
    """

    platform: str = "?"
    count: int = 1
    memory: int | None = None


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a plan is for.

    Attributes:
      processes: how many machines, a process on each.
      memory: bytes of memory of each.
      devices: of each.
      probe: measures on this machine, which is like them.
      calibrate: whether it may.
    """

    processes: int
    memory: int
    devices: Devices
    probe: Probe
    calibrate: bool

    @property
    def shares_memory(self) -> bool:
        """Whether the devices' memory is the host's."""
        return self.devices.memory is None


@dataclasses.dataclass(frozen=True)
class Times:
    """How long a command takes, in seconds of the slowest process.

    Attributes:
      parts: what -> seconds that it takes by itself.
      start: until the first row can be worked on: imports, models, compiling.
      work: after the start; less than the sum of the parts where they run side by side.
    """

    parts: dict[str, float]
    start: float
    work: float

    @classmethod
    def one_by_one(cls, start: float, **parts: float) -> Times:
        """Parts that wait for each other."""
        named = {name.replace("_", " "): seconds for name, seconds in parts.items()}
        return cls(named, start, sum(parts.values()))

    @property
    def total(self) -> float:
        """Seconds altogether."""
        return self.start + self.work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a command takes; bytes and operations of all processes together, memory of one.

    Attributes:
      command: its name.
      rows: pairs, or samples.
      work: rows, shards, units and groups, in words.
      read: bytes to read.
      written: bytes to write.
      out: where to.
      memory: bytes of a process at most.
      device_memory: bytes of a device at most.
      operations: floating-point operations.
      times: None where nothing was measured.
      rate: how fast it goes once it is under way, in words; default: rows a second.
      dealt: whether the processes share out what is read.
      alone: whether one process does all, however many there are.
      again: what is read again and again, in words.
      notes: what else there is to know.
    """

    command: str
    rows: int
    work: str
    read: int
    written: int
    out: str
    memory: int
    device_memory: int = 0
    operations: float = 0.0
    times: Times | None = None
    rate: str = ""
    dealt: bool = True
    alone: bool = False
    again: str = ""
    notes: tuple[str, ...] = ()


def this_machine(options: config.Plan, probe: Probe, *, look: bool) -> Machine:
    """The machine that options describe: this one where they say nothing else.

    Args:
      options: of the command.
      probe: measures.
      look: whether the devices matter.
    """
    from clipdata_jax.pipeline import plan_probe

    devices = Devices(*probe.ask(plan_probe.devices)) if options.calibrate and look else Devices()
    memory = options.device_memory_gb
    devices = dataclasses.replace(
        devices,
        count=options.devices or devices.count,
        memory=devices.memory if memory is None else int(memory * _GIB),
    )
    own = host_memory() if options.memory_gb is None else int(options.memory_gb * _GIB)
    return Machine(options.processes, own, devices, probe, options.calibrate)


def host_memory() -> int:
    """Bytes of memory that processes here may use: the machine's, or the container's."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.exists() and (text := path.read_text().strip()).isdigit():
            whole = min(whole, int(text))
    return whole


def disk_free(out: str) -> int | None:
    """Bytes free where an output goes; None where nobody can tell."""
    if not files.is_local(out):
        return None
    path = Path(files.filesystem(out)[1]).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def idle_note(processes: int, units: int, unit: str = "unit") -> tuple[str, ...]:
    """A word on processes that have nothing to do, if there are such."""
    has = "has" if units == 1 else "have"
    return (
        (f"only {units:,} of {processes:,} processes {has} a {unit} to work on",) if processes > units else ()
    )


def refuse_large(command: str, what: str, needed: float, there: int | None, advice: str) -> None:
    """Raises InputError, which says what would fit, if something takes more bytes than there are."""
    if there is not None and needed > there:
        raise InputError(
            f"{command}: {what} takes {size_text(needed)}, and there are {size_text(there)}; {advice}"
        )


def per_second(count: float, what: str, seconds: float) -> str:
    """A rate in words: "1,200 rows a second"."""
    rate = count / max(seconds, 1e-9)
    return f"{rate:,.0f} {what} a second" if rate >= 10 else f"{rate:.2g} {what} a second"


def size_text(size: float) -> str:
    """Bytes in words: "1.5 GB"."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.2g} {unit}"
        size /= 1000
    return f"{size:,.1f} PB"


def time_text(seconds: float) -> str:
    """Seconds in words: "45 s", "12 min", "3.5 h", "12 days"."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3_600, 48)):
        if (count := seconds / length) < most:
            return f"{count:.0f} {unit}" if count >= 100 else f"{count:.2g} {unit}"
    return f"{seconds / 86_400:,.1f} days"
