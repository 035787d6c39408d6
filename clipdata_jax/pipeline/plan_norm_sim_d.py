"""What `norm-sim-d` will take: the reading of the pool, then the steps over a copy of its rows. Imports no jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from clipdata_jax.config import NormSimD
from clipdata_jax.data import files, uids
from clipdata_jax.data import pool as pools
from clipdata_jax.data.pool import Pool
from clipdata_jax.pipeline import norm_sim_d, plan_pool, plan_probe_norm_sim_d, score_inputs
from clipdata_jax.pipeline.norm_sim_d_rows import shard_files
from clipdata_jax.pipeline.norm_sim_d_steps import BLOCK, rows_scored
from clipdata_jax.pipeline.plan_estimates import (
    Estimate,
    Machine,
    Times,
    idle_note,
    per_second,
    refuse_large,
    size_text,
)
from clipdata_jax.pipeline.plan_probe_norm_sim_d import NormSimDRates
from clipdata_jax.pipeline.progress import counted

_BASE = 150 << 20  # the interpreter, jax and what it compiled
_UID = 16
_OF_ROW = (
    48  # bytes of what a step keeps of a row: alive, score, order, places, and what choosing copies of them
)
_BLOCKS = 3  # float16, that a device has at a time; and one in float32 before and after the product


@dataclasses.dataclass(frozen=True)
class _Work:
    """The rows, and how many each step scores.

    Attributes:
      pool: the shards.
      tag: the model.
      dim: of the embeddings.
      itemsize: bytes of a number of them in the pool.
      plain: whether shards are mapped.
      rows: to choose from.
      keep: rows that are left at the end.
      drop: rows that a step drops.
      scored: by each step.
    """

    pool: Pool
    tag: str
    dim: int
    itemsize: int
    plain: bool
    rows: int
    keep: int
    drop: int
    scored: tuple[int, ...]

    @property
    def copy(self) -> int:
        """Bytes of the copy of the embeddings."""
        return 2 * self.dim * self.rows


def estimate(options: NormSimD, machine: Machine, coming: Collection[str]) -> Estimate:
    """What the selection takes.

    Args:
      options: of the command.
      machine: that does it.
      coming: files that other commands of the plan write: survivors among them may be missing yet.

    Raises:
      InputError: the pool or the survivors are missing, keep fewer than there are to drop, or don't fit in memory.
    """
    survivors, notes = _survivors(options, coming)
    work = _look(options, survivors)
    memory = _memory(options, work, survivors, machine)
    _refuse_large(work, memory, machine)
    spilled = work.copy > machine.memory - memory
    times = _times(options, work, survivors, machine, spilled) if machine.calibrate else None
    blocks = f"block of {BLOCK:,} rows"
    return Estimate(
        command="norm-sim-d",
        rows=work.rows,
        work=f"{counted(len(work.pool), 'pair')}, {counted(len(work.pool.shards), 'shard')};"
        f" from {counted(work.rows, 'row')} to {work.keep:,} in {counted(len(work.scored), 'step')} of {work.drop:,}",
        read=plan_pool.bytes_of(work.pool, work.pool.shards, shard_files),
        written=work.copy + _UID * (work.rows + work.keep) + work.rows // 8 + 24 * work.dim**2,
        out=options.out,
        memory=memory,
        device_memory=_device_memory(work.dim),
        operations=_operations(options, work, survivors),
        times=times,
        rate="" if times is None else _rate(work, times),
        dealt=False,
        again=_again(work, spilled),
        notes=(
            f"{size_text(work.copy)} of it are a copy of the embeddings beside --out, removed at the end",
            *notes,
            *idle_note(machine.processes, _blocks(work.rows), blocks),
        ),
    )


def _refuse_large(work: _Work, memory: int, machine: Machine) -> None:
    most = max(0, work.rows - -(-(memory - machine.memory) // _OF_ROW))
    advice = f"give --survivors, {most:,} at most"
    refuse_large("norm-sim-d", f"choosing from {work.rows:,} rows", memory, machine.memory, advice)
    needed, there = _device_memory(work.dim), machine.devices.memory
    refuse_large("norm-sim-d", f"blocks of {BLOCK:,} rows", needed, there, "use devices with more memory")


def _again(work: _Work, spilled: bool) -> str:
    """What the steps read."""
    first, last = (size_text(2 * work.dim * rows) for rows in (work.scored[0], work.scored[-1]))
    source = "the disk, for memory can't hold the copy" if spilled else "memory"
    return f", then {first} in the first step down to {last} in the last, from {source}"


def _blocks(rows: int) -> int:
    return -(-rows // BLOCK)


def _survivors(options: NormSimD, coming: Collection[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    path = options.survivors
    if path is None:
        return None, ()
    if path in coming and not files.exists(path):
        return None, (f"{path} is still to be written: planned as if the whole pool survived",)
    return uids.read_subset(path), ()


def _look(options: NormSimD, survivors: np.ndarray | None) -> _Work:
    pool = pools.open_pool(options.pool, on_bad=options.on_bad, texts=False)
    tag = pool.tag(options.tag)
    dim = score_inputs.dimension(pool, tag)
    keep, rows = options.keep(len(pool)), len(pool) if survivors is None else len(survivors)
    drop = norm_sim_d.check_steps(options, rows, keep)
    return _Work(
        pool, tag, dim, *plan_pool.form(pool.shards, tag, dim), rows, keep, drop, tuple(rows_scored(rows, keep, drop))
    )  # fmt: skip


def _operations(options: NormSimD, work: _Work, survivors: np.ndarray | None) -> float:
    """Additions and multiplications: 2 d^2 a row that a step scores, in whole blocks, or that a moment sums up."""
    scored = sum(_blocks(rows) * BLOCK for rows in work.scored)
    pool = len(work.pool) if options.init == "pool" or survivors is None else work.rows
    summed = pool + (work.rows if survivors is not None and options.init == "pool" else 0)
    return 2.0 * work.dim**2 * (scored + summed + work.rows - work.keep)


def _memory(options: NormSimD, work: _Work, survivors: np.ndarray | None, machine: Machine) -> int:
    """Bytes that no file backs: of the steps, or of reading if that takes more."""
    shard = max(shard.rows for shard in work.pool.shards)
    copies = 0 if work.plain and not options.normalize else 2  # one that is read, one that is summed up
    read = shard * work.dim * (copies * work.itemsize + 2 * work.itemsize) + 2 * _UID * work.rows
    blocks = machine.devices.count * _device_memory(work.dim) if machine.shares_memory else 0
    steps = _OF_ROW * work.rows + blocks + 2 * BLOCK * work.dim * 8
    return _BASE + max(read, steps) + (0 if survivors is None else survivors.nbytes)


def _device_memory(dim: int) -> int:
    return BLOCK * dim * (_BLOCKS * 2 + 2 * 4) + 4 * dim**2


def _times(
    options: NormSimD, work: _Work, survivors: np.ndarray | None, machine: Machine, spilled: bool
) -> Times:
    sample = dataclasses.replace(
        work.pool, shards=plan_pool.sample(work.pool.shards, work.dim * work.itemsize)
    )
    found: NormSimDRates = machine.probe.ask(
        plan_probe_norm_sim_d.norm_sim_d, options, sample, work.tag, work.dim, survivors
    )
    at_a_time = machine.processes * machine.devices.count
    rounds = sum(-(-_blocks(rows) // at_a_time) for rows in work.scored)
    looked_at = sum(work.scored)
    return Times.one_by_one(
        found.start,
        read=found.read * len(work.pool),
        score=found.round * rounds,
        choose=found.step * len(work.scored)
        + found.choose * looked_at
        + found.drop * (work.rows - work.keep),
        disk=found.disk * 2 * work.dim * looked_at / machine.processes if spilled else 0.0,
    )


def _rate(work: _Work, times: Times) -> str:
    steps = sum(seconds for name, seconds in times.parts.items() if name != "read")
    reading = per_second(len(work.pool), "pairs", times.parts["read"])
    return f"{reading} to read, {per_second(len(work.scored), 'steps', steps)}"
