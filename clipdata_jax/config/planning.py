"""Options of `plan`: what a run will take."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from clipdata_jax.config.base import require, require_positive
from clipdata_jax.errors import InputError

PLANNED = (
    "embed", "score", "sensitivity", "select", "filter", "norm-sim-d", "reshard", "train", "evaluate",
)  # fmt: skip
_UNPLANNED = {
    "uids": "it reads its files once and takes seconds for millions of uids",
    "report": "it looks at scores and the pictures that it shows, which takes seconds to minutes",
    "verify": "it reads once what it checks, as fast as the disk does",
    "demo": "it takes a minute, and with --train about ten",
    "plan": "it takes some ten seconds for each command",
}
_Config = Annotated[
    str | None, tyro.conf.arg(metavar="[CONFIG]", help_behavior_hint="(or a command after --)")
]
_Which = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="COMMANDS...", help_behavior_hint="(default: all that the file sets)"),
]
_HERE = "(default: as here)"
_Int = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_HERE)]
_Float = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=_HERE)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Tells what commands will read, hold in memory, compute and write, and how long it takes.

    Plans the commands that a --config file sets, or one command with its options after "--": embed, score, sensitivity,
    select, filter, norm-sim-d, reshard, train and evaluate; the others are short. The time comes from some ten seconds
    of measuring each on this machine: the kernels on its devices, reading a sample of the pool. Exits with status 2,
    and says what to change, if something can't fit in memory or on the disk.
    """

    config: tyro.conf.Positional[_Config] = None
    """The --config file of the run."""
    commands: _Which = ()
    """Which of the file's commands to plan."""
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
        for name in self.commands:
            require_planned(name, "--commands")
        require_positive(self, "processes", *(["devices"] if self.devices is not None else []))
        for name in ("memory_gb", "device_memory_gb"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a number above 0")


def require_planned(name: str, where: str) -> None:
    """Raises InputError, which says why if there is a reason, unless a command of that name is planned."""
    if name in PLANNED:
        return
    planned = ", ".join(PLANNED)
    if name in _UNPLANNED:
        raise InputError(f"{name} needs no plan: {_UNPLANNED[name]}; planned are {planned}")
    raise InputError(f"{where} is {name!r}, expected one of {planned}")
