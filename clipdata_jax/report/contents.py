"""Contents of a page: the figures of a selection and the pairs that illustrate them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from clipdata_jax.report import choice, column_labels, histogram, quadrants, text
from clipdata_jax.selection.ranking import Quantiles


@dataclasses.dataclass(frozen=True)
class Side:
    """Mean and median of a score over the kept or the dropped pairs; NaN where there are none."""

    mean: float
    median: float


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of a score column.

    Attributes:
      name: the column's name.
      label: its name for readers.
      is_score: False for standard errors and log-sums.
      places: decimals that tell its values apart.
      ranks: its order.
      kept: figures of the kept pairs.
      dropped: figures of the dropped pairs.
      drawing: the histogram.
      clipped: pairs beyond the histogram's edges, counted in its outermost bars.
    """

    name: str
    label: str
    is_score: bool
    places: int
    ranks: Quantiles
    kept: Side
    dropped: Side
    drawing: histogram.HistogramDrawing
    clipped: int


@dataclasses.dataclass(frozen=True)
class Contents:
    """Everything that a page shows, except images and captions.

    Attributes:
      rows: pairs in the pool.
      kept: how many of them are kept.
      named: how often the selection names pairs: more than `kept` where it repeats some.
      nulls: pairs without one of the scores.
      figures: one per column, in the page's order.
      quadrants: two scores against each other, None where the pool lacks them.
      quadrant_pairs: pairs drawn from each quadrant; [] if none are shown.
      bands: column -> pairs drawn about fixed quantiles; {} if none are shown.
      disagreement: of `rivals`, None where the pool lacks them.
      rivals: names of the two columns compared.
      scores: shown row -> column -> (score, share of the pool that scores at least as high).
      is_kept: shown row -> whether it is kept.
    """

    rows: int
    kept: int
    named: int
    nulls: int
    figures: tuple[Figures, ...]
    quadrants: quadrants.Quadrants | None
    quadrant_pairs: list[choice.Drawn]
    bands: dict[str, list[choice.Band]]
    disagreement: choice.Disagreement | None
    rivals: tuple[str, str]
    scores: dict[int, dict[str, tuple[float, float]]]
    is_kept: dict[int, bool]

    def figures_of(self, name: str) -> Figures:
        """The figures of a column."""
        return next(figures for figures in self.figures if figures.name == name)


def plan(
    scores: Mapping[str, np.ndarray],
    kept: np.ndarray,
    *,
    images: int,
    seed: int = 0,
    rule: str = "",
    also: Iterable[int] = (),
    times: np.ndarray | None = None,
) -> Contents:
    """Computes the figures and chooses the pairs to show.

    Beside its input it holds copies of one column at a time.

    Args:
      scores: column -> float32, (n,); NaN and infinities count as null.
      kept: bool, (n,): which pairs the selection keeps.
      images: pairs in each grid; 0 chooses none.
      seed: of the choice.
      rule: the selection's rule: columns that it names go first where one must be picked.
      also: further rows that the page shows.
      times: shape (n,), how often the selection names each pair; None: each that it keeps once. Means and medians of
        kept pairs count them as often.

    Returns:
      the contents; the rows whose images and captions are wanted are the keys of `scores`.

    Raises:
      ValueError: a column's length differs from the number of pairs.
    """
    for name, values in scores.items():
        if values.shape != kept.shape:
            raise ValueError(f"column {name!r} has shape {values.shape}, expected {kept.shape}")
    figures = tuple(column_figures(name, scores[name], kept, times) for name in column_labels.ordered(scores))
    ranks = {entry.name: entry.ranks for entry in figures}
    rivals = _pick((column_labels.CLIP_SCORE, column_labels.NEG_CLIP_LOSS), scores, rule)
    axes = _pick((column_labels.NORM_SIM, column_labels.NEG_CLIP_LOSS), scores, rule) or rivals
    crossed = quadrants.split(scores, ranks, kept, x=axes[0], y=axes[1]) if axes else None
    contents = Contents(
        rows=len(kept),
        kept=int(kept.sum()),
        named=int((kept if times is None else times).sum()),
        nulls=_nulls(scores, len(kept)),
        figures=figures,
        quadrants=crossed,
        quadrant_pairs=[],
        bands={},
        disagreement=None,
        rivals=rivals or ("", ""),
        scores={},
        is_kept={},
    )
    return _choose(contents, scores, kept, images, seed, also) if images else contents


def _choose(
    contents: Contents, scores: Mapping[str, np.ndarray], kept: np.ndarray, wanted: int, seed: int, also: Iterable[int]
) -> Contents:
    ranks = {entry.name: entry.ranks for entry in contents.figures}
    bands = {
        entry.name: choice.bands(entry.name, scores[entry.name], kept, entry.ranks, wanted=wanted, seed=seed)
        for entry in contents.figures
        if entry.is_score
    }
    crossed, pairs, split = contents.quadrants, [], None
    if crossed is not None:
        pairs = choice.of_quadrants(crossed, scores, kept, wanted=wanted, seed=seed)
    if contents.rivals[0]:
        a, b = contents.rivals
        split = choice.disagree(scores[a], scores[b], (ranks[a], ranks[b]), wanted=wanted)
    drawn = [*pairs, *(band.drawn for found in bands.values() for band in found)]
    shown = {row for one in drawn for row in one.rows} | set(also)
    shown |= {*split.first_higher, *split.second_higher} if split else set()
    rows = np.array(sorted(shown), np.int64)
    table: dict[int, dict[str, tuple[float, float]]] = {int(row): {} for row in rows}
    for entry in contents.figures:
        if entry.is_score:
            values = scores[entry.name][rows]
            for row, value, share in zip(rows, values, entry.ranks.share_at_least(values), strict=True):
                table[int(row)][entry.name] = (float(value), float(share))
    is_kept = {int(row): bool(kept[row]) for row in rows}
    return dataclasses.replace(
        contents, quadrant_pairs=pairs, bands=bands, disagreement=split, scores=table, is_kept=is_kept
    )


def column_figures(name: str, values: np.ndarray, kept: np.ndarray, times: np.ndarray | None = None) -> Figures:
    ranks = Quantiles.of(values)
    counts = histogram.count(values, kept, ranks)
    of_kept, of_dropped = _side(values[kept], None if times is None else times[kept]), _side(values[~kept])
    drawing = histogram.draw(counts, {"dropped": of_dropped.median, "kept": of_kept.median})
    places = text.decimals(ranks.value_at(0.999) - ranks.value_at(0.001))
    return Figures(
        name=name,
        label=column_labels.label(name),
        is_score=not column_labels.is_side_column(name),
        places=places,
        ranks=ranks,
        kept=of_kept,
        dropped=of_dropped,
        drawing=drawing,
        clipped=counts.clipped,
    )


def _side(values: np.ndarray, times: np.ndarray | None = None) -> Side:
    finite = np.isfinite(values)
    values = values[finite]
    if not len(values):
        return Side(float("nan"), float("nan"))
    if times is None:
        return Side(float(values.mean(dtype=np.float64)), float(np.median(values)))
    order = np.argsort(values)
    ordered, reached = values[order], np.cumsum(times[finite][order], dtype=np.int64)
    middle = np.searchsorted(reached, [(reached[-1] - 1) // 2, reached[-1] // 2], side="right")
    return Side(float(np.average(values.astype(np.float64), weights=times[finite])), float(ordered[middle].mean()))


def _nulls(scores: Mapping[str, np.ndarray], rows: int) -> int:
    null = np.zeros(rows, bool)
    for name, values in scores.items():
        if not column_labels.is_side_column(name):
            null |= ~np.isfinite(values)
    return int(null.sum())


def _pick(families: tuple[str, str], scores: Mapping[str, np.ndarray], rule: str) -> tuple[str, str] | None:
    x, y = (column_labels.first_of(family, scores, rule) for family in families)
    return (x, y) if x and y else None
