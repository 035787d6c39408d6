"""What several commands' options share: types, checks, the share of the work that a process takes."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Literal

import tyro

from clipdata_jax.errors import InputError

OnBad = Literal["stop", "skip"]
Folder = Annotated[str, tyro.conf.arg(metavar="FOLDER")]
File = Annotated[str, tyro.conf.arg(metavar="FILE")]


def unset(meaning: str) -> object:
    """What the help says of an option that is not set; what a --config file sets is shown as it is."""
    return tyro.conf.arg(
        help_behavior_hint=lambda shown: f"(default: {meaning if shown in ('', 'None') else shown})"
    )


NONE = unset("none")
Tars = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TARS...", help_behavior_hint="(default: none)")]
SomeTars = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TARS...", help_behavior_hint="(at least one)")]
SomeTables = Annotated[
    tuple[str, ...], tyro.conf.arg(metavar="TABLES...", help_behavior_hint="(at least one)")
]
Profile = Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), NONE]
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def require(condition: bool, flag: str, found: object, expected: str) -> None:
    """Raises InputError, naming the flag, what was found and what is expected, unless the condition holds."""
    if not condition:
        raise InputError(f"--{flag.replace('_', '-')} is {found!r}, expected {expected}")


def require_positive(options: object, *names: str) -> None:
    """Raises InputError unless the named options are at least 1."""
    for name in names:
        for value in as_tuple(getattr(options, name)):
            require(value >= 1, name, value, "a whole number of at least 1")


def require_temperature(t: float) -> None:
    """Raises InputError unless t is a temperature of CLIP: the logit scale itself, 100, would score nonsense."""
    expected = "a number above 0 and at most 1: 1/exp(logit scale) (OpenAI's CLIP models: 0.01)"
    require(0 < t <= 1, "temperature", t, expected)


def as_tuple(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def require_some(options: object, name: str, what: str) -> None:
    """Raises InputError if the named option is empty."""
    if not getattr(options, name):
        raise InputError(f"nothing to work on: name at least one {what}")


def split_assignment(text: str, flag: str) -> tuple[str, str]:
    """`name=path` in two parts; the name must be an identifier, since it becomes a column's name."""
    name, sign, path = text.partition("=")
    require(
        bool(sign and path and IDENTIFIER.fullmatch(name)), flag, text, "NAME=PATH with a plain word as NAME"
    )
    return name, path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """Divides the work among processes. Slurm steps and TPU slices are detected; nothing needs to be set there."""

    worker: Annotated[str | None, tyro.conf.arg(metavar="I/N"), NONE] = None
    """One of n independent processes, i from 0: takes every n-th unit of work (job arrays, spot machines)."""
    coordinator: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT"), unset("from Slurm or the TPU slice, else none")
    ] = None
    """Address of process 0 of a jax.distributed run; "auto": let jax find it; "none": work alone."""
    num_processes: Annotated[int | None, tyro.conf.arg(metavar="INT"), NONE] = None
    """Number of processes in that run; needs --coordinator HOST:PORT."""
    process_id: Annotated[int | None, tyro.conf.arg(metavar="INT"), NONE] = None
    """Index of this process in that run, from 0; needs --coordinator HOST:PORT."""

    def __post_init__(self) -> None:
        if self.worker is not None:
            match = re.fullmatch(r"(\d+)/(\d+)", self.worker)
            require(
                match is not None and int(match[1]) < int(match[2]),
                "worker",
                self.worker,
                '"i/n" with 0 <= i < n',
            )
            require(
                self.coordinator is None, "coordinator", self.coordinator, "nothing when --worker is given"
            )
        if self.coordinator in ("auto", "none"):
            for name in ("num_processes", "process_id"):
                expected = f"nothing with --coordinator {self.coordinator}"
                require(getattr(self, name) is None, name, getattr(self, name), expected)
            return
        together = [value is None for value in (self.coordinator, self.num_processes, self.process_id)]
        if any(together) and not all(together):
            raise InputError(
                "--coordinator, --num-processes and --process-id belong together: give all three or none"
            )

    def share(self) -> tuple[int, int] | None:
        """(index, count) of `--worker i/n`, or None."""
        if self.worker is None:
            return None
        index, _, count = self.worker.partition("/")
        return int(index), int(count)
