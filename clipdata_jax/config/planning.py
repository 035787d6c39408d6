"""Options of `plan`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from clipdata_jax.config.base import File, require, require_positive, unset
from clipdata_jax.errors import InputError

PLANNED = ("embed", "score", "entries", "dedup", "select", "filter", "norm-sim-d", "reshard", "train", "evaluate")
_ConfigFile = Annotated[str | None, tyro.conf.arg(metavar="[CONFIG]", help_behavior_hint="(or a command after --)")]
_Commands = Annotated[tuple[str, ...], tyro.conf.arg(metavar="COMMANDS..."), unset("all that the file sets")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimates what commands read, hold in memory and write, and how long they take, without running them.

    Plans the commands that a config file sets, or one command with its options after "--": embed, score, entries,
    dedup, select, filter, norm-sim-d, reshard, train or evaluate. Times are extrapolated from the units that a run has
    done: do some of them with --stop-after first. Exits with status 2, and says what to change, if something can't fit
    in memory or on the disk.
    """

    config: tyro.conf.Positional[_ConfigFile] = None
    """Config file of the run."""
    commands: _Commands = ()
    """Commands of the file to plan."""
    processes: int = 1
    """Machines like this one, with a process on each."""
    memory_gb: Annotated[float | None, tyro.conf.arg(metavar="FLOAT"), unset("this machine's")] = None
    """GiB of memory of a machine."""

    def __post_init__(self) -> None:
        for name in self.commands:
            require_planned(name, "--commands")
        require_positive(self, "processes")
        expected = "a number above 0"
        require(self.memory_gb is None or self.memory_gb > 0, "memory_gb", self.memory_gb, expected)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSteps:
    """Runs all commands that a config file sets, each continued where it was stopped; what is complete is passed over.

    The order is embed, score, entries, dedup, select, filter, norm-sim-d, uids, reshard, report, export, train,
    evaluate, compare, verify, demo. The first that fails ends the run with its exit status; give the same command
    again to go on from there. A table at the end says what each has made.
    """

    config: tyro.conf.Positional[File]
    """Config file of the run."""


def require_planned(name: str, where: str) -> None:
    """Raises InputError unless a command of that name can be planned."""
    if name not in PLANNED:
        raise InputError(f"{where} is {name!r}, expected one of {', '.join(PLANNED)}")
