"""The columns of a score table: each score over a unit's pairs, dealt to this process's devices, no collective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clipdata_jax import parallel
from clipdata_jax.config import Score
from clipdata_jax.pipeline import groups
from clipdata_jax.pipeline.score_units import Unit

_BLOCK = 8_192  # rows that a device takes at a time for scores that look at one pair

# The columns of `scores.NegClipLossStatistics`' fields
_STATISTICS = (
    "neg_clip_loss",
    "neg_clip_loss_se",
    "neg_clip_loss_log_sum_text",
    "neg_clip_loss_log_sum_image",
)

# A unit's pairs -> name and values of each column
Columns = Callable[[Unit], dict[str, np.ndarray]]


def _by_rows(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """A row-wise score in blocks of one shape, dealt to this process's devices: the same bits on any number."""
    import jax

    devices = jax.local_devices()
    waiting = []
    for index, start in enumerate(range(0, len(arrays[0]), _BLOCK)):
        block = [parallel.pad_rows(array[start : start + _BLOCK], _BLOCK) for array in arrays]
        waiting.append(function(*jax.device_put(block, devices[index % len(devices)])))
        if index >= 2 * len(devices):  # bounds the queue of converted blocks
            waiting[index - 2 * len(devices)].block_until_ready()
    return np.concatenate([np.asarray(part) for part in waiting] or [np.empty(0, np.float32)])[
        : len(arrays[0])
    ]


def _clip_score_columns(options: Score, temperature: float, targets: dict[str, np.ndarray]) -> Columns:
    from clipdata_jax import scores

    return lambda unit: {"clip_score": _by_rows(scores.clip_score, unit.images, unit.texts)}


def _neg_clip_loss_columns(options: Score, temperature: float, targets: dict[str, np.ndarray]) -> Columns:
    import jax

    from clipdata_jax import scores

    settings = options.neg_clip_loss

    def columns(unit: Unit) -> dict[str, np.ndarray]:
        planned = groups.plan_groups(len(unit.uid), batch_size=settings.batch_size, group=settings.group)
        devices, waiting = jax.local_devices(), []
        for index, group in enumerate(planned):
            rows = slice(group.start, group.start + group.rows)
            slots = groups.slots_of_rows(unit.uid[rows], group, options.seed)
            laid = [
                _lay(array[rows], slots, group.cells * group.slots)
                for array in (unit.images, unit.texts, unit.good)
            ]
            dealt = groups.deal_cells(
                group, repeats=settings.repeats, seed=options.seed, name=unit.first_row + group.start
            )
            image_emb, text_emb, mask, dealt = jax.device_put((*laid, dealt), devices[index % len(devices)])
            found = scores.neg_clip_loss_statistics(
                image_emb, text_emb, dealt, temperature=temperature, mask=mask
            )
            waiting.append((found, slots))
            if index >= len(devices):  # one group a device in flight, one waiting
                jax.block_until_ready(waiting[index - len(devices)][0])
        by_field = zip(
            *([np.asarray(field)[slots] for field in found] for found, slots in waiting), strict=True
        )
        return {name: np.concatenate(parts) for name, parts in zip(_STATISTICS, by_field, strict=True)}

    return columns


def _lay(rows: np.ndarray, slots: np.ndarray, size: int) -> np.ndarray:
    laid = np.zeros((size, *rows.shape[1:]), rows.dtype)
    laid[slots] = rows
    return laid


def _norm_sim_columns(options: Score, temperature: float, targets: dict[str, np.ndarray]) -> Columns:
    import jax

    from clipdata_jax import scores

    # One copy of each target a device, put there once.
    placed = {
        device: {name: jax.device_put(target, device) for name, target in targets.items()}
        for device in jax.local_devices()
    }

    def columns(unit: Unit) -> dict[str, np.ndarray]:
        result = {}
        for name in targets:
            for p in options.norm_sim.p:

                def score(images: Any, name: str = name, p: float = p) -> Any:
                    return scores.norm_sim(images, placed[next(iter(images.devices()))][name], p=p)

                result[norm_sim_column(p, name)] = _by_rows(score, unit.images)
        return result

    return columns


def norm_sim_column(p: float, target: str) -> str:
    """The column's name: norm_sim_inf_in1k, norm_sim_2_in1k, norm_sim_1p5_in1k."""
    return f"norm_sim_{p:g}_{target}".replace(".", "p")


# To add a score: one file in scores/, its options in config/, one line here.
SCORES: dict[str, Callable[[Score, float, dict[str, np.ndarray]], Columns]] = {
    "clip_score": _clip_score_columns,
    "neg_clip_loss": _neg_clip_loss_columns,
    "norm_sim": _norm_sim_columns,
}
