"""The columns of a score table: each score of a unit's pairs, on this process's devices, without collectives."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from clipdata_jax.config import NegClipLoss, NormSim
from clipdata_jax.config.scoring import in_thousandths
from clipdata_jax.runtime import parallel
from clipdata_jax.scoring import group_scores, groups, reference_division
from clipdata_jax.scoring.group_scores import Job, Pairs
from clipdata_jax.scoring.head_files import Head
from clipdata_jax.scoring.units import ScoreUnit

_BLOCK = 8_192  # rows per device and step of scores that look at one row
# For cosines of pairs, which are all reading: on a CPU the float32 form of larger blocks, fresh memory each time,
# takes five times as long.
_PAIR_BLOCK = 2_048
_TARGET_BLOCK = 65_536  # rows of a target that are summed up at a time
_SHARE_OF_DEVICE = 0.25  # of its memory, for a copy of a target; larger targets are sharded over the devices

# Suffixes of the columns of the fields of `scores.NegClipLossStatistics`
_SUFFIXES = ("", "_se", "_log_sum_text", "_log_sum_image")

# A unit's pairs -> name and values of each column
Columns = Callable[[ScoreUnit], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnInputs:
    """The inputs that a run's columns are computed from.

    Attributes:
      neg_clip_loss: settings of negCLIPLoss.
      norm_sim: settings of NormSim.
      seed: of the divisions into batches.
      tag: the model whose embeddings are scored.
      temperatures: each a column of negCLIPLoss.
      targets: name -> embeddings of target images, (n, d).
      heads: column -> head.
    """

    neg_clip_loss: NegClipLoss
    norm_sim: NormSim
    seed: int
    tag: str
    temperatures: tuple[float, ...]
    targets: Mapping[str, np.ndarray]
    heads: Mapping[str, Head]


def by_rows(function: Callable[..., Any], *arrays: np.ndarray, size: int = _BLOCK) -> Any:
    """Computes a row-wise score in blocks of one shape on this process's devices; the same bits on any number."""
    import jax

    devices = jax.local_devices()
    waiting = []
    for index, start in enumerate(range(0, max(1, len(arrays[0])), size)):  # no rows are a block of padding
        block = [parallel.pad_rows(array[start : start + size], size) for array in arrays]
        waiting.append(function(*jax.device_put(block, devices[index % len(devices)])))
        if index >= 2 * len(devices):  # bounds the queue of converted blocks
            jax.block_until_ready(waiting[index - 2 * len(devices)])
    rows = len(arrays[0])
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts])[:rows], *waiting)


def _of_wanted(unit: ScoreUnit, function: Callable[..., Any], *arrays: np.ndarray, size: int = _BLOCK) -> Any:
    """Computes a row-wise score of the unit's wanted rows; 0 in the others, which become null."""
    import jax

    wanted = unit.wanted
    if wanted.all():
        return by_rows(function, *arrays, size=size)
    rows = np.flatnonzero(wanted)
    # At least one row is computed, which yields the dtypes.
    found = by_rows(function, *(array[rows if len(rows) else [0]] for array in arrays), size=size)

    def spread(values: np.ndarray) -> np.ndarray:
        whole = np.zeros(len(wanted), values.dtype)
        whole[rows] = values[: len(rows)]
        return whole

    return jax.tree.map(spread, found)


def _clip_score_columns(inputs: ColumnInputs) -> Columns:
    from clipdata_jax import scores

    def columns(unit: ScoreUnit) -> dict[str, np.ndarray]:
        return {"clip_score": _of_wanted(unit, scores.clip_score, unit.images, unit.texts, size=_PAIR_BLOCK)}

    return columns


def _neg_clip_loss_columns(inputs: ColumnInputs) -> Columns:
    settings, temperatures, seed = inputs.neg_clip_loss, inputs.temperatures, inputs.seed
    names = neg_clip_loss_columns(settings, inputs.tag, temperatures)

    def columns(unit: ScoreUnit) -> dict[str, np.ndarray]:
        pairs = Pairs(unit.images, unit.texts, unit.good)
        if settings.division == "shard":
            orders = reference_division.permutations(unit.uid, repeats=settings.repeats, seed=seed)
            by_size = [
                reference_division.score_permutations(pairs, orders, batch_size=size, temperatures=temperatures)
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


def _jobs(unit: ScoreUnit, settings: NegClipLoss, seed: int) -> Iterator[Job]:
    planned = groups.plan_groups(len(unit.uid), batch_sizes=settings.batch_sizes(), group=settings.group)
    mixed = settings.mix_shards is not None
    rows_of = groups.rows_of_groups(unit.uid, planned, seed=seed, mixed=mixed)
    for group, rows in zip(planned, rows_of, strict=True):
        slots = groups.slots_of_rows(unit.uid[rows], group, seed)
        dealt = groups.deal_cells(group, repeats=settings.repeats, seed=seed, name=unit.first_row + group.start)
        yield Job(rows, slots, group.cells * group.slots, dealt)


def neg_clip_loss_columns(settings: NegClipLoss, tag: str, temperatures: Sequence[float]) -> list[str]:
    """The names of the columns, temperatures first: neg_clip_loss if it is the only one.

    Else they consist of the embeddings' tag, 1,000 times the temperature (p for the point) and |B|:
    neg_clip_loss_l14_t12p5_b32768.

    >>> neg_clip_loss_columns(NegClipLoss(batch_size=(256, 512)), "l14", [0.0125])
    ['neg_clip_loss_l14_t12p5_b256', 'neg_clip_loss_l14_t12p5_b512']
    """
    if len(temperatures) * len(settings.batch_sizes()) == 1:
        return ["neg_clip_loss"]
    tag = re.sub(r"\W", "_", tag, flags=re.ASCII)
    return [
        f"neg_clip_loss_{tag}_t{in_thousandths(t)}_b{size}" for t in temperatures for size in settings.batch_sizes()
    ]


def _norm_sim_columns(inputs: ColumnInputs) -> Columns:
    settings = inputs.norm_sim
    scorers = {name: TargetScorer(target, settings) for name, target in inputs.targets.items()}

    def columns(unit: ScoreUnit) -> dict[str, np.ndarray]:
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
    """The name of a column: norm_sim_inf_in1k, norm_sim_2_in1k, norm_sim_1p5_in1k.

    >>> norm_sim_column(1.5, "in1k")
    'norm_sim_1p5_in1k'
    """
    return f"norm_sim_{p:g}_{target}".replace(".", "p")


def _head_columns(inputs: ColumnInputs) -> Columns:
    from clipdata_jax import scores

    def columns(unit: ScoreUnit) -> dict[str, np.ndarray]:
        result = {}
        for name, head in inputs.heads.items():
            function = functools.partial(
                scores.head_score, layers=head.layers, activation=head.activation, output=head.output
            )
            result[name] = _of_wanted(unit, function, unit.images)
        return result

    return columns


# A new score takes one file in scores/, its options in config/, and one line here.
SCORES: dict[str, Callable[[ColumnInputs], Columns]] = {
    "clip_score": _clip_score_columns,
    "neg_clip_loss": _neg_clip_loss_columns,
    "norm_sim": _norm_sim_columns,
    "head": _head_columns,
}


class TargetScorer:
    """NormSim of images to one target.

    Args:
      target: the target's embeddings.
      settings: whether cosines are signed, and whether the nearest row is wanted.
    """

    def __init__(self, target: Float[np.ndarray, "n d"], settings: NormSim) -> None:
        import jax

        self._target, self._settings = target, settings
        devices = () if _must_shard(target) else jax.local_devices()
        self._whole = {device: jax.device_put(target, device) for device in devices}
        self._sharded = functools.cache(self._shard)

    def __call__(self, images: Any, *, p: float) -> tuple[Any, Any]:
        """Scores images, (b, d) on one device: scores (b,), and the nearest target rows if wanted, else None."""
        import jax

        from clipdata_jax import scores

        device = next(iter(images.devices()))
        if p == 2:
            return scores.norm_sim_moment(images, jax.device_put(self._moment, device)), None
        signed = self._settings.signed and p == math.inf
        nearest = self._settings.nearest and p == math.inf
        if self._whole:
            if nearest:
                return scores.nearest_target(images, self._whole[device], signed=signed)
            return scores.norm_sim(images, self._whole[device], p=p, signed=signed), None
        mesh = parallel.local_mesh()
        if nearest:
            found = scores.nearest_target_sharded(images, self._sharded(p), mesh=mesh, signed=signed)
            # The last row may be repeated.
            return found.score, np.minimum(np.asarray(found.row), len(self._target) - 1)
        return scores.norm_sim_sharded(images, self._sharded(p), mesh=mesh, p=p, signed=signed), None

    @functools.cached_property
    def _moment(self) -> np.ndarray:
        import jax.numpy as jnp

        from clipdata_jax import scores

        total = np.zeros((self._target.shape[1],) * 2, np.float32)
        for start in range(0, len(self._target), _TARGET_BLOCK):
            total += scores.second_moment(jnp.asarray(self._target[start : start + _TARGET_BLOCK]))
        return total

    def _shard(self, p: float) -> Any:
        """The target over this process's devices; rows added to divide evenly change no norm."""
        import jax

        mesh = parallel.local_mesh()
        missing = -len(self._target) % mesh.size
        added = self._target[-1:] if p == math.inf else np.zeros_like(self._target[:1])
        padded = np.concatenate([self._target, np.repeat(added, missing, axis=0)])
        return jax.device_put(padded, jax.NamedSharding(mesh, jax.P(parallel.AXIS)))


def norm_of_union(norms: Sequence[Float32[np.ndarray, " b"]], p: float) -> Float32[np.ndarray, " b"]:
    """Computes NormSim to the union of several targets from NormSim to each: the p-norm of the p-norms.

        ||(a; b)||_p = || (||a||_p, ||b||_p) ||_p

    Args:
      norms: of each target, shape (b,).
      p: the norm, at least 1, or inf. (With signed cosines, p = inf, the largest is signed too.)
    """
    stacked = np.stack(norms)
    most: np.ndarray = stacked.max(axis=0)
    if p == math.inf:
        return most
    scale = np.where(most > 0, most, 1)  # |x|^30 would underflow
    return (scale * np.sum((stacked / scale) ** p, axis=0, dtype=np.float64) ** (1 / p)).astype(np.float32)


def _must_shard(target: np.ndarray) -> bool:
    """Whether a copy of the target is too large for a device, and there are several devices."""
    import jax

    devices = jax.local_devices()
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    return len(devices) > 1 and memory is not None and target.nbytes > _SHARE_OF_DEVICE * memory
