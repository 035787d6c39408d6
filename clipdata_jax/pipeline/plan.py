"""`clipdata plan`: what commands will read, hold, compute and write, and how long it takes. Runs none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from clipdata_jax import config
from clipdata_jax.data import files
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import plan_embed, plan_score, plan_select
from clipdata_jax.pipeline.plan_estimates import (
    Estimate,
    Machine,
    Probe,
    disk_free,
    size_text,
    this_machine,
    time_text,
)
from clipdata_jax.pipeline.progress import counted


def run(options: config.Plan, given: config.Run | None = None) -> list[Estimate]:
    """Prints what each command will take.

    Args:
      options: what to plan, and for which machines.
      given: the command to plan, where no config file is named.

    Raises:
      InputError: something can't fit: it says what, and what would; or an input is missing or wrong.
    """
    planned = _planned(options, given)
    with Probe() as probe:
        machine = this_machine(options, probe, look=bool({"embed", "score"} & set(planned)))
        made: list[Estimate] = []
        for name in planned:
            found = _estimate(name, planned, machine, made)
            if isinstance(found, str):
                print(f"{name}: {found}\n")
                continue
            made.append(found)
            print(_text(found, machine), end="\n\n")
            _refuse_full_disk(found)
    return made


def _planned(options: config.Plan, given: config.Run | None) -> dict[str, object]:
    """Name -> options of the commands to plan, in the order in which they run."""
    if (options.config is None) == (given is None):
        raise InputError(
            "name a config file, or a command with its options after --: clipdata plan -- score POOL --out TABLE"
        )
    whole = given or config.load_run(options.config or "")
    names = options.commands or get_args(config.Planned)
    planned = {
        name: getattr(whole, name)
        for name in get_args(config.Planned)
        if name in names and getattr(whole, name) is not None
    }
    if not planned:
        raise InputError(f"{options.config}: its Run sets none of {', '.join(names)}")
    return planned


def _estimate(
    name: str, planned: dict[str, object], machine: Machine, made: list[Estimate]
) -> Estimate | str:
    """What a command takes; or why that can't be said yet: another one makes what it reads."""
    options = planned[name]
    if isinstance(options, config.Embed):
        return plan_embed.estimate(options, machine)
    if isinstance(options, config.Score):
        return _after("embed", options.pool, made, lambda: plan_score.estimate(options, machine))
    if isinstance(options, config.Select):
        return _after("score", options.scores[0], made, lambda: plan_select.select(options, machine))
    if isinstance(options, config.Reshard):
        return plan_select.reshard(options, machine, None)
    raise AssertionError(name)


def _after(before: str, path: str, made: list[Estimate], estimate: Callable[[], Estimate]) -> Estimate | str:
    """An estimate, or if its input is still to be made by a command planned before, a word on that."""
    made_by = [one for one in made if one.command == before and one.out.rstrip("/") == path.rstrip("/")]
    if made_by and not files.exists(files.join(path, "manifest.json")):
        return (
            f"takes {made_by[0].rows:,} rows that {before} still has to write to {path}: plan it again then"
        )
    return estimate()


def _refuse_full_disk(found: Estimate) -> None:
    free = disk_free(found.out)
    if free is not None and found.written > free:
        raise InputError(
            f"{found.command}: writes {size_text(found.written)} to {found.out}, where {size_text(free)} are free;"
            " choose another --out, or make room"
        )


def _text(found: Estimate, machine: Machine) -> str:
    n = machine.processes
    each = f", {size_text(found.read / n)} a process" if n > 1 else ""
    free = disk_free(found.out)
    room = "" if free is None else f" ({size_text(free)} free)"
    lines = {
        "work": found.work,
        "read": f"{size_text(found.read)}{each}",
        "memory": f"{size_text(found.memory)} a process, of {size_text(machine.memory)}",
    }
    if found.device_memory:
        shared = (
            "the host's, counted above"
            if machine.shares_memory
            else f"of {size_text(machine.devices.memory or 0)}"
        )
        lines["device"] = f"{size_text(found.device_memory)}, {shared}"
    if found.operations:
        lines["operations"] = f"{found.operations:.2g} (additions and multiplications of the products)"
    lines["write"] = f"{size_text(found.written)} to {found.out}{room}"
    lines["time"] = _time_text(found, machine)
    lines |= {f"note {number}": note for number, note in enumerate(found.notes, start=1)}
    width = max(map(len, lines))
    return "\n".join([found.command, *(f"  {name:<{width}}  {text}" for name, text in lines.items())])


def _time_text(found: Estimate, machine: Machine) -> str:
    if found.seconds is None or found.total is None:
        return "not measured (--calibrate measures)"
    parts = ", ".join(f"{name} {time_text(seconds)}" for name, seconds in found.seconds.items() if seconds)
    devices = machine.devices
    where = (
        [counted(machine.processes, "process")] if machine.processes > 1 and found.command != "select" else []
    )
    where += [counted(devices.count, f"{devices.platform} device")] if found.operations else []
    on = f" on {' of '.join(where)}" if where else ""
    rate = found.rows / max(found.total, 1e-9)
    return f"about {time_text(found.total)}{on}, {rate:,.0f} rows a second ({parts})"
