"""Conditions on metadata columns, all of which a pair must meet to be kept.

After Gadre et al. 2023, arXiv:2304.14108, section 5 and appendix; bounds and comparisons are those of the code
published with it. A condition on a column that has no value for a pair doesn't hold.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from clipdata_jax.formats.metadata import Columns

# fastText's tokenizer splits at fewer characters than str.split(), and the end of a line is a token.
_FASTTEXT_WORD = re.compile("[^ \n\r\t\v\f\0]+|\n")


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition on pairs.

    Attributes:
      text: its description.
      columns: the columns it looks at.
      keep: maps these columns, (m,) each and without nulls, to a bool mask (m,).
    """

    text: str
    columns: tuple[str, ...]
    keep: Callable[..., np.ndarray]


def apply(conditions: Sequence[Condition], columns: Columns) -> tuple[np.ndarray, list[int]]:
    """Finds the rows that meet all conditions; each looks only at the survivors of those before it.

    Returns:
      shape (k,), int64: the rows kept; and how many each condition kept.
    """
    rows = np.arange(len(columns.uid))
    kept = []
    for condition in conditions:
        for name in condition.columns:
            rows = rows[~columns.null[name][rows]]
        rows = rows[condition.keep(*(columns.values[name][rows] for name in condition.columns))]
        kept.append(len(rows))
    return rows, kept


def smaller_side(pixels: int) -> Condition:
    """The smaller side of the image has at least that many pixels."""
    size = ("original_width", "original_height")
    text = f"smaller side of at least {pixels} pixels"
    return Condition(text, size, lambda width, height: np.minimum(width, height) >= pixels)


def aspect_ratio(most: int) -> Condition:
    """The longer side of the image is at most that many times the smaller."""
    size = ("original_width", "original_height")
    text = f"longer side at most {most} times the smaller"
    return Condition(text, size, lambda width, height: _aspect_ratio(width, height) <= most)


def caption(more_than: int, unit: str, count: Callable[[np.ndarray], np.ndarray]) -> Condition:
    """The caption has more than that many units, as a function counts them."""
    units = unit if more_than == 1 else f"{unit}s"
    text = f"caption of more than {more_than} {units}"
    return Condition(text, ("text",), lambda captions: count(captions) > more_than)


def clip_score(arch: str, threshold: float) -> Condition:
    """The CLIPScore is at least a threshold, which is rounded to the column's dtype."""
    name = similarity(arch)
    text = f"{name} of at least {threshold:.9g}" if threshold > -np.inf else f"any {name}"
    return Condition(text, (name,), lambda score: score >= threshold)


def similarity(arch: str) -> str:
    """The column of a model's CLIPScore."""
    return f"clip_{arch}_similarity_score"


def score_bound(scores: np.ndarray, fraction: float) -> float:
    """The lowest score that DataComp keeps for a fraction of the pool.

    With n = int(N f), computed in floating point, it is the score after the n highest. So n + 1 pairs reach it, one
    more than asked for, and all pairs that tie with it. Where no score is left after them, it is -inf, which every
    score reaches; DataComp's code then compares with NaN and keeps nothing.

    Args:
      scores: shape (N,), float, NaN for null; reordered in place.
      fraction: f, in (0, 1].

    >>> score_bound(np.array([0.1, 0.4, 0.2, 0.3]), 0.5)
    0.2
    """
    # NaN is last in NumPy's order.
    at = len(scores) - int(np.count_nonzero(np.isnan(scores))) - 1 - int(len(scores) * fraction)
    if at < 0:
        return -np.inf
    scores.partition(at)
    return float(scores[at])


def _aspect_ratio(width: np.ndarray, height: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.maximum(width, height) / np.minimum(width, height))


def count_words(captions: np.ndarray) -> np.ndarray:
    """Counts words between white space: str objects (n,) -> int64 (n,)."""
    return np.fromiter((len(text.split()) for text in captions), np.int64, len(captions))


def count_characters(captions: np.ndarray) -> np.ndarray:
    """Counts Unicode code points: str objects (n,) -> int64 (n,)."""
    return np.fromiter(map(len, captions), np.int64, len(captions))


def count_tokens(captions: np.ndarray) -> np.ndarray:
    """Counts tokens as fastText's `tokenize` does: str objects (n,) -> int64 (n,)."""
    counts = (sum(1 for _ in _FASTTEXT_WORD.finditer(text)) for text in captions)
    return np.fromiter(counts, np.int64, len(captions))
