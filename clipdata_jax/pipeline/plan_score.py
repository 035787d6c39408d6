"""What `score` will take. Imports no jax."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from clipdata_jax.config import NegClipLoss, Score
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import groups, plan_pool, plan_probe, shard_division, target_sets
from clipdata_jax.pipeline.plan_estimates import Estimate, Machine, Times, idle_note, size_text
from clipdata_jax.pipeline.plan_score_inputs import Work, look
from clipdata_jax.pipeline.progress import counted
from clipdata_jax.pipeline.score_units import shard_files

_TILE, _TILES = 2_048, 6  # rows a side, and how many the kernel has at a time, in float32
_UIDS = 16
_LOOKED_AT = 1 << 16  # rows at a time, in float32
_BASE = 200 << 20  # the interpreter, jax and what it compiled
_COMPRESSED = 0.93  # of a score's four bytes and a uid's sixteen, in parquet


def estimate(options: Score, machine: Machine) -> Estimate:
    """What scoring a pool takes.

    Raises:
      InputError: the pool or a target is missing, or a unit or a group can't fit in memory.
    """
    work = look(options)
    settings, rows = options.neg_clip_loss, len(work.pool)
    jobs = group_jobs(work.units, settings) if "neg_clip_loss" in options.chosen() else {}
    largest = max(jobs, default=(0, 0))
    on_device = device_memory(largest, work)
    # What is laid out for a CPU's devices is not copied again.
    beside = on_device if machine.shares_memory else largest[0] * work.row
    memory = host_memory(work, beside * machine.devices.count)
    refuse_large(work, settings, memory, on_device, machine)
    return Estimate(
        command="score",
        rows=rows,
        work=_describe(work, settings, jobs),
        read=plan_pool.bytes_of(work.pool, work.pool.shards, shard_files),
        written=int(rows * (_UIDS + 4 * work.columns) * _COMPRESSED) + 2_000 * len(work.pool.shards),
        out=options.out,
        memory=memory,
        device_memory=on_device,
        operations=operations(options, work, jobs),
        times=_times(options, work, jobs, machine) if machine.calibrate else None,
        notes=tuple(_notes(options, work, machine)),
    )


def group_jobs(units: Sequence[int], settings: NegClipLoss) -> dict[tuple[int, int], list[int]]:
    """(rows, cells) of what a device compares all with all -> how many of that shape each unit has."""
    counts: dict[tuple[int, int], list[int]] = collections.defaultdict(lambda: [0] * len(units))
    for index, rows in enumerate(units):
        if settings.division == "shard":
            for size in settings.batch_sizes():
                batches = -(-rows // size) * (settings.repeats if size < rows else 1)
                counts[-(-min(size, rows) // 8) * 8, 1][index] += batches
            continue
        for group in groups.plan_groups(rows, batch_sizes=settings.batch_sizes(), group=settings.group):
            counts[group.cells * group.slots, group.cells][index] += 1
    return dict(counts)


def operations(options: Score, work: Work, jobs: dict[tuple[int, int], list[int]]) -> float:
    """Multiplications and additions of the products: 2 d G^2 a group, 2 d a pair and target."""
    rows, chosen = len(work.pool), options.chosen()
    total = sum(2.0 * work.dim * shape[0] ** 2 * sum(count) for shape, count in jobs.items())
    total += 2.0 * work.dim * rows if "clip_score" in chosen else 0
    for p in options.norm_sim.p if "norm_sim" in chosen else ():
        for target in work.targets:
            total += 2.0 * work.dim * rows * (work.dim if p == 2 else target)
    return total


def device_memory(largest: tuple[int, int], work: Work) -> int:
    """Bytes of a device: two rounds of pairs, the tables of log-sums twice for one of them, tiles, the targets."""
    rows, cells = largest
    pairs = rows * work.row
    tables = 4 * rows * cells * 4 * len(work.temperatures)
    targets = sum(work.targets) * work.dim * work.itemsize
    return 2 * pairs + tables + _TILES * 4 * min(rows, _TILE) ** 2 + targets


def host_memory(work: Work, on_devices: int) -> int:
    """Bytes of a process that no file backs: copies of a unit, a shard that is looked through, columns, groups."""
    looked_at = 4 * work.dim * min(max(shard.rows for shard in work.pool.shards), _LOOKED_AT)
    return _BASE + max(work.units) * _of_row(work) + looked_at + on_devices


def _of_row(work: Work) -> int:
    return work.copies * work.row + 3 * _UIDS + 8 * work.columns


def refuse_large(work: Work, settings: NegClipLoss, memory: int, on_device: int, machine: Machine) -> None:
    """Raises InputError if a unit or a group can't fit, and says what would."""
    if machine.devices.memory is not None and on_device > machine.devices.memory:
        raise InputError(
            f"score: a group of {max(settings.batch_sizes()) * settings.group:,} pairs takes {size_text(on_device)} of"
            f" a device, which has {size_text(machine.devices.memory)}; use a smaller --batch-size or --group"
        )
    if memory <= machine.memory:
        return
    unit = max(work.units)
    fits = max(0, unit - -(-(memory - machine.memory) // _of_row(work)))
    shard = max(shard.rows for shard in work.pool.shards)
    joined = max(settings.batch_sizes()) * settings.group
    if shard > fits or settings.division == "shard":
        advice = f"write shards of at most {fits:,} pairs"
    elif settings.mix_shards and settings.mix_shards > 1:
        advice = f"use a smaller --mix-shards: {max(1, fits // shard)} or less"
    else:
        # Shards that don't fill a group make a unit of nearly two groups and a shard.
        most = max((fits - shard) // 2, min(one.rows for one in work.pool.shards if one.rows))
        advice = (
            f"use a smaller --batch-size or --group: together at most {most:,} pairs, they are {joined:,}"
        )
    raise InputError(
        f"score: a unit of {unit:,} pairs takes {size_text(memory)} of memory, and there are"
        f" {size_text(machine.memory)}; {advice}"
    )


def rounds(count: int, devices: int) -> int:
    """Turns of all devices that so many groups of one shape take."""
    return -(-count // devices)


def kernel_seconds(
    jobs: dict[tuple[int, int], list[int]], per_square: float, processes: int, devices: int
) -> float:
    """Seconds of the slowest process: units are dealt in turn, a unit's groups to the devices in rounds."""
    shares = [0.0] * processes
    for (rows, _), counts in jobs.items():
        for index, count in enumerate(counts):
            shares[index % processes] += rounds(count, devices) * per_square * rows**2
    return max(shares)


def _times(options: Score, work: Work, jobs: dict[tuple[int, int], list[int]], machine: Machine) -> Times:
    common = max(jobs, key=lambda shape: sum(jobs[shape]), default=(0, 0))
    found: plan_probe.ScoreRates = machine.probe.ask(plan_probe.score, _question(options, work, common))
    devices, n = machine.devices.count, machine.processes
    rows = max(sum(work.units[index::n]) for index in range(min(n, len(work.units))))
    parts = {
        "read": rows * found.read,
        "negCLIPLoss": kernel_seconds(jobs, found.per_square, n, devices),
        "other scores": rows * (found.clip_score + found.per_target * _comparisons(options, work)) / devices,
        "write": rows * found.write,
    }
    one_unit = parts["read"] * max(work.units) / rows
    work_seconds = parts["negCLIPLoss"] + parts["other scores"] + parts["write"]
    if machine.devices.platform == "cpu":  # reading takes the same cores
        total = parts["read"] + work_seconds
    else:
        total = max(parts["read"], work_seconds + one_unit)
    return Times(parts, found.start + found.compile * len(jobs), total)


def _comparisons(options: Score, work: Work) -> int:
    """Targets that a picture is compared with; for p = 2 there are as many as dimensions."""
    if "norm_sim" not in options.chosen():
        return 0
    return sum(work.dim if p == 2 else target for p in options.norm_sim.p for target in work.targets)


def _question(options: Score, work: Work, common: tuple[int, int]) -> plan_probe.ScoreQuestion:
    return plan_probe.ScoreQuestion(
        options,
        plan_pool.sample(work.pool.shards, work.row),
        work.tag,
        work.dim,
        work.temperatures,
        common,
        work.columns,
        bool(work.targets),
    )


def _describe(work: Work, settings: NegClipLoss, jobs: dict[Any, Any]) -> str:
    counts = (len(work.pool), "pair"), (len(work.pool.shards), "shard"), (len(work.units), "unit")
    text = ", ".join(counted(*count) for count in counts)
    if not jobs:
        return text
    described = (
        shard_division.describe(work.units, batch_sizes=settings.batch_sizes())
        if settings.division == "shard"
        else groups.describe(work.units, batch_sizes=settings.batch_sizes(), group=settings.group)
    )
    sizes = [
        f"|B| {size['batch_size']:,}: {' to '.join(f'{n:,}' for n in dict.fromkeys(size['effective']))} in truth"
        for size in described["sizes"]
    ]
    return f"{text}, {counted(described['count'], 'group')}; {'; '.join(sizes)}"


def _notes(options: Score, work: Work, machine: Machine) -> list[str]:
    notes = []
    settings = options.neg_clip_loss
    if "neg_clip_loss" in options.chosen() and max(settings.batch_sizes()) > len(work.pool):
        notes.append(f"|B| is more than the pool's {len(work.pool):,} pairs, which make one batch")
    notes += idle_note(machine.processes, len(work.units))
    most = max((rounds_of for rounds_of in _groups_of_units(work, settings)), default=0)
    if "neg_clip_loss" in options.chosen() and 0 < most < machine.devices.count:
        notes.append(
            f"a unit has {counted(most, 'group')} for {machine.devices.count} devices, the others wait: use larger"
            " shards, --mix-shards, or more processes with fewer devices"
        )
    left_out = [path for path in options.norm_sim.targets().values() if not target_sets.is_embedded(path)]
    if left_out and "norm_sim" in options.chosen():
        notes.append(f"not counted, for their pictures aren't embedded yet: {', '.join(left_out[:3])}")
    return notes


def _groups_of_units(work: Work, settings: NegClipLoss) -> list[int]:
    jobs = group_jobs(work.units, settings)
    return [sum(counts) for counts in zip(*jobs.values(), strict=True)]
