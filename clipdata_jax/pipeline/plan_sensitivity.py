"""What `sensitivity` will take: the reading of a sample, and scoring it twice in every setting. Imports no jax."""

from __future__ import annotations

import collections
import dataclasses

from clipdata_jax.config import NegClipLoss, Score, Sensitivity
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import groups, plan_pool, plan_probe_sensitivity, plan_score, plan_score_inputs
from clipdata_jax.pipeline import sensitivity as trials
from clipdata_jax.pipeline.plan_estimates import Estimate, Machine, Times, per_second, refuse_large
from clipdata_jax.pipeline.plan_probe import ScoreQuestion
from clipdata_jax.pipeline.plan_probe_sensitivity import SensitivityRates
from clipdata_jax.pipeline.plan_score_inputs import Work
from clipdata_jax.pipeline.progress import counted
from clipdata_jax.pipeline.score_units import shard_files
from clipdata_jax.pipeline.sensitivity_scores import Plan

_SEEDS = 2
_PAGE = 40_000  # bytes of the page and its figures, more or less
_PROGRAM = 30 << 20  # bytes that compiling one more shape of groups leaves behind
_RANKS = 40  # bytes a row of what ranks and choosing take at a time

_Jobs = dict[tuple[int, int], list[int]]


def estimate(options: Sensitivity, machine: Machine) -> Estimate:
    """What trying all settings takes.

    Raises:
      InputError: the pool is missing or wrong, or the sample can't fit in memory.
    """
    inputs = trials.look(options)
    counts = [sum(shard.rows for shard in unit) for unit in inputs.units]
    rows = sum(map(inputs.quota, counts))
    if not int(options.fraction * rows):
        raise InputError(
            f"{options.pool}: {rows} pairs are too few to select --fraction {options.fraction:g}"
        )
    made = inputs.plan(options, rows)
    as_score = _as_score(options, inputs, made)
    work = dataclasses.replace(plan_score_inputs.look(as_score), units=tuple(counts), columns=0)
    varied, others = _jobs(made, rows)
    memory, on_device = _memory(work, made, rows, machine, {**varied, **others})
    _refuse_large(rows, memory, on_device, machine)
    times = None
    if machine.calibrate:
        times = _times(as_score, work, made, rows, (varied, others), machine)
    compared = sum(2.0 * work.dim * g**2 * n for jobs in (varied, others) for (g, _), (n,) in jobs.items())
    return Estimate(
        command="sensitivity",
        rows=rows,
        work=f"{counted(rows, 'pair')} of {len(inputs.pool):,}, of {counted(len(counts), 'unit')};"
        f" {counted(len(made.settings()), 'setting')}, each under {_SEEDS} seeds",
        read=plan_pool.bytes_of(inputs.pool, (shard for unit in inputs.units for shard in unit), shard_files),
        written=_PAGE,
        out=options.out,
        memory=memory,
        device_memory=on_device,
        operations=compared + 2.0 * work.dim * rows,
        times=times,
        rate="" if times is None else per_second(_SEEDS * rows * len(made.settings()), "scores", times.work),
        alone=True,
    )


def _refuse_large(rows: int, memory: int, on_device: int, machine: Machine) -> None:
    advice = "use fewer --groups, or a smaller --group or --batch-size"
    refuse_large("sensitivity", f"a sample of {rows:,} pairs", memory, machine.memory, advice)
    refuse_large("sensitivity", "a group of pairs", on_device, machine.devices.memory, advice)


def _as_score(options: Sensitivity, inputs: trials.Inputs, made: Plan) -> Score:
    """The options of a `score` that scores all of the base's settings in one pass."""
    return Score(
        pool=options.pool,
        out=options.out,
        tag=inputs.tag,
        normalize=options.normalize,
        on_bad=options.on_bad,
        scores=("clip_score", "neg_clip_loss"),
        neg_clip_loss=NegClipLoss(
            batch_size=tuple(sorted(set(inputs.sizes))),
            group=max(options.group),
            repeats=made.finest.repeats,
            temperature=tuple(sorted(set(inputs.temperatures))),
        ),
    )


def _jobs(made: Plan, rows: int) -> tuple[_Jobs, _Jobs]:
    """(rows, cells) of a group -> how many, under both seeds: of the base's m, where all vary, and of the others."""
    found: tuple[_Jobs, _Jobs] = collections.defaultdict(lambda: [0]), collections.defaultdict(lambda: [0])
    for m in {setting.group for setting in made.settings()}:
        sizes = sorted({setting.batch_size for setting in made.settings() if setting.group == m})
        for group in groups.plan_groups(rows, batch_sizes=sizes, group=m):
            found[m != made.base.group][group.cells * group.slots, group.cells][0] += _SEEDS
    return dict(found[0]), dict(found[1])


def _memory(work: Work, made: Plan, rows: int, machine: Machine, jobs: _Jobs) -> tuple[int, int]:
    """Bytes of the process: units while they are read, the sample twice, all scores; and of a device."""
    largest = max(jobs)
    on_device = plan_score.device_memory(largest, work)
    beside = on_device if machine.shares_memory else largest[0] * work.row
    read = plan_score.host_memory(work, 0) + 2 * rows * work.row
    scores = _SEEDS * 4 * len(made.settings()) + _RANKS
    scoring = plan_score.host_memory(dataclasses.replace(work, units=(0,)), beside * machine.devices.count)
    compiled = _PROGRAM * (len(jobs) - 1)
    return compiled + max(read, scoring + rows * (work.row + scores)), on_device


def _times(
    as_score: Score, work: Work, made: Plan, rows: int, jobs: tuple[_Jobs, _Jobs], machine: Machine
) -> Times:
    sample = plan_pool.sample(work.pool.shards, work.row)
    question = ScoreQuestion(
        as_score, sample, work.tag, work.dim, work.temperatures, max(jobs[0]), 0, targets=False
    )
    found: SensitivityRates = machine.probe.ask(plan_probe_sensitivity.sensitivity, question)
    devices = machine.devices.count
    varied, others = (
        plan_score.kernel_seconds(of_rate, rate, 1, devices)
        for of_rate, rate in zip(jobs, (found.varied, found.single), strict=True)
    )
    return Times.one_by_one(
        found.start + found.compile * (len(jobs[0]) + len(jobs[1])),
        read=found.read * sum(work.units),
        score=varied + others,
        compare_selections=found.compare * rows * len(made.settings()),
    )
