"""`clipdata plan`: what commands read, hold in memory and write; time from the units that a run has done."""

from __future__ import annotations

import collections
import itertools
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clipdata_jax import config, storage
from clipdata_jax.commands import plan_estimates
from clipdata_jax.commands.plan_estimates import Estimate, size_text
from clipdata_jax.config.planning import PLANNED
from clipdata_jax.embedding import single_file
from clipdata_jax.errors import InputError
from clipdata_jax.runs import telemetry
from clipdata_jax.runs.records import UnitTimes
from clipdata_jax.runtime.console import counted

# command -> the command whose output it reads, and its option that says where that is
_READS = {
    "score": ("embed", "pool"),
    "select": ("score", "scores"),
    "filter": ("embed", "metadata"),
    "norm-sim-d": ("embed", "pool"),
    "train": ("reshard", "tars"),
    "evaluate": ("train", "model"),
}


def run(options: config.Plan, given: config.Run | None = None) -> list[Estimate]:
    """Prints an estimate of each command.

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
    made: list[Estimate] = []
    for name in names:
        if maker := _awaited(name, planned):
            print(f"{name}: reads what {maker} still has to write; plan it after that\n")
            continue
        found = plan_estimates.estimate(planned[name], memory)
        free = _disk_free(found.out)
        if free is not None and found.written > free:
            raise InputError(
                f"{name}: writes {size_text(found.written)} to {found.out}, where {size_text(free)} are free; choose"
                " another --out, or make room"
            )
        print(_text(name, found, options.processes, memory, free), end="\n\n", flush=True)
        made.append(found)
    return made


def _awaited(name: str, planned: dict[str, Any]) -> str:
    """The command of the plan that still has to write what this one reads, if there is such."""
    maker, option = _READS.get(name, ("", ""))
    if maker not in planned:
        return ""
    paths = getattr(planned[name], option)
    path = paths if isinstance(paths, str) else paths[0]
    out = planned[maker].out.rstrip("/")
    waits = f"{path.rstrip('/')}/".startswith(f"{out}/") and not storage.exists(f"{out}/{storage.MANIFEST}")
    return maker if waits else ""


def _host_memory() -> int:
    """Bytes of memory that processes here may use: the machine's, or the container's."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.exists() and (text := path.read_text().strip()).isdigit():
            whole = min(whole, int(text))
    return whole


def _disk_free(out: str) -> int | None:
    """Bytes free where an output goes; None in a store."""
    at = storage.Folder(out)
    if not at.is_local:
        return None
    path = Path(at.inner).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _text(name: str, found: Estimate, processes: int, memory: int, free: int | None) -> str:
    dealt = processes if found.dealt else 1
    each = f", {size_text(found.read / dealt)} a process" if dealt > 1 else ""
    lines = {
        "work": found.work,
        "read": f"{size_text(found.read)}{each}",
        "memory": f"{size_text(found.memory)} a process, of {size_text(memory)}",
        "write": f"{size_text(found.written)} to {found.out}" + ("" if free is None else f" ({size_text(free)} free)"),
        "time": _time(name, found, dealt),
    }
    notes = list(found.notes)
    if found.units < dealt:
        has = "has" if found.units == 1 else "have"
        notes.append(f"only {found.units:,} of {processes:,} processes {has} a unit to work on")
    elif processes > 1 and not found.dealt and not found.steps:
        notes.append("one process does all of it")
    lines |= {f"note {number}": note for number, note in enumerate(notes, start=1)}
    width = max(map(len, lines))
    return "\n".join([name, *(f"  {key:<{width}}  {text}" for key, text in lines.items())])


def _time(name: str, found: Estimate, processes: int) -> str:
    """The time that is left, extrapolated from the units or steps that were done."""
    if not found.rows_timed:
        return "not measured: it stops nowhere to measure it"
    noun = "step" if found.steps else "unit"
    times = _done(name, found.out)
    if not times:
        return f"not measured: run it with --stop-after 3 first, then plan it again ({noun}s)"
    timed = _without_first(times) or times
    done = sum(one.rows for one in (times if not found.steps else _last_of_each_step(times)))
    rate = sum(one.rows for one in timed) / max(_busy(timed), 1e-9)
    left = max(0.0, found.rows_timed - done) / rate / (1 if found.steps else min(processes, found.units))
    several = len({one.process for one in times})
    on = f"on {counted(several, 'process')}" if not found.steps else "on the processes of that run"
    measured = f"from {counted(len(timed), noun if not found.steps else 'line')} {on}"
    start = "" if len(timed) < len(times) else ", with the time to compile in it"
    return (
        f"about {_time_text(left)} left for {max(0.0, found.rows_timed - done):,.0f} of {found.rows_timed:,} rows"
        + (f" on {counted(processes, 'process')}" if processes > 1 and not found.steps else "")
        + f", {measured}, {rate:,.{0 if rate >= 10 else 2}f} rows a second each{start}"
    )


def _done(name: str, out: str) -> list[UnitTimes]:
    if name == "norm-sim-d":
        return telemetry.read(f"{out}.{storage.TIMES}")
    folder = single_file.parts_folder(out) if name == "embed" and single_file.is_file(out) else out
    return telemetry.read(storage.join(folder, storage.TIMES))


def _last_of_each_step(times: Sequence[UnitTimes]) -> Iterable[UnitTimes]:
    """A step that was done again after a kill counts once."""
    return {one.step: one for one in times}.values()


def _without_first(times: Sequence[UnitTimes]) -> list[UnitTimes]:
    """All but the first of each process, which also starts and compiles."""
    first = {one.process: one for one in reversed(times)}
    return [one for one in times if one is not first[one.process]]


def _busy(times: Sequence[UnitTimes]) -> float:
    """Seconds in which each process was at work, over all processes; units of one may have overlapped."""
    spans = collections.defaultdict(list)
    for one in times:
        if one.rows_per_second > 0:
            spans[one.process].append((one.time - one.rows / one.rows_per_second, one.time))
    total = 0.0
    for own in spans.values():
        ends = itertools.accumulate((end for _, end in sorted(own)), max, initial=float("-inf"))
        total += sum(max(0.0, end - max(start, before)) for (start, end), before in zip(sorted(own), ends))
    return total


def _time_text(seconds: float) -> str:
    """A duration: "45 s", "12 min", "3.5 h", "12 days"."""
    if seconds < 1:
        return "1 s"
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3_600, 48)):
        if (count := seconds / length) < most:
            return f"{count:.0f} {unit}" if count >= 100 else f"{count:.2g} {unit}"
    return f"{seconds / 86_400:,.1f} days"
