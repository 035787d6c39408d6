"""What `train` will take: all pictures in memory, then steps over them. Imports no jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from clipdata_jax.config import Train
from clipdata_jax.data import files, sources, tars, uids
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import plan_embed, plan_probe_train
from clipdata_jax.pipeline.plan_estimates import Estimate, Machine, Times, per_second, refuse_large, size_text
from clipdata_jax.pipeline.plan_probe_train import TrainFacts, TrainRates
from clipdata_jax.pipeline.progress import counted
from clipdata_jax.pipeline.train import MEMORY_BOUND

_BASE = 600 << 20  # the interpreter, jax, optax and orbax, and what was compiled
_OF_PAIR = 400  # bytes of a pair's uid, of its arrays' heads, and of lists
_STATES = 5  # parameters, two moments, the gradient, the update
_CHECKPOINT = 3  # of which it holds so many
_LAST = 2  # checkpoints that stay


@dataclasses.dataclass(frozen=True)
class _Work:
    """Samples, pairs to train on, and bytes of the tars; pairs of a batch that a device takes; checkpoints."""

    samples: int
    pairs: int
    bytes: int
    each: int
    checkpoints: int


def estimate(options: Train, machine: Machine, coming: Collection[str]) -> Estimate:
    """What the training takes.

    Args:
      options: of the command.
      machine: that does it.
      coming: files that other commands of the plan write: a subset among them may be missing yet.

    Raises:
      InputError: a tar or the tokenizer is missing, there are fewer pairs than a batch, or something can't fit.
    """
    work, notes = _look(options, machine, coming)
    source = sources.Tar(tars.find_tars(options.tars)[0], 1)
    facts: TrainFacts = machine.probe.ask(plan_probe_train.sizes, options, source)
    on_device = _device_memory(facts, work, machine)
    memory = _memory(options, work, facts, machine)
    times = _times(options, work, source, facts, machine) if machine.calibrate else None
    state = _CHECKPOINT * 4 * facts.parameters
    return Estimate(
        command="train",
        rows=work.pairs,
        work=f"about {counted(work.pairs, 'pair')}, {counted(options.steps, 'step')} of {options.batch_size:,} pairs"
        f" (each {options.steps * options.batch_size / work.pairs:.2g} times);"
        f" {facts.parameters:,} parameters",
        read=work.bytes * machine.processes,
        written=min(_LAST, work.checkpoints) * state + 4 * facts.parameters,
        out=options.out,
        memory=memory,
        device_memory=on_device,
        operations=float(options.steps) * options.batch_size * facts.operations,
        times=times,
        rate="" if times is None else _rate(options, work, times),
        again=", three times in all: digests, pictures, digests once more",
        notes=(
            f"{counted(work.checkpoints, 'checkpoint')} of {size_text(state)}"
            + (f", the last {_LAST} are kept" if work.checkpoints > _LAST else ""),
            *notes,
        ),
    )


def _device_memory(facts: TrainFacts, work: _Work, machine: Machine) -> int:
    """Bytes of the model's state, and of what a batch keeps for the way back; refused where they can't fit."""
    state, there = _STATES * 4 * facts.parameters, machine.devices.memory
    needed = state + 4 * facts.kept * work.each
    fits = 0 if there is None else (there - state) // (4 * facts.kept)
    refuse_large("train", "the model with its batch", needed, there, _smaller(fits, machine))
    return needed


def _smaller(fits: int, machine: Machine) -> str:
    """What to do where a device can take only so many pairs of a batch."""
    if fits < 1:
        return "use a smaller --width or fewer --layers"
    return f"use --batch-size {fits * machine.devices.count * machine.processes:,} or less"


def _look(options: Train, machine: Machine, coming: Collection[str]) -> tuple[_Work, tuple[str, ...]]:
    units = [sources.Tar(path, files.size(path)) for path in tars.find_tars(options.tars)]
    whole = sum(unit.bytes for unit in units)
    found = round(plan_embed.look(units)[0] * whole)
    pairs, notes = found, []
    if options.subset is not None:
        if files.exists(options.subset) or options.subset not in coming:
            pairs = min(found, len(uids.read_subset(options.subset)))
        else:
            notes.append(f"{options.subset} is still to be written: planned as if it held every pair")
    if machine.processes > 1:
        notes.append(
            "what the processes tell each other in a step is not counted: it depends on their network"
        )
    devices = machine.processes * machine.devices.count
    if options.batch_size % devices:
        raise InputError(
            f"--batch-size is {options.batch_size}, expected a multiple of the {devices} devices of the run"
        )
    if pairs < options.batch_size:
        raise InputError(
            f"there are about {pairs:,} pairs to train on, fewer than one batch of {options.batch_size:,}; give more,"
            " or a smaller --batch-size"
        )
    checkpoints = -(-options.steps // options.checkpoint_every)
    return _Work(found, pairs, whole, options.batch_size // devices, checkpoints), tuple(notes)


def _memory(options: Train, work: _Work, facts: TrainFacts, machine: Machine) -> int:
    """Bytes of a process: all pictures and tokens, batches on their way, a checkpoint that is written."""
    picture, devices = 3 * options.image_size**2, machine.devices.count
    of_pair, of_batch = picture + 8 * options.context_length + _OF_PAIR, 3 * picture
    fixed = _BASE + _CHECKPOINT * 4 * facts.parameters
    if machine.shares_memory:
        fixed, of_batch = fixed + devices * _STATES * 4 * facts.parameters, of_batch + 4 * facts.kept
    rest = fixed + of_batch * work.each * devices
    fits = int((machine.memory - fixed) // (of_batch * devices))
    refuse_large("train", "the model with its batch", rest, machine.memory, _smaller(fits, machine))
    shorter = "use a --subset of at most {:,} pairs, or a smaller --image-size"
    pictures, advice = work.pairs * picture, shorter.format(MEMORY_BOUND // picture)
    refuse_large("train", f"{work.pairs:,} pictures, all in memory,", pictures, MEMORY_BOUND, advice)
    memory, advice = rest + work.pairs * of_pair, shorter.format((machine.memory - rest) // of_pair)
    refuse_large("train", f"training with {work.pairs:,} pairs in memory", memory, machine.memory, advice)
    return memory


def _times(options: Train, work: _Work, source: sources.Tar, facts: TrainFacts, machine: Machine) -> Times:
    found: TrainRates = machine.probe.ask(plan_probe_train.rates, options, source, facts, work.each)
    decoded = work.samples if options.subset is None else work.pairs
    return Times.one_by_one(
        found.start,
        digests=2 * found.digest * work.bytes,
        decode=facts.decode * decoded,
        steps=found.step * options.steps,
        checkpoints=found.checkpoint * work.checkpoints,
    )


def _rate(options: Train, work: _Work, times: Times) -> str:
    steps = times.parts["steps"] + times.parts["checkpoints"]
    reading = per_second(work.pairs, "pairs", times.parts["decode"] + times.parts["digests"])
    return f"{reading} to read, {per_second(options.steps * options.batch_size, 'pairs', steps)} to train"
