"""The columns of a score table: each score over a unit's pairs, dealt to this process's devices, no collective."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from clipdata_jax.config import NegClipLoss, Score
from clipdata_jax.config.scoring import in_thousandths
from clipdata_jax.pipeline import group_scores, groups, shard_division
from clipdata_jax.pipeline.group_scores import Job, Pairs
from clipdata_jax.pipeline.norm_sim_targets import norm_of_union, norm_sim_scorer
from clipdata_jax.pipeline.score_units import Unit
from clipdata_jax.runtime import parallel

_BLOCK = 8_192  # rows that a device takes at a time for scores that look at one row
# And for cosines of pairs, which are all reading: on a CPU the float32 form of larger blocks, fresh memory each time,
# takes five times as long.
_PAIR_BLOCK = 2_048

# The columns of `scores.NegClipLossStatistics`' fields
_SUFFIXES = ("", "_se", "_log_sum_text", "_log_sum_image")

# A unit's pairs -> name and values of each column
Columns = Callable[[Unit], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run's columns are made with.

    Attributes:
      options: of the command.
      tag: the model whose embeddings are scored.
      temperatures: each a column of negCLIPLoss.
      targets: name -> embeddings of target pictures, (n, d).
    """

    options: Score
    tag: str
    temperatures: tuple[float, ...]
    targets: dict[str, np.ndarray]


def by_rows(function: Callable[..., Any], *arrays: np.ndarray, size: int = _BLOCK) -> Any:
    """A row-wise score in blocks of one shape, dealt to this process's devices: the same bits on any number."""
    import jax

    devices = jax.local_devices()
    waiting = []
    for index, start in enumerate(range(0, len(arrays[0]), size)):
        block = [parallel.pad_rows(array[start : start + size], size) for array in arrays]
        waiting.append(function(*jax.device_put(block, devices[index % len(devices)])))
        if index >= 2 * len(devices):  # bounds the queue of converted blocks
            jax.block_until_ready(waiting[index - 2 * len(devices)])
    rows = len(arrays[0])
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts])[:rows], *waiting)


def _of_wanted(unit: Unit, function: Callable[..., Any], *arrays: np.ndarray, size: int = _BLOCK) -> Any:
    """A row-wise score of the unit's wanted rows; 0 in the others, which become null."""
    import jax

    wanted = unit.wanted
    if wanted.all():
        return by_rows(function, *arrays, size=size)
    rows = np.flatnonzero(wanted)
    # At least one row is computed, so that there is something to tell dtypes from.
    found = by_rows(function, *(array[rows if len(rows) else [0]] for array in arrays), size=size)

    def spread(values: np.ndarray) -> np.ndarray:
        whole = np.zeros(len(wanted), values.dtype)
        whole[rows] = values[: len(rows)]
        return whole

    return jax.tree.map(spread, found)


def _clip_score_columns(inputs: Inputs) -> Columns:
    from clipdata_jax import scores

    def columns(unit: Unit) -> dict[str, np.ndarray]:
        return {"clip_score": _of_wanted(unit, scores.clip_score, unit.images, unit.texts, size=_PAIR_BLOCK)}

    return columns


def _neg_clip_loss_columns(inputs: Inputs) -> Columns:
    settings, temperatures = inputs.options.neg_clip_loss, inputs.temperatures
    names = neg_clip_loss_columns(settings, inputs.tag, temperatures)

    def columns(unit: Unit) -> dict[str, np.ndarray]:
        pairs = Pairs(unit.images, unit.texts, unit.good)
        seed = inputs.options.seed
        if settings.division == "shard":
            orders = shard_division.permutations(unit.uid, repeats=settings.repeats, seed=seed)
            by_size = [
                shard_division.score_permutations(pairs, orders, batch_size=size, temperatures=temperatures)
                for size in settings.batch_sizes()
            ]
            found = [np.stack(field, axis=1) for field in zip(*by_size, strict=True)]
        else:
            shape = len(temperatures), len(settings.batch_sizes()), len(unit.uid)
            found = [np.empty(shape, np.float32) for _ in _SUFFIXES]
            for rows, fields in group_scores.run(_jobs(unit, settings, seed), pairs, temperatures):
                for whole, field in zip(found, fields, strict=True):
                    whole[..., rows] = field
        by_field = [field.reshape(len(names), -1) for field in found]
        return {
            name + suffix: field[index]
            for index, name in enumerate(names)
            for suffix, field in zip(_SUFFIXES, by_field, strict=True)
        }

    return columns


def _jobs(unit: Unit, settings: NegClipLoss, seed: int) -> Iterator[Job]:
    planned = groups.plan_groups(len(unit.uid), batch_sizes=settings.batch_sizes(), group=settings.group)
    mixed = settings.mix_shards is not None
    rows_of = groups.rows_of_groups(unit.uid, planned, seed=seed, mixed=mixed)
    for group, rows in zip(planned, rows_of, strict=True):
        slots = groups.slots_of_rows(unit.uid[rows], group, seed)
        dealt = groups.deal_cells(
            group, repeats=settings.repeats, seed=seed, name=unit.first_row + group.start
        )
        yield Job(rows, slots, group.cells * group.slots, dealt)


def neg_clip_loss_columns(settings: NegClipLoss, tag: str, temperatures: Sequence[float]) -> list[str]:
    """The columns' names, temperatures first: neg_clip_loss where there is one, else neg_clip_loss_l14_t12p5_b32768.

    That is the embeddings' tag, 1,000 times the temperature and |B|; a point is written p, and other signs _.
    """
    if len(temperatures) * len(settings.batch_sizes()) == 1:
        return ["neg_clip_loss"]
    tag = re.sub(r"\W", "_", tag, flags=re.ASCII)
    return [
        f"neg_clip_loss_{tag}_t{in_thousandths(t)}_b{size}"
        for t in temperatures
        for size in settings.batch_sizes()
    ]


def _norm_sim_columns(inputs: Inputs) -> Columns:
    settings = inputs.options.norm_sim
    scorers = {name: norm_sim_scorer(target, settings) for name, target in inputs.targets.items()}

    def columns(unit: Unit) -> dict[str, np.ndarray]:
        result = {}
        for p in settings.p:
            found = []
            for name, scorer in scorers.items():
                column = norm_sim_column(p, name)
                score, row = _of_wanted(unit, functools.partial(scorer, p=p), unit.images)
                result[column] = score
                if row is not None:
                    result[f"{column}_row"] = row
                found.append(score)
            if settings.union is not None:
                result[norm_sim_column(p, settings.union)] = norm_of_union(found, p)
        return result

    return columns


def norm_sim_column(p: float, target: str) -> str:
    """The column's name: norm_sim_inf_in1k, norm_sim_2_in1k, norm_sim_1p5_in1k."""
    return f"norm_sim_{p:g}_{target}".replace(".", "p")


# To add a score: one file in scores/, its options in config/, one line here.
SCORES: dict[str, Callable[[Inputs], Columns]] = {
    "clip_score": _clip_score_columns,
    "neg_clip_loss": _neg_clip_loss_columns,
    "norm_sim": _norm_sim_columns,
}
