"""Comparing selections of one pool: overlaps, differences, nearest targets and captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from clipdata_jax.report import caption_statistics, choice, column_labels
from clipdata_jax.selection.ranking import chunks

OWN, POOL = "this selection", "whole pool"
_TARGETS = "norm_sim_inf_"


@dataclasses.dataclass(frozen=True)
class Selection:
    """A selection: its name for readers, and of each pair of the pool, bool, (n,), whether it is kept."""

    name: str
    kept: np.ndarray


@dataclasses.dataclass(frozen=True)
class Overlap:
    """A selection's number of pairs in the pool, and how many of them each selection, in order, keeps too."""

    name: str
    pairs: int
    shared: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Pairs drawn from those that one of two selections keeps: the page's own, and the one named."""

    name: str
    only_here: choice.Drawn
    only_there: choice.Drawn


@dataclasses.dataclass(frozen=True)
class TargetCounts:
    """A selection's scored pairs, by the target that each is most similar to."""

    name: str
    pairs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Targets:
    """Counts of pairs by the target with the largest NormSim-infinity; of equal ones the first.

    Attributes:
      names: the targets.
      unions: targets left out, since they are unions of others.
      counts: of the whole pool and every selection.
    """

    names: tuple[str, ...]
    unions: tuple[str, ...]
    counts: tuple[TargetCounts, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A page's own selection compared with others; its own comes first everywhere.

    Attributes:
      rows: pairs in the pool.
      overlaps: one for every selection.
      differences: one for every other selection.
      targets: None where the pool has fewer than two targets.
      samples: of the whole pool and every selection; empty if no images are shown.
    """

    rows: int
    overlaps: tuple[Overlap, ...]
    differences: tuple[Difference, ...]
    targets: Targets | None
    samples: tuple[caption_statistics.CaptionSample, ...]

    def shown(self) -> set[int]:
        """The rows that are shown as cards."""
        drawn = [one for pair in self.differences for one in (pair.only_here, pair.only_there)]
        return {row for one in drawn for row in one.rows}

    def counted(self) -> set[int]:
        """The rows whose captions are described."""
        return {row for sample in self.samples for row in sample.rows}


def plan(
    own: np.ndarray,
    others: Sequence[Selection],
    scores: Mapping[str, np.ndarray],
    *,
    images: int,
    seed: int = 0,
    unions: Collection[str] = (),
) -> Comparison:
    """Compares a selection with others of the same pool and chooses the pairs to show; holds no further copy of them.

    Args:
      own: bool, (n,): which pairs the page's own selection keeps.
      others: the selections to compare it with.
      scores: column -> float32, (n,); NaN and infinities count as null.
      images: pairs in each grid; 0 draws none, and no captions.
      seed: of the choice.
      unions: columns of NormSim-infinity to a union of targets: nearest to a pair is a target, not their union.
    """
    selections = [Selection(OWN, own), *others]
    differences = []
    for other in others:
        here, there = (
            _draw(*sides, images, seed=seed, salt=f"{side} {other.name}")
            for side, sides in (("here, not in", (own, other.kept)), ("not here, in", (other.kept, own)))
        )
        differences.append(Difference(other.name, here, there))
    everything = [Selection(POOL, np.broadcast_to(True, own.shape)), *selections]
    samples = [
        caption_statistics.CaptionSample(
            one.name, _draw(one.kept, None, caption_statistics.MOST, seed=seed, salt=f"captions of {one.name}").rows
        )
        for one in (everything if images else ())
    ]
    return Comparison(
        rows=len(own),
        overlaps=tuple(_overlap(one, selections) for one in selections),
        differences=tuple(differences),
        targets=_targets(everything, scores, unions),
        samples=tuple(samples),
    )


def _overlap(one: Selection, all_of_them: Sequence[Selection]) -> Overlap:
    shared = (
        sum(int((one.kept[part] & other.kept[part]).sum()) for part in chunks(len(one.kept))) for other in all_of_them
    )
    return Overlap(one.name, int(one.kept.sum()), tuple(shared))


def _draw(kept: np.ndarray, but_not: np.ndarray | None, wanted: int, *, seed: int, salt: str) -> choice.Drawn:
    """Draws pairs that a selection keeps, and another, where there is one, doesn't."""

    def belongs(part: slice) -> np.ndarray:
        return kept[part] if but_not is None else kept[part] & ~but_not[part]

    return choice.draw_both(belongs, kept, wanted, seed=seed, salt=salt)


def _targets(
    selections: Sequence[Selection], scores: Mapping[str, np.ndarray], unions: Collection[str]
) -> Targets | None:
    names = [name for name in column_labels.ordered(scores) if name.startswith(_TARGETS)]
    names = [name for name in names if not column_labels.is_side_column(name)]
    rows = len(selections[0].kept)
    singles = [name for name in names if name not in unions]
    if len(singles) < 2:
        return None
    counts = np.zeros((len(selections), len(singles)), np.int64)
    for part in chunks(rows):
        values = np.stack([_finite(scores[name][part]) for name in singles])
        nearest, scored = values.argmax(axis=0), values.max(axis=0) > -np.inf
        for index, one in enumerate(selections):
            counts[index] += np.bincount(nearest[scored & one.kept[part]], minlength=len(singles))
    found = zip(selections, counts.tolist(), strict=True)
    return Targets(
        tuple(map(_target, singles)),
        tuple(_target(name) for name in names if name in unions),
        tuple(TargetCounts(one.name, tuple(pairs)) for one, pairs in found),
    )


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, -np.inf)


def _target(name: str) -> str:
    return name.removeprefix(_TARGETS)
