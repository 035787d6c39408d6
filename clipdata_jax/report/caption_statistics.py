"""Lengths and languages of the captions of selections."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

MOST = 2_000  # a share of one half is then right to about 2 points, 19 times in 20
FEW_WORDS = 3
_LANGUAGES = 6


@dataclasses.dataclass(frozen=True)
class Caption:
    """The number of words of a caption, and the ISO code of its language, None if unknown."""

    words: int
    language: str | None = None


@dataclasses.dataclass(frozen=True)
class CaptionSample:
    """Rows drawn by seed from the pool or a selection, whose captions are to be described."""

    name: str
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class CaptionStatistics:
    """Statistics of the captions found of a sample; NaN without captions.

    Attributes:
      name: the selection.
      captions: how many captions were found.
      median: words in a caption.
      mean: words in a caption.
      few: share of captions of fewer than 3 words.
      languages: the share of each of `Captions.languages`, and of all others.
    """

    name: str
    captions: int
    median: float
    mean: float
    few: float
    languages: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Captions:
    """Caption statistics of all samples.

    Attributes:
      languages: the most frequent, ISO codes; None if languages are unknown.
      facts: of each sample.
    """

    languages: tuple[str, ...] | None
    facts: tuple[CaptionStatistics, ...]


def describe(samples: Sequence[CaptionSample], found: Mapping[int, Caption]) -> Captions:
    """Computes statistics of the captions of each sample.

    Args:
      samples: of the pool and of selections; the languages most frequent in all of them together have a share each.
      found: row -> its caption, of the rows that were found.
    """
    there = [[found[row] for row in sample.rows if row in found] for sample in samples]
    languages = [one.language for captions in there for one in captions]
    counts = collections.Counter(language for language in languages if language)
    most = sorted(counts, key=lambda language: (-counts[language], language))[:_LANGUAGES]
    facts = tuple(_facts(sample.name, captions, most) for sample, captions in zip(samples, there, strict=True))
    return Captions(None if None in languages else tuple(most), facts)


def _facts(name: str, captions: Sequence[Caption], languages: Sequence[str]) -> CaptionStatistics:
    if not captions:
        return CaptionStatistics(name, 0, np.nan, np.nan, np.nan, (np.nan,) * (len(languages) + 1))
    words = np.array([one.words for one in captions], np.float64)
    few = float((words < FEW_WORDS).mean())
    counts = [sum(one.language == language for one in captions) for language in languages]
    shares = tuple(count / len(captions) for count in (*counts, len(captions) - sum(counts)))
    return CaptionStatistics(name, len(captions), float(np.median(words)), float(words.mean()), few, shares)
