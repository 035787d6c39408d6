"""DataComp's filters: conditions on metadata columns, all of which a pair must meet.

After Gadre et al. 2023, arXiv:2304.14108, section 5 and appendix; bounds and comparisons are those of the code that
was published with it. A condition on a column that has no value for a pair doesn't hold.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from clipdata_jax.filters.languages import Languages
from clipdata_jax.filters.wordnet import Namer
from clipdata_jax.formats.metadata import Columns

LAION2B_SCORE = 0.28


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition on pairs.

    Attributes:
      text: what it asks for, in words.
      columns: what it looks at.
      keep: these columns, (m,) each and without nulls -> bool (m,).
    """

    text: str
    columns: tuple[str, ...]
    keep: Callable[..., np.ndarray]


def apply(conditions: Sequence[Condition], columns: Columns) -> tuple[np.ndarray, list[int]]:
    """The rows that meet all conditions; each looks only at what those before it left.

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


def basic_filter(languages: Languages) -> tuple[Condition, ...]:
    """English, more than 2 words and 5 characters, smaller side >= 200, longer / smaller side <= 3."""
    size = ("original_width", "original_height")
    return (
        Condition("smaller side of at least 200 pixels", size, lambda w, h: np.minimum(w, h) >= 200),
        Condition("longer side at most 3 times the smaller", size, lambda w, h: _aspect_ratio(w, h) <= 3),
        Condition("caption of more than 5 characters", ("text",), lambda text: count_characters(text) > 5),
        Condition("caption of more than 2 words", ("text",), lambda text: count_words(text) > 2),
        english(languages),
    )


def clip_score(arch: str, threshold: float) -> tuple[Condition, ...]:
    """CLIPScore of at least a threshold, which is rounded to the column's dtype."""
    name = similarity(arch)
    text = f"{name} of at least {threshold:.9g}" if threshold > -np.inf else f"any {name}"
    return (Condition(text, (name,), lambda score: score >= threshold),)


def laion2b(languages: Languages) -> tuple[Condition, ...]:
    """English, and B/32 CLIPScore of at least 0.28; DataComp told languages with gcld3 here, we with fastText."""
    return (*clip_score("b32", LAION2B_SCORE), english(languages))


def text_based(languages: Languages, namer: Namer) -> tuple[Condition, ...]:
    """English, and a word whose first sense in WordNet is one of given synsets."""
    named = Condition("caption that names a synset", ("text",), namer.have_names)
    return (named, english(languages))


def image_captions(languages: Languages) -> tuple[Condition, ...]:
    """What the image-based filters ask of captions: English, more than 1 of fastText's tokens and 5 characters."""
    return (
        Condition("caption of more than 5 characters", ("text",), lambda text: count_characters(text) > 5),
        Condition("caption of more than 1 word", ("text",), lambda text: count_tokens(text) > 1),
        english(languages),
    )


def english(languages: Languages) -> Condition:
    """The caption is most likely English."""
    return Condition("English caption", ("text",), languages.are_english)


def similarity(arch: str) -> str:
    """The column of a model's CLIPScore."""
    return f"clip_{arch}_similarity_score"


def score_bound(scores: np.ndarray, fraction: float) -> float:
    """The least score that DataComp keeps when asked for a fraction of the pool.

    With n = int(N f), computed in floating point, it is the score after the n highest. So n + 1 pairs reach it, and
    all that equal it: one more than asked for. Where no score is left after them, every pair that has one does.

    Args:
      scores: shape (N,), float, -inf for none; put in another order.
      fraction: f, in (0, 1].
    """
    at = len(scores) - 1 - int(len(scores) * fraction)
    if at < 0:
        return -np.inf
    scores.partition(at)
    return float(scores[at])


def _aspect_ratio(width: np.ndarray, height: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(width, height) / np.minimum(width, height)


# What fastText's tokenizer splits at: fewer characters than str.split(). A line's end is a token of its own.
_FASTTEXT_WORD = re.compile("[^ \n\r\t\v\f\0]+|\n")


def count_words(captions: np.ndarray) -> np.ndarray:
    """Words between white space, of str objects (n,): int64 (n,)."""
    return np.fromiter((len(text.split()) for text in captions), np.int64, len(captions))


def count_characters(captions: np.ndarray) -> np.ndarray:
    """Unicode characters (code points) of str objects (n,): int64 (n,)."""
    return np.fromiter(map(len, captions), np.int64, len(captions))


def count_tokens(captions: np.ndarray) -> np.ndarray:
    """Tokens as fastText's `tokenize` counts them, of str objects (n,): int64 (n,)."""
    counts = (sum(1 for _ in _FASTTEXT_WORD.finditer(text)) for text in captions)
    return np.fromiter(counts, np.int64, len(captions))
