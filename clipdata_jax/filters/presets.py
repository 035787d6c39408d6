"""The presets of `filter`: which conditions they are of, what these need, and how they compare with DataComp's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clipdata_jax.config import Filter
from clipdata_jax.errors import InputError
from clipdata_jax.filters.conditions import (
    Condition,
    basic_filter,
    clip_score,
    image_captions,
    laion2b,
    score_bound,
    similarity,
    text_based,
)
from clipdata_jax.filters.languages import Languages
from clipdata_jax.filters.wordnet import Namer, WordNet, read_synsets
from clipdata_jax.formats import metadata
from clipdata_jax.runtime import console, threads

_SMALL_MODEL = (
    "languages are told by lid.176.ftz, the small form of DataComp's lid.176.bin: some captions differ"
)
_FASTTEXT = "languages are told by fastText's lid.176, where DataComp's laion2b used gcld3"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A filter, ready to be applied.

    Attributes:
      conditions: what a pair must meet, in order.
      inputs: files it reads besides the metadata.
      notes: what to say of how it compares with DataComp's own.
      arrays: files of the pool that it reads besides the metadata.
      facts: more for the manifest.
      read: reads the columns of a part that the conditions look at.
    """

    conditions: tuple[Condition, ...]
    inputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    read: Callable[[metadata.Part, Sequence[str]], metadata.Columns] = metadata.read_columns


def open_preset(options: Filter, parts: Sequence[metadata.Part], skipped: metadata.Skipped) -> Preset:
    """Checks the columns, loads the models and finds the bound that a fraction means.

    Raises:
      InputError: a column or a file is missing or holds something else.
    """
    name = options.preset
    texts, numbers = columns(options)
    metadata.check_columns(parts, texts=texts, numbers=numbers, what=f"--preset {name}")
    if name == "no_filter":
        return Preset(())
    if name == "clip_score":
        return _by_score(options, parts, skipped)
    if options.by_image:
        from clipdata_jax.filters import images  # which loads jax

        captions, score = caption_and_score_presets(options, parts, skipped)
        return images.open_preset(options, parts, captions, score, skipped)
    languages, notes = _languages(options)
    if name == "laion2b":
        return Preset(laion2b(languages), (languages.path,), (_FASTTEXT, *notes))
    if name == "text_based":
        return _by_text(options, languages, notes)
    return Preset(basic_filter(languages), (languages.path,), notes)


def caption_and_score_presets(
    options: Filter, parts: Sequence[metadata.Part], skipped: metadata.Skipped
) -> tuple[Preset, Preset]:
    """What a preset that looks at images asks of captions, and of CLIPScores."""
    languages, notes = _languages(options)
    captions = Preset(image_captions(languages), (languages.path,), notes)
    return captions, Preset(()) if options.arch is None else _by_score(options, parts, skipped)


def _languages(options: Filter) -> tuple[Languages, tuple[str, ...]]:
    """The model that tells languages, and what is to be said of it."""
    languages = Languages(options.lid_model, options.processes or threads.cores())
    return languages, (_SMALL_MODEL,) if languages.is_small else ()


def columns(options: Filter) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of text and those of numbers that are looked at."""
    texts, numbers = _COLUMNS.get(options.preset, ((), ()))
    return texts, (similarity(options.arch),) if options.arch else numbers


_COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "basic_filter": (("text",), ("original_width", "original_height")),
    "laion2b": (("text",), (similarity("b32"),)),
    "text_based": (("text",), ()),
    "image_based": (("text",), ()),
    "image_based_intersect_clip_score": (("text",), ()),
}


def _by_text(options: Filter, languages: Languages, notes: tuple[str, ...]) -> Preset:
    path = options.synsets or ""
    offsets, wordnet = read_synsets(path), WordNet(options.wordnet)
    if missing := len(offsets - wordnet.nouns):
        what = f"{missing:,} of the {console.counted(len(offsets), 'synset')} in {path} are no nouns of {wordnet.path}"
        if 2 * missing > len(offsets):
            raise InputError(f"{what}; they are of different versions of WordNet: ImageNet's ids are of 3.0")
        notes = (*notes, what)
    conditions = text_based(languages, Namer(wordnet, offsets))
    return Preset(conditions, (languages.path, path, wordnet.path), notes)


def _by_score(options: Filter, parts: Sequence[metadata.Part], skipped: metadata.Skipped) -> Preset:
    arch = options.arch or ""
    if options.threshold is not None:
        return Preset(clip_score(arch, options.threshold))
    fraction = options.fraction or 1.0
    with console.bar(total=sum(part.rows for part in parts), unit="pairs", name="scores") as bar:
        scores = metadata.read_numbers(parts, similarity(arch), skipped, bar.update)
    asked, bound = int(len(scores) * fraction), score_bound(scores, fraction)
    reach = int(np.count_nonzero(scores >= bound if bound > -np.inf else scores > bound))
    note = (
        f"{asked:,} pairs are {fraction:g} of the pool and {reach:,} reach the bound: as in DataComp's own code it is"
        " the score after the highest, so one more is kept, and all ties; `select` with top() keeps no more than asked"
    )
    facts = {"bound": bound} if bound > -np.inf else {}
    return Preset(clip_score(arch, bound), notes=(note,), facts=facts)
