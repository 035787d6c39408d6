"""`clipdata plan`: what commands will read, hold, compute and write, and how long it takes. Runs none of them."""

from __future__ import annotations

from typing import Any

from clipdata_jax import config
from clipdata_jax.data import files
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import (
    plan_embed,
    plan_evaluate,
    plan_filter,
    plan_norm_sim_d,
    plan_score,
    plan_select,
    plan_sensitivity,
    plan_train,
)
from clipdata_jax.pipeline.plan_estimates import (
    Estimate,
    Machine,
    Probe,
    disk_free,
    per_second,
    size_text,
    this_machine,
    time_text,
)
from clipdata_jax.pipeline.progress import counted

# command -> whose output it reads, and which of its options says where that is
_READS = {
    "score": ("embed", "pool"),
    "sensitivity": ("embed", "pool"),
    "select": ("score", "scores"),
    "filter": ("embed", "metadata"),
    "norm-sim-d": ("embed", "pool"),
    "train": ("reshard", "tars"),
    "evaluate": ("train", "model"),
}


def run(options: config.Plan, given: config.Run | None = None) -> list[Estimate]:
    """Prints what each command will take.

    Args:
      options: what to plan, and for which machines.
      given: the command to plan, where no config file is named.

    Raises:
      InputError: something can't fit: it says what, and what would; or an input is missing or wrong.
    """
    whole = _whole(options, given)
    planned = {name: one for name in config.PLANNED if (one := _options(whole, name)) is not None}
    names = [name for name in planned if name in options.commands or not options.commands]
    if not names:
        wanted = ", ".join(options.commands or config.PLANNED)
        raise InputError(f"{options.config}: its Run sets none of {wanted}")
    with Probe() as probe:
        machine = this_machine(options, probe, look=any(_on_devices(planned[name]) for name in names))
        made: dict[str, Estimate] = {}
        for name in names:
            if waits := _waits(name, planned, made):
                print(f"{name}: {waits}\n")
                continue
            found = made[name] = _estimate(name, planned, machine)
            print(_text(found, machine), end="\n\n", flush=True)
            _refuse_full_disk(found)
    return list(made.values())


def _whole(options: config.Plan, given: config.Run | None) -> config.Run:
    if (options.config is None) == (given is None):
        raise InputError(
            "name a config file, or a command with its options after --: clipdata plan -- score POOL --out TABLE"
        )
    return given or config.load_run(options.config or "")


def _options(whole: config.Run, name: str) -> Any:
    return getattr(whole, name.replace("-", "_"))


def _on_devices(options: Any) -> bool:
    if isinstance(options, config.Filter):
        return options.by_image
    return not isinstance(options, (config.Select, config.Reshard))


def _estimate(name: str, planned: dict[str, Any], machine: Machine) -> Estimate:
    """What a command takes."""
    options = planned[name]
    coming = {one.out for other, one in planned.items() if other != name and one.out is not None}
    if isinstance(options, config.Embed):
        return plan_embed.estimate(options, machine)
    if isinstance(options, config.Score):
        return plan_score.estimate(options, machine)
    if isinstance(options, config.Sensitivity):
        return plan_sensitivity.estimate(options, machine)
    if isinstance(options, config.Filter):
        return plan_filter.estimate(options, machine)
    if isinstance(options, config.Train):
        return plan_train.estimate(options, machine, coming)
    if isinstance(options, config.Evaluate):
        return plan_evaluate.estimate(options, machine)
    if isinstance(options, config.Select):
        return plan_select.select(options, machine)
    if isinstance(options, config.NormSimD):
        return plan_norm_sim_d.estimate(options, machine, coming)
    if isinstance(options, config.Reshard):
        return plan_select.reshard(options, machine)
    raise AssertionError(name)


def _waits(name: str, planned: dict[str, Any], made: dict[str, Estimate]) -> str:
    """Why what a command takes can't be said yet, if another of the plan makes what it reads."""
    maker, option = _READS.get(name, ("", ""))
    if maker not in planned:
        return ""
    paths = getattr(planned[name], option)
    path = (paths if isinstance(paths, str) else paths[0]).rstrip("/")
    out = planned[maker].out.rstrip("/")
    if f"{path}/".startswith(f"{out}/") and not files.exists(files.join(out, "manifest.json")):
        rows = f"{made[maker].rows:,} rows that" if maker in ("embed", "score") and maker in made else "what"
        return f"takes {rows} {maker} still has to write to {path}: plan it again then"
    return ""


def _refuse_full_disk(found: Estimate) -> None:
    free = disk_free(found.out)
    if free is not None and found.written > free:
        raise InputError(
            f"{found.command}: writes {size_text(found.written)} to {found.out}, where {size_text(free)} are free;"
            " choose another --out, or make room"
        )


def _text(found: Estimate, machine: Machine) -> str:
    n = machine.processes
    each = f", {size_text(found.read / n)} a process" if n > 1 and found.dealt and not found.alone else ""
    free = disk_free(found.out)
    room = "" if free is None else f" ({size_text(free)} free)"
    lines = {
        "work": found.work,
        "read": f"{size_text(found.read)}{each}{found.again}",
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
    lines |= _time_lines(found, machine)
    lines |= {f"note {number}": note for number, note in enumerate(found.notes, start=1)}
    width = max(map(len, lines))
    return "\n".join([found.command, *(f"  {name:<{width}}  {text}" for name, text in lines.items())])


def _time_lines(found: Estimate, machine: Machine) -> dict[str, str]:
    """How long it takes, what takes it, and how fast it goes once it is under way."""
    times = found.times
    if times is None:
        return {"time": "not measured (--calibrate measures)"}
    devices, several = machine.devices, machine.processes > 1 and not found.alone
    where = [counted(machine.processes, "process")] if several else []
    where += [counted(devices.count, f"{devices.platform} device")] if found.operations else []
    parts = {"start": times.start, **times.parts}
    return {
        "time": f"about {time_text(times.total)}" + (f" on {' of '.join(where)}" if where else ""),
        "of which": ", ".join(f"{name} {time_text(seconds)}" for name, seconds in parts.items() if seconds),
        "rate": f"{found.rate or per_second(found.rows, 'rows', times.work)}, once it is under way",
    }
