"""How K, m, |B| and t change negCLIPLoss and what it selects: many settings scored on one sample, twice.

A setting is scored under two seeds. Both deal the sample's pairs to groups anew, as `score --mix-shards` does, so a
pair meets other negatives under the other seed; what differs then is chance.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipdata_jax.pipeline import group_scores, groups
from clipdata_jax.pipeline.group_scores import Job, Pairs
from clipdata_jax.report import ranks
from clipdata_jax.selection import ranking

_USUAL_REPEATS, _USUAL_GROUP = 10, 4  # what `score` does unless told otherwise
_NEARLY = 1.1  # a sample of 1,000 is four batches of 256


class Setting(NamedTuple):
    """One choice of K, m, |B| and t."""

    repeats: int
    group: int
    batch_size: int
    temperature: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings to try.

    Attributes:
      base: the setting that others differ from in one respect.
      finest: the base with the most divisions and the most negatives: nearest to no chance at all.
      axes: "repeats", "group", "batch_size", "temperature" -> the settings along it, ascending.
    """

    base: Setting
    finest: Setting
    axes: dict[str, tuple[Setting, ...]]

    def settings(self) -> list[Setting]:
        """All, each once."""
        return sorted({self.finest, *(setting for axis in self.axes.values() for setting in axis)})


def plan(
    *,
    repeats: Sequence[int],
    group: Sequence[int],
    batch_sizes: Sequence[int],
    temperatures: Sequence[float],
    rows: int,
) -> Plan:
    """Varies each of four settings about a base; an m of which the sample holds no group is left out.

    Args:
      repeats: each K; the base has 10 if that is one of them, else the largest.
      group: each m; the base has 4 if that is one of them, else the largest.
      batch_sizes: each |B|; the base has the largest.
      temperatures: each t; the base has the first.
      rows: pairs in the sample.
    """
    most = max(batch_sizes)
    held = [m for m in group if m * most <= _NEARLY * rows] or [min(group)]
    base = Setting(
        _USUAL_REPEATS if _USUAL_REPEATS in repeats else max(repeats),
        _USUAL_GROUP if _USUAL_GROUP in held else max(held),
        most,
        temperatures[0],
    )
    values: dict[str, Sequence[Any]] = {
        "repeats": repeats,
        "group": held,
        "batch_size": batch_sizes,
        "temperature": temperatures,
    }
    axes = {
        name: tuple(base._replace(**{name: value}) for value in sorted(set(tried)))
        for name, tried in values.items()
    }
    return Plan(base, base._replace(repeats=max(repeats), group=max(held)), axes)


def score(
    settings: Sequence[Setting],
    pairs: Pairs,
    uid: np.ndarray,
    *,
    seed: int,
    done: Callable[[int], object] = lambda rows: None,
) -> dict[Setting, np.ndarray]:
    """negCLIPLoss of every pair in every setting, (n,) each; all settings of one m come from one pass.

    Args:
      settings: what to try; those of each m include the largest |B|.
      pairs: the sample.
      uid: shape (n,), u8,u8.
      seed: deals pairs to groups and cells, and cells to batches.
      done: told the rows of each group, times its m, when it is scored.
    """
    found = {setting: np.empty(len(uid), np.float32) for setting in settings}
    for m in sorted({setting.group for setting in settings}):
        here = [setting for setting in settings if setting.group == m]
        temperatures = sorted({setting.temperature for setting in here})
        divided = sorted({(setting.batch_size, setting.repeats) for setting in here})
        for rows, fields in group_scores.run(_jobs(uid, m, divided, seed), pairs, temperatures):
            for one in here:
                at = temperatures.index(one.temperature), divided.index((one.batch_size, one.repeats))
                found[one][rows] = fields[0][at]
            done(m * len(rows))
    return found


def _jobs(uid: np.ndarray, m: int, divided: Sequence[tuple[int, int]], seed: int) -> Iterator[Job]:
    """Groups of m batches, each with K divisions into batches of |B| for each (|B|, K)."""
    sizes = sorted({size for size, _ in divided})
    planned = groups.plan_groups(len(uid), batch_sizes=sizes, group=m)
    rows_of = groups.rows_of_groups(uid, planned, seed=seed, mixed=True)
    for group, rows in zip(planned, rows_of, strict=True):
        dealt = groups.deal_cells(group, repeats=max(k for _, k in divided), seed=seed, name=group.start)
        of_each = tuple(dealt[sizes.index(size), :k] for size, k in divided)
        yield Job(rows, groups.slots_of_rows(uid[rows], group, seed), group.cells * group.slots, of_each)


class Figures(NamedTuple):
    """What a setting's selection is like; the means over both seeds, each a share but for the first.

    Attributes:
      spearman_clip_score: rank correlation with CLIPScore.
      overlap_clip_score: of the selection, what CLIPScore would select too.
      flips_between_seeds: of the selection, what the other seed would not select: chance.
      flips_from_finest: of the selection, what the finest setting would not select under the other seed.
    """

    spearman_clip_score: float
    overlap_clip_score: float
    flips_between_seeds: float
    flips_from_finest: float


def measure(
    by_seed: tuple[Mapping[Setting, np.ndarray], Mapping[Setting, np.ndarray]],
    finest: Setting,
    *,
    clip_score: np.ndarray,
    uid: np.ndarray,
    count: int,
) -> dict[Setting, Figures]:
    """The figures of every setting, a selection being the `count` pairs of the highest score.

    Args:
      by_seed: setting -> scores (n,), under each of two seeds.
      finest: the setting to compare with.
      clip_score: shape (n,).
      uid: shape (n,), u8,u8; ties go by it.
      count: pairs to select, at least 1.
    """
    everyone = np.ones(len(uid), bool)

    def select(values: np.ndarray) -> np.ndarray:
        return ranking.first([-values, uid["f0"], uid["f1"]], count, everyone)

    def share(kept: np.ndarray, of: np.ndarray) -> float:
        return float((kept & of).sum() / count)

    rank = functools.cache(lambda: ranks.rank(clip_score).middle(clip_score))
    by_clip_score, best = select(clip_score), [select(scores[finest]) for scores in by_seed]
    found = {}
    for setting in by_seed[0]:
        kept = [select(scores[setting]) for scores in by_seed]
        places = [ranks.rank(scores[setting]).middle(scores[setting]) for scores in by_seed]
        found[setting] = Figures(
            float(np.mean([_correlation(place, rank()) for place in places])),
            float(np.mean([share(one, by_clip_score) for one in kept])),
            1 - share(*kept),
            1 - (share(kept[0], best[1]) + share(kept[1], best[0])) / 2,
        )
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spread = a.std() * b.std()
    return float(np.mean((a - a.mean()) * (b - b.mean())) / spread) if spread > 0 else float("nan")


def advise(made: Plan, found: Mapping[Setting, Figures], *, rows: int, pairs: int, tolerance: float) -> str:
    """One sentence: which m is enough, in that no more of the selection than the tolerance is left to chance.

    Args:
      made: the settings.
      found: their figures.
      rows: pairs in the sample.
      pairs: pairs in the pool, from which `score` could take a larger group.
      tolerance: share of the selection that may be left to chance.
    """
    if round(rows / made.base.batch_size) <= 1:
        return (
            f"The {rows:,} pairs are one batch of |B| = {made.base.batch_size:,}: nothing is left to chance, and"
            " neither K nor m matters here."
        )
    along = [(setting.group, found[setting].flips_between_seeds) for setting in made.axes["group"]]
    enough = next(((m, flips) for m, flips in along if flips <= tolerance), None)
    if enough is not None:
        return f"m = {enough[0]} is enough here: {percent(enough[1])} of the selection would flip with another seed."
    most, flips = along[-1]
    more = "a larger --group" if most * made.base.batch_size * 2 <= pairs else "a larger --batch-size"
    return (
        f"Even m = {most} leaves {percent(flips)} of the selection to chance, more than --tolerance {tolerance:g}:"
        f" give score {more}."
    )


def percent(share: float) -> str:
    """12.3 %, or 0.03 % where one decimal would hide it."""
    shown = f"{100 * share:.1f}" if share >= 0.001 else f"{100 * share:.1g}"
    return f"{shown.removesuffix('.0') if share >= 1 else shown} %"
