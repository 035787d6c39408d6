"""`clipdata plan`: what commands read, hold in memory and write; time from the units that a run has done."""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipdata_jax import config, storage
from clipdata_jax.commands.plan import plan_estimates
from clipdata_jax.commands.plan.plan_estimates import Estimate, size_text
from clipdata_jax.config.base import as_tuple
from clipdata_jax.config.planning import PLANNED
from clipdata_jax.embedding import single_file
from clipdata_jax.errors import InputError
from clipdata_jax.runs import telemetry
from clipdata_jax.runs.records import UnitTimes
from clipdata_jax.runtime.console import counted

_FOLDERS = ("embed", "score", "entries", "reshard", "train")  # commands that fill one


def run(options: config.Plan, given: config.Run | None = None) -> dict[str, dict[str, object]]:
    """Prints an estimate of each command.

    Returns:
      command -> its lines by their keys, its units, and the bytes that it reads, holds and writes; {"awaits": another}
      of a command whose input that one still has to write.

    Args:
      options: what to plan, and for which machines.
      given: the command to plan, if no config file is named.

    Raises:
      InputError: something can't fit: it says what, and what would; or an input is missing or wrong.
    """
    if (options.config is None) == (given is None):
        raise InputError(
            "name a config file, or a command with its options after --: clipdata plan -- score POOL --out TABLE"
        )
    whole = given or config.load_run(options.config or "")
    planned = {name: one for name in PLANNED if (one := getattr(whole, name.replace("-", "_"))) is not None}
    names = [name for name in planned if name in options.commands or not options.commands]
    if not names:
        wanted = ", ".join(options.commands or PLANNED)
        raise InputError(f"{options.config}: its Run sets none of {wanted}")
    memory = _host_memory() if options.memory_gb is None else int(options.memory_gb * 2**30)
    made: dict[str, dict[str, object]] = {}
    for name in names:
        if maker := _awaited(name, planned):
            print(f"{name}: reads what {maker} still has to write; plan it after that\n")
            made[name] = {"awaits": maker}
            continue
        found = plan_estimates.estimate(name, planned[name], memory)
        lines = _lines(name, found, planned[name].out or ".", options.processes, memory)
        width = max(len(key) for key, _ in lines)
        print("\n".join([name, *(f"  {key:<{width}}  {text}" for key, text in lines)]), end="\n\n", flush=True)
        sizes = {"read_bytes": found.read, "memory_bytes": found.memory, "written_bytes": found.written}
        made[name] = {**dict(lines), **sizes, "units": found.units}
    return made


def _awaited(name: str, planned: Mapping[str, Any]) -> str:
    """The command of the plan that still has to write what this one reads, if there is such."""
    values = [value for option, value in vars(planned[name]).items() if option != "out"]
    paths = [path for value in values for path in as_tuple(value) if isinstance(path, str)]
    for maker in (one for one in _FOLDERS if one in planned and one != name):
        out: str = planned[maker].out.rstrip("/")
        reads = any(f"{path.rstrip('/')}/".startswith(f"{out}/") for path in paths)
        if reads and not storage.exists(f"{out}/{storage.MANIFEST}"):
            return maker
    return ""


def _host_memory() -> int:
    """Bytes of memory that processes here may use: the machine's, or the container's."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.exists() and (text := path.read_text().strip()).isdigit():
            whole = min(whole, int(text))
    return whole


def _disk_free(out: str) -> int | None:
    """Bytes free where an output goes; None in a store."""
    at = storage.Folder(out)
    if not at.is_local:
        return None
    path = Path(at.inner).absolute()
    return shutil.disk_usage(next(one for one in (path, *path.parents) if one.exists())).free


def _lines(name: str, found: Estimate, out: str, processes: int, memory: int) -> list[tuple[str, str]]:
    """The key and text of each line about a command.

    Raises:
      InputError: the disk is too full.
    """
    free, written, notes = _disk_free(out), f"{size_text(found.written)} to {out}", list(found.notes)
    if free is not None and found.written > free:
        raise InputError(
            f"{name}: writes {written}, where {size_text(free)} are free; choose another --out, or make room"
        )
    each = ""
    if found.units is None and not found.rows_timed and processes > 1:
        notes.append("one process does all of it")
    elif found.units is not None and processes > 1:
        each = f", {size_text(found.read / processes)} a process"
        if found.units < processes:
            has = "has" if found.units == 1 else "have"
            notes.append(f"only {found.units:,} of {processes:,} processes {has} a unit to work on")
    return [
        ("work", found.work),
        ("read", f"{size_text(found.read)}{each}"),
        ("memory", f"{size_text(found.memory)} a process, of {size_text(memory)}"),
        ("write", written if free is None else f"{written} ({size_text(free)} free)"),
        ("time", _time(name, found, out, processes)),
        *((f"note {number}", note) for number, note in enumerate(notes, start=1)),
    ]


def _time(name: str, found: Estimate, out: str, processes: int) -> str:
    """The time that is left, extrapolated from the units or steps that were done."""
    if not found.rows_timed:
        return "not measured: it stops nowhere to measure it"
    times = telemetry.read(_times_file(name, out))
    noun = "step" if found.units is None else "unit"
    if not times:
        return f"not measured: run it with --stop-after 3 first, then plan it again ({noun}s)"
    first = {one.process: one for one in reversed(times)}  # these also start and compile
    timed = [one for one in times if one is not first[one.process]] or times
    rate = sum(one.rows for one in timed) / max(_busy_seconds(timed), 1e-9)
    # A step that was done again after a kill counts once.
    left = max(0.0, found.rows_timed - sum(one.rows for one in {(one.unit, one.step): one for one in times}.values()))
    if found.units is None:
        working, on, measured = 1, "", f"{counted(len(timed), 'line')} on the processes of that run"
    else:
        working, on = min(processes, found.units), f" on {counted(processes, 'process')}" if processes > 1 else ""
        measured = f"{counted(len(timed), noun)} on {counted(len(first), 'process')}"
    return (
        f"about {_time_text(left / rate / working)} left for {left:,.0f} of {found.rows_timed:,} rows{on}, from"
        f" {measured}, {rate:,.{0 if rate >= 10 else 2}f} rows a second each"
        + (", with the time to compile in it" if timed is times else "")
    )


def _times_file(name: str, out: str) -> str:
    if name == "norm-sim-d":
        return storage.beside(out, storage.TIMES)
    if name == "dedup":
        return storage.join(f"{out}.work", storage.TIMES)
    in_parts = name == "embed" and single_file.is_file(out)
    return storage.join(single_file.parts_folder(out) if in_parts else out, storage.TIMES)


def _busy_seconds(times: Iterable[UnitTimes]) -> float:
    """The time in which each process was at work, summed over all; units of one may have overlapped."""
    total, ends = 0.0, collections.defaultdict[int, float](float)
    timed = [one for one in times if one.rows_per_second > 0]
    for one in sorted(timed, key=_start):
        total += max(0.0, one.time - max(_start(one), ends[one.process]))
        ends[one.process] = max(one.time, ends[one.process])
    return total


def _start(one: UnitTimes) -> float:
    return one.time - one.rows / one.rows_per_second


def _time_text(seconds: float) -> str:
    """A duration: "45 s", "12 min", "3.5 h", "12 days"."""
    if seconds < 1:
        return "1 s"
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3_600, 48)):
        if (count := seconds / length) < most:
            return f"{count:.0f} {unit}" if count >= 100 else f"{count:.2g} {unit}"
    return f"{seconds / 86_400:,.1f} days"
