"""DataComp's filters by name: their conditions, what these read, and how the result compares with DataComp's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.filters import conditions
from clipdata_jax.filters.conditions import Condition
from clipdata_jax.filters.languages import Languages
from clipdata_jax.filters.wordnet import SynsetMatcher, WordNet, read_synsets
from clipdata_jax.formats import metadata
from clipdata_jax.runtime import console

_LAION2B_SCORE = 0.28
_SMALL_MODEL = "languages are identified by lid.176.ftz, the small form of DataComp's lid.176.bin: some captions differ"
_FASTTEXT = "languages are identified by fastText's lid.176, where DataComp's laion2b used gcld3"
_SIZE = ("original_width", "original_height")


@dataclasses.dataclass(frozen=True)
class Preset:
    """A filter, ready to be applied.

    Attributes:
      conditions: the conditions, in order.
      inputs: files it reads besides the metadata.
      notes: how it compares with DataComp's own.
      arrays: files of the pool that it reads besides the metadata.
      facts: further entries of the manifest.
      read: reads the columns of a part that the conditions look at.
    """

    conditions: tuple[Condition, ...]
    inputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    read: Callable[[metadata.Part, Sequence[str]], metadata.Columns] = metadata.read_columns


def needed_columns(name: str, arch: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of text and those of numbers that a preset needs, given the model of its CLIPScore."""
    texts = () if name in ("no_filter", "clip_score") else ("text",)
    numbers = {"basic_filter": _SIZE, "laion2b": (conditions.similarity("b32"),)}.get(name, ())
    return texts, (conditions.similarity(arch),) if arch else numbers


def basic_filter(languages: Languages) -> Preset:
    """English, more than 2 words and 5 characters, smaller side >= 200, longer / smaller side <= 3."""
    size = (conditions.smaller_side(200), conditions.aspect_ratio(3))
    words = conditions.caption(2, "word", conditions.count_words)
    return _with_languages((*size, _characters(), words), languages)


def laion2b(languages: Languages) -> Preset:
    """English, and B/32 CLIPScore of at least 0.28; DataComp identified languages with gcld3, this with fastText."""
    preset = _with_languages((conditions.clip_score("b32", _LAION2B_SCORE),), languages)
    return dataclasses.replace(preset, notes=(_FASTTEXT, *preset.notes))


def image_captions(languages: Languages) -> Preset:
    """The captions of the image-based filters: English, more than 1 of fastText's tokens and 5 characters."""
    words = conditions.caption(1, "word", conditions.count_tokens)
    return _with_languages((_characters(), words), languages)


def text_based(languages: Languages, synsets: str, wordnet: str | None) -> Preset:
    """English, and a word whose first sense in WordNet is one of given synsets.

    Args:
      languages: the language identification model.
      synsets: a file of WordNet ids.
      wordnet: the database; default: the one that NLTK downloaded.

    Raises:
      InputError: a file is missing or holds something else, or most synsets are not in the database.
    """
    offsets, database = read_synsets(synsets), WordNet(wordnet)
    matches = SynsetMatcher(database, offsets).match
    preset = _with_languages((Condition("caption that names a synset", ("text",), matches),), languages)
    notes = preset.notes
    if missing := len(offsets - database.nouns):
        note = f"synsets in {synsets} that are not nouns of {database.path}: {missing:,} of {len(offsets):,}"
        if 2 * missing > len(offsets):
            raise InputError(f"{note}; they are of different versions of WordNet: ImageNet's ids are of 3.0")
        notes = (*notes, note)
    return dataclasses.replace(preset, inputs=(*preset.inputs, synsets, database.path), notes=notes)


def above_score(arch: str, threshold: float) -> Preset:
    """CLIPScore of at least a threshold."""
    return Preset((conditions.clip_score(arch, threshold),))


def top_scores(arch: str, fraction: float, parts: Sequence[metadata.Part], skipped: metadata.Skipped) -> Preset:
    """The highest CLIPScores of a pool, a fraction of it as DataComp counts it; reads the column once."""
    with console.bar(total=sum(part.rows for part in parts), unit="pairs", name="scores") as bar:
        scores = metadata.read_numbers(parts, conditions.similarity(arch), skipped, bar.update)
    asked, bound = int(len(scores) * fraction), conditions.score_bound(scores, fraction)
    reach = int(np.count_nonzero(scores >= bound))
    if bound > -np.inf:
        note = (
            f"{asked:,} pairs are {fraction:g} of the pool and {reach:,} reach the bound: as in DataComp's own code it"
            " is the score after the highest, so one more is kept, and all ties; `select` with top() keeps no more than"
            " asked"
        )
    else:
        note = (
            f"{asked:,} pairs are {fraction:g} of the pool and only {reach:,} have a score: all of these are kept,"
            " where DataComp's own code finds no bound and keeps none"
        )
    facts = {"bound": bound} if np.isfinite(bound) else {}
    return dataclasses.replace(above_score(arch, bound), notes=(note,), facts=facts)


def _characters() -> Condition:
    return conditions.caption(5, "character", conditions.count_characters)


def _with_languages(others: tuple[Condition, ...], languages: Languages) -> Preset:
    """Adds the condition that the caption is most likely English."""
    english = Condition("English caption", ("text",), languages.are_english)
    notes = (_SMALL_MODEL,) if languages.is_small else ()
    return Preset((*others, english), (languages.path,), notes)
