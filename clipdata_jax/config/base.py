"""Types and checks that the options of several commands share."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated, TypeVar, get_type_hints

import tyro

from clipdata_jax.errors import InputError

T = TypeVar("T")
Folder = Annotated[str, tyro.conf.arg(metavar="FOLDER")]
File = Annotated[str, tyro.conf.arg(metavar="FILE")]


def unset(meaning: str) -> object:
    """Makes the help describe the default of an unset option; values set by a --config file are shown as they are."""
    return tyro.conf.arg(help_behavior_hint=lambda shown: f"(default: {meaning if shown in ('', 'None') else shown})")


NONE = unset("none")
Tars = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TARS...", help_behavior_hint="(default: none)")]
SomeTables = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TABLES...", help_behavior_hint="(at least one)")]
Profile = Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), NONE]
StopAfter = Annotated[int | None, tyro.conf.arg(metavar="N"), NONE]
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


_PATHS = re.compile("FILE|FOLDER|PATH|SOURCES|TABLES|TARS")


@functools.cache
def path_options(options: type) -> dict[str, bool]:
    """The options of a class that are paths, as their metavars say -> whether they may be given as NAME=PATH."""
    found: dict[str, bool] = {}
    for name, kind in get_type_hints(options, include_extras=True).items():
        for metavar in (getattr(one, "metavar", None) for one in getattr(kind, "__metadata__", ())):
            if metavar and _PATHS.search(metavar):
                found[name] = "=" in metavar
    return found


def require(condition: bool, flag: str, found: object, expected: str) -> None:
    """Raises InputError, naming the flag, what was found and what is expected, unless the condition holds."""
    if not condition:
        raise InputError(f"--{flag.replace('_', '-')} is {found!r}, expected {expected}")


def require_positive(options: object, *names: str) -> None:
    """Raises InputError unless the named options are at least 1."""
    for name in names:
        for value in as_tuple(getattr(options, name)):
            require(value >= 1, name, value, "a whole number of at least 1")


def require_stop_after(stop_after: int | None) -> None:
    """Raises InputError unless --stop-after is not given, or at least 1."""
    require(stop_after is None or stop_after >= 1, "stop_after", stop_after, "a whole number of at least 1")


def require_temperature(t: float) -> None:
    """Raises InputError unless 0 < t <= 1, which rejects the logit scale itself, 100, given by mistake."""
    expected = "a number above 0 and at most 1: 1/exp(logit_scale), 0.01 for OpenAI's CLIP models"
    require(0 < t <= 1, "temperature", t, expected)


def as_tuple(value: T | tuple[T, ...]) -> tuple[T, ...]:
    """A single value or several, as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def require_some(options: object, name: str, noun: str) -> None:
    """Raises InputError if the named option is empty."""
    if not getattr(options, name):
        raise InputError(f"no input: give at least one {noun}")


def split_assignment(text: str, flag: str) -> tuple[str, str]:
    """Splits `name=path`; the name must be an identifier, since it becomes part of a column's name."""
    name, sign, path = text.partition("=")
    good = bool(sign and path and IDENTIFIER.fullmatch(name))
    advice = name_advice(name) if sign and path else ""
    require(good, flag, text, f"NAME=PATH where NAME consists of letters, digits and _{advice}")
    return name, path


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion such as "; did you mean --model?", or nothing.

    >>> did_you_mean("selct", ["score", "select"]), did_you_mean("x", ["score"])
    ('; did you mean select?', '')
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def name_advice(name: str) -> str:
    """Advice such as "; try my_target" for a name that is not an identifier; "" if nothing like it is one.

    >>> name_advice("my-target")
    '; try my_target'
    """
    tried = as_identifier(name)
    return f"; try {tried}" if tried.strip("_") and tried != name else ""


def as_identifier(name: str) -> str:
    """The identifier most like a name: accents dropped, other characters replaced by _.

    >>> as_identifier("vit-b-32"), as_identifier("ziel-\u00fc"), as_identifier("3d")
    ('vit_b_32', 'ziel_u', '_3d')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    tried = re.sub(r"\W", "_", plain if plain.strip() else name, flags=re.ASCII)
    return tried if IDENTIFIER.fullmatch(tried) else f"_{tried}"


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
            require(match is not None and int(match[1]) < int(match[2]), "worker", self.worker, '"i/n" with 0 <= i < n')
            require(self.coordinator is None, "coordinator", self.coordinator, "no value with --worker")
        if self.coordinator in ("auto", "none"):
            for name in ("num_processes", "process_id"):
                expected = f"no value with --coordinator {self.coordinator}"
                require(getattr(self, name) is None, name, getattr(self, name), expected)
            return
        together = [value is None for value in (self.coordinator, self.num_processes, self.process_id)]
        if any(together) and not all(together):
            raise InputError("--coordinator, --num-processes and --process-id belong together: give all three or none")

    def share(self) -> tuple[int, int] | None:
        """(index, count) of `--worker i/n`, or None."""
        if self.worker is None:
            return None
        index, _, count = self.worker.partition("/")
        return int(index), int(count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryCommand:
    """What every command takes."""

    config: Annotated[str | None, tyro.conf.arg(metavar="FILE.py"), NONE] = None
    """Take all options from the file's get_config(); flags override it."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object to standard output at the end, and all text to standard error."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print errors only: no summary, no progress."""
