"""Options of `plan`: what a run will take."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import require, require_positive

Planned = Literal["embed", "score", "select", "reshard"]
_Config = Annotated[
    str | None, tyro.conf.arg(metavar="[CONFIG]", help_behavior_hint="(or a command after --)")
]
_Which = Annotated[tuple[Planned, ...], tyro.conf.arg(help_behavior_hint="(default: all that the file sets)")]
_HERE = "(default: as here)"
_Int = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_HERE)]
_Float = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=_HERE)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Tells what embed, score, select and reshard will read, hold in memory, compute, write, and how long it takes.

    Plans the commands that a --config file sets, or one command with its options after "--". The time comes from some
    ten seconds of measuring on this machine: the kernels on its devices, reading a sample of the pool. Exits with
    status 2, and says what to change, if something can't fit in memory or on the disk.
    """

    config: tyro.conf.Positional[_Config] = None
    """The --config file of the run."""
    commands: _Which = ()
    """Which of the commands to plan."""
    processes: int = 1
    """Plan for so many machines like this one, a process on each."""
    devices: _Int = None
    """Devices of a process."""
    memory_gb: _Float = None
    """GiB of memory of a machine."""
    device_memory_gb: _Float = None
    """GiB of memory of a device that has its own."""
    calibrate: bool = True
    """Measure on this machine; without it there are no times."""

    def __post_init__(self) -> None:
        require_positive(self, "processes", *(["devices"] if self.devices is not None else []))
        for name in ("memory_gb", "device_memory_gb"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a number above 0")
