"""`clipdata filter`: a pool's metadata and one of DataComp's filters in, the sorted uids of the kept pairs out.

Metadata is read one file at a time. In memory stay the uids kept, 16 bytes each, and for a --fraction, before that,
one score a pair (4 bytes of a float column, 8 of a double).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdata_jax.config import Filter
from clipdata_jax.data import metadata, uids
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import manifest, progress
from clipdata_jax.selection import datacomp, synsets
from clipdata_jax.selection.languages import Languages
from clipdata_jax.selection.work import Step

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
    """

    conditions: tuple[datacomp.Condition, ...]
    inputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def run(options: Filter) -> dict[str, Any]:
    """Filters, writes the subset and its manifest, prints what was kept; returns the manifest.

    Raises:
      InputError: the metadata, a model or an option is wrong, or `out` holds something else.
    """
    parts = metadata.list_parts(options.metadata)
    pairs = sum(part.rows for part in parts)
    plan = manifest.describe("filter", options, pool=[part.path for part in parts], pairs=pairs)
    manifest.refuse_other_run(options.out, plan, "command", *(f"options.{name}" for name in plan["options"]))
    if not pairs:
        raise InputError(
            f"{options.metadata}: the metadata holds no pairs, so there is nothing to select from"
        )
    preset = _open_preset(options, parts)
    kept, steps, nulls = _apply(preset.conditions, parts)
    subset = uids.sort_unique(kept)
    uids.write_subset(options.out, subset)
    content = {
        **plan,
        "inputs": [manifest.file_entry(path) for path in preset.inputs],
        "pool_files": [{"name": part.path, "bytes": part.bytes, "pairs": part.rows} for part in parts],
        "kept": len(kept),
        "uids": len(subset),
        "steps": [dataclasses.asdict(step) for step in steps],
        "without_value": nulls,
        "notes": list(preset.notes),
    }
    manifest.write_beside(options.out, content)
    print(_text(content, options.out))
    return content


def _open_preset(options: Filter, parts: Sequence[metadata.Part]) -> Preset:
    """Checks the columns, loads the models and finds the bound that a fraction means."""
    name = options.preset
    columns = _COLUMNS.get(name, ((), ()))
    numbers = (datacomp.similarity(options.arch),) if options.arch else columns[1]
    metadata.check_columns(parts, texts=columns[0], numbers=numbers, what=f"--preset {name}")
    if name == "no_filter":
        return Preset(())
    if name == "clip_score":
        return _by_score(options, parts)
    languages = Languages(options.lid_model)
    notes = (_SMALL_MODEL,) if languages.is_small else ()
    if name == "laion2b":
        return Preset(datacomp.laion2b(languages), (languages.path,), (_FASTTEXT, *notes))
    if name == "text_based":
        return _by_text(options, languages, notes)
    return Preset(datacomp.basic_filter(languages), (languages.path,), notes)


_COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "basic_filter": (("text",), ("original_width", "original_height")),
    "laion2b": (("text",), (datacomp.similarity("b32"),)),
    "text_based": (("text",), ()),
}


def _by_text(options: Filter, languages: Languages, notes: tuple[str, ...]) -> Preset:
    path = options.synsets or ""
    offsets, wordnet = synsets.read_synsets(path), synsets.WordNet(options.wordnet)
    if missing := len(offsets - wordnet.nouns):
        what = f"{missing:,} of the {progress.counted(len(offsets), 'synset')} in {path} are no nouns of {wordnet.path}"
        if 2 * missing > len(offsets):
            raise InputError(f"{what}; they are of different versions of WordNet: ImageNet's ids are of 3.0")
        notes = (*notes, what)
    conditions = datacomp.text_based(languages, synsets.Namer(wordnet, offsets))
    return Preset(conditions, (languages.path, path, wordnet.path), notes)


def _by_score(options: Filter, parts: Sequence[metadata.Part]) -> Preset:
    arch = options.arch or ""
    if options.threshold is not None:
        return Preset(datacomp.clip_score(arch, options.threshold))
    fraction = options.fraction or 1.0
    scores = metadata.read_numbers(parts, datacomp.similarity(arch))
    asked, bound = int(len(scores) * fraction), datacomp.score_bound(scores, fraction)
    reach = int(((scores >= bound) & (scores > -np.inf)).sum())
    note = (
        f"{asked:,} pairs are {fraction:g} of the pool and {reach:,} reach the bound: as in DataComp's own code it is"
        " the score after the highest, so one more is kept, and all ties; `select` with top() keeps no more than asked"
    )
    return Preset(datacomp.clip_score(arch, bound), notes=(note,))


def _apply(
    conditions: Sequence[datacomp.Condition], parts: Sequence[metadata.Part]
) -> tuple[np.ndarray, list[Step], dict[str, int]]:
    """The uids kept, what each condition kept, and how many pairs lack a value of each column."""
    names = list(dict.fromkeys(name for condition in conditions for name in condition.columns))
    left = np.zeros(len(conditions) + 1, np.int64)
    nulls = dict.fromkeys(names, 0)
    kept = []
    with progress.bar(total=sum(part.rows for part in parts), unit="pairs", name="filter") as bar:
        for part in parts:
            columns = metadata.read_columns(part, names)
            rows, counts = datacomp.apply(conditions, columns)
            left += [part.rows, *counts]
            nulls = {name: nulls[name] + int(columns.null[name].sum()) for name in names}
            kept.append(columns.uid[rows])
            bar.update(part.rows)
    steps = [
        Step(one.text, int(seen), int(stay))
        for one, seen, stay in zip(conditions, left[:-1], left[1:], strict=True)
    ]
    return np.concatenate(kept), steps, nulls


def _text(content: dict[str, Any], out: str) -> str:
    share = f"{content['kept'] / content['pairs']:.2%}".replace("%", " %")
    lines = [f"kept {content['kept']:,} of {content['pairs']:,} pairs ({share}): {out}"]
    if content["steps"]:
        lines.append(f"{'looked at':>14} {'kept':>14}   condition")
    lines += [f"{step['seen']:>14,} {step['kept']:>14,}   {step['rule']}" for step in content["steps"]]
    lines += [
        f"{name}: {progress.counted(count, 'pair')} without a value; no condition on it holds for them"
        for name, count in content["without_value"].items()
        if count
    ]
    lines += [f"note: {note}" for note in content["notes"]]
    if content["uids"] < content["kept"]:
        repeats = content["kept"] - content["uids"]
        lines.append(
            f"{repeats:,} kept pairs repeat the uid of another; the subset holds each uid once: {content['uids']:,}"
        )
    if not content["kept"]:
        lines.append("the filter keeps nothing: the subset is empty")
    return "\n".join(lines)
