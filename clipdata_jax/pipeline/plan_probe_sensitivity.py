"""What `plan` asks of a process that has jax about `sensitivity`: how fast it scores and compares selections."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from clipdata_jax.data import uids
from clipdata_jax.pipeline import plan_probe, sensitivity_scores
from clipdata_jax.pipeline.plan_probe import ScoreQuestion
from clipdata_jax.pipeline.score_units import shard_files
from clipdata_jax.pipeline.sensitivity_scores import Setting

_COMPARED = 1 << 16


@dataclasses.dataclass(frozen=True)
class SensitivityRates:
    """Seconds: a pair to read, a row squared of a group where all settings vary and where one does, a row and setting
    to compare what is selected, to compile a group's program, and until the first unit can be read.
    """

    read: float
    varied: float
    single: float
    compare: float
    compile: float
    start: float


def sensitivity(question: ScoreQuestion) -> SensitivityRates:
    """Measures what `sensitivity` does: reads a sample of the pool, scores groups, compares what is selected."""
    plan_probe.forget(path for shard in question.shards for path in shard_files(shard))
    unit, read = plan_probe.timed(lambda: plan_probe.read_unit(question))
    settings = question.options.neg_clip_loss
    one = dataclasses.replace(settings, batch_size=max(settings.batch_sizes()))
    varied, compiling = plan_probe.group_seconds(
        settings, question.dim, question.temperatures, question.group
    )
    single, _ = plan_probe.group_seconds(one, question.dim, question.temperatures[:1], question.group)
    return SensitivityRates(
        read=read / max(len(unit.uid), 1),
        varied=varied,
        single=single,
        compare=_compare_seconds(),
        compile=compiling,
        start=plan_probe.start_seconds(),
    )


def _compare_seconds() -> float:
    """Seconds a row and setting of ranks, and of what is selected."""
    random = np.random.default_rng(0)
    uid = uids.join_halves(*random.integers(0, 2**64, (2, _COMPARED), dtype=np.uint64))
    settings = [Setting(repeats, 1, 1, 1.0) for repeats in (1, 2)]

    def scores() -> dict[Setting, np.ndarray]:
        return {setting: random.standard_normal(_COMPARED, np.float32) for setting in settings}

    by_seed = scores(), scores()
    clip_score, count = by_seed[0][settings[0]], _COMPARED // 3
    measure = functools.partial(sensitivity_scores.measure, clip_score=clip_score, uid=uid, count=count)
    return plan_probe.timed(lambda: measure(by_seed, settings[0]))[1] / _COMPARED / len(settings)
