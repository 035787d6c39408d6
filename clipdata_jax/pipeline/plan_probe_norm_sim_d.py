"""What `plan` asks of a process that has jax about `norm-sim-d`: how fast it reads rows, and takes steps."""

from __future__ import annotations

import dataclasses

import numpy as np

from clipdata_jax import stopping
from clipdata_jax.config import NormSimD
from clipdata_jax.data import embeddings, files, uids
from clipdata_jax.data.pool import Pool
from clipdata_jax.pipeline import norm_sim_d_steps as steps
from clipdata_jax.pipeline import plan_probe, work
from clipdata_jax.pipeline.norm_sim_d_rows import UNIT, Reader, shard_files
from clipdata_jax.selection import ranking

_ROUNDS, _TRIES = 4, 5
_CHOSEN = 1 << 20  # rows
_SAMPLE = 64 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class NormSimDRates:
    """Seconds: a pair to read, a round of one block a device to score, a row to choose from, a row to drop, what else
    there is to a step, a byte of the disk, and until the first shard can be read.
    """

    read: float
    round: float
    choose: float
    drop: float
    step: float
    disk: float
    start: float


def norm_sim_d(
    options: NormSimD, sample: Pool, tag: str, dim: int, survivors: np.ndarray | None
) -> NormSimDRates:
    """Measures what `norm-sim-d` does: reads some shards into a working folder, scores and drops rows like theirs."""
    import jax

    devices = len(jax.local_devices())
    emb = plan_probe.unit_rows(_ROUNDS * devices * steps.BLOCK, dim)
    few, many = _rows(emb[: steps.BLOCK]), _rows(emb)
    _, first = plan_probe.timed(lambda: _step(few))
    # The least of several: of the difference of two times noise would be a large part.
    one, all_rounds = np.min(
        [
            [plan_probe.timed(lambda: _step(few))[1], plan_probe.timed(lambda: _step(many))[1]]
            for _ in range(_TRIES)
        ],
        axis=0,
    ).tolist()
    a_round = max(0.0, all_rounds - one) / (_ROUNDS - 1)
    read, disk = _read_seconds(options, sample, tag, survivors)
    return NormSimDRates(
        read=read,
        round=a_round,
        choose=_choose_seconds(),
        drop=plan_probe.steady(lambda: steps.sum_moment(emb, np.arange(steps.BLOCK))) / steps.BLOCK,
        step=max(0.0, one - a_round) + _state_seconds(few),
        disk=disk,
        start=plan_probe.start_seconds() + max(0.0, first - one),
    )


def _rows(emb: np.ndarray) -> steps.Rows:
    halves = np.random.default_rng(0).integers(0, 2**64, (2, len(emb)), dtype=np.uint64)
    moment = steps.sum_moment(emb, np.arange(min(len(emb), steps.BLOCK)))
    return steps.Rows(emb, uids.join_halves(*halves), moment / len(emb), moment)


def _step(rows: steps.Rows) -> steps.State:
    return steps.take_step(rows, steps.State.start(rows), keep=1, drop=1)


def _read_seconds(
    options: NormSimD, sample: Pool, tag: str, survivors: np.ndarray | None
) -> tuple[float, float]:
    """Seconds a pair to read, digest, sum up and copy, and a byte of the disk."""
    paths = [path for shard in sample.shards for path in shard_files(shard)]
    plan_probe.forget(paths)
    size, disk = plan_probe.timed(lambda: _read_some(sample.shards[0].images))
    plan_probe.forget(paths)

    def look_up() -> None:
        for shard in sample.shards:
            uids.find(
                np.empty(0, uids.DTYPE) if survivors is None else survivors, embeddings.read_uids(shard)
            )

    with stopping.scratch("clipdata-plan-") as folder:
        output = work.open_output(folder, plan={}, units=[UNIT])
        reader = Reader(sample, tag, options, survivors)
        seconds = plan_probe.timed(lambda: reader.write(output))[1]
    if survivors is not None:  # all shards' are counted before
        seconds += plan_probe.timed(look_up)[1]
    return seconds / len(sample), disk / size


def _read_some(path: str) -> int:
    with files.open_read(path) as file:
        return len(file.read(_SAMPLE))


def _choose_seconds() -> float:
    """Seconds a row to find the lowest."""
    scores = np.random.default_rng(0).standard_normal(_CHOSEN, np.float32)
    everyone = np.ones(_CHOSEN, bool)
    return plan_probe.steady(lambda: ranking.first([scores], _CHOSEN // 2, everyone)) / _CHOSEN


def _state_seconds(rows: steps.Rows) -> float:
    """Seconds to write the state and the trace after a step."""
    content = _step(rows).to_bytes()
    with stopping.scratch("clipdata-plan-") as folder:
        path = files.join(folder, "state")
        return 2 * plan_probe.steady(lambda: files.write_bytes(path, content))
