"""The columns of a score table: each score over a unit's pairs, dealt to this process's devices, no collective."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from clipdata_jax.config import NegClipLoss, NormSim, Score
from clipdata_jax.config.scoring import in_thousandths
from clipdata_jax.runtime import parallel
from clipdata_jax.scoring import group_scores, groups, reference_division
from clipdata_jax.scoring.group_scores import Job, Pairs
from clipdata_jax.scoring.units import Unit

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
      targets: name -> embeddings of target images, (n, d).
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
            orders = reference_division.permutations(unit.uid, repeats=settings.repeats, seed=seed)
            by_size = [
                reference_division.score_permutations(
                    pairs, orders, batch_size=size, temperatures=temperatures
                )
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


# A copy of a target may take this share of a device's memory; larger ones are sharded over the devices.
_SHARE_OF_DEVICE = 0.25

_ROWS = 65_536  # of a target that are summed up at a time

# A block of images on one device, and p -> scores, and the nearest target rows or None where nobody asks
Scorer = Callable[..., tuple[Any, Any]]


def norm_sim_scorer(target: Float[np.ndarray, "n d"], settings: NormSim) -> Scorer:
    """What scores images by one target.

    Args:
      target: the target's embeddings.
      settings: whether cosines are signed, and whether the nearest row is asked for.
    """
    import jax
    import jax.numpy as jnp

    from clipdata_jax import scores

    @functools.cache
    def moment() -> np.ndarray:
        total = np.zeros((target.shape[1],) * 2, np.float32)
        for start in range(0, len(target), _ROWS):
            total += scores.second_moment(jnp.asarray(target[start : start + _ROWS]))
        return total

    whole = None if _must_shard(target) else {one: jax.device_put(target, one) for one in jax.local_devices()}
    sharded = functools.cache(functools.partial(_sharded, target))

    def score(images: Any, *, p: float) -> tuple[Any, Any]:
        device = next(iter(images.devices()))
        if p == 2:
            return scores.norm_sim_moment(images, jax.device_put(moment(), device)), None
        signed = settings.signed and p == math.inf
        if settings.nearest and p == math.inf:
            if whole is not None:
                return scores.nearest_target(images, whole[device], signed=signed)
            found = scores.nearest_target_sharded(
                images, sharded(p), mesh=parallel.local_mesh(), signed=signed
            )
            return found.score, np.minimum(np.asarray(found.row), len(target) - 1)  # the last may be repeated
        if whole is not None:
            return scores.norm_sim(images, whole[device], p=p, signed=signed), None
        return scores.norm_sim_sharded(
            images, sharded(p), mesh=parallel.local_mesh(), p=p, signed=signed
        ), None

    return score


def norm_of_union(norms: Sequence[Float32[np.ndarray, " b"]], p: float) -> Float32[np.ndarray, " b"]:
    """NormSim to several targets taken as one, from NormSim to each: the p-norm of the p-norms.

        ||(a; b)||_p = || (||a||_p, ||b||_p) ||_p

    Args:
      norms: of each target, shape (b,).
      p: the norm, at least 1, or inf. (With signed cosines, p = inf, the largest is signed too.)
    """
    stacked = np.stack(norms)
    most = stacked.max(axis=0)
    if p == math.inf:
        return most
    scale = np.where(most > 0, most, 1)  # |x|^30 would underflow
    return (scale * np.sum((stacked / scale) ** p, axis=0, dtype=np.float64) ** (1 / p)).astype(np.float32)


def _must_shard(target: np.ndarray) -> bool:
    """Whether a copy of the target is too much for a device, and there are several to share it."""
    import jax

    devices = jax.local_devices()
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    return len(devices) > 1 and memory is not None and target.nbytes > _SHARE_OF_DEVICE * memory


def _sharded(target: np.ndarray, p: float) -> Any:
    """The target over this process's devices; what is added to divide evenly changes no norm."""
    import jax

    mesh = parallel.local_mesh()
    missing = -len(target) % mesh.size
    added = np.repeat(target[-1:] if p == math.inf else np.zeros_like(target[:1]), missing, axis=0)
    padded = np.concatenate([target, added])
    return jax.device_put(padded, jax.NamedSharding(mesh, jax.P(parallel.AXIS)))
