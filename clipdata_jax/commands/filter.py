"""`clipdata filter`: a pool's metadata and one of DataComp's filters in, the sorted uids of the kept pairs out.

Metadata and embeddings are read one file at a time. Memory holds, for a --fraction, one score per pair (4 bytes for a
float column, 8 for a double) and a byte, and for k-means the sample. Kept uids of more than 64 MiB go through a
temporary file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Filter
from clipdata_jax.errors import InputError
from clipdata_jax.filters import presets
from clipdata_jax.filters.conditions import apply
from clipdata_jax.filters.languages import Languages
from clipdata_jax.formats import metadata, uid_files
from clipdata_jax.formats.uid_sets import UidSorter
from clipdata_jax.runs import file_output, manifest
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import console, threads
from clipdata_jax.selection.work import StepCounts


@dataclasses.dataclass(frozen=True)
class FilterSummary:
    """The result of a filter.

    Attributes:
      kept: pairs that meet all conditions.
      uids: distinct uids of these, as written.
      steps: the counts of every condition.
      without_value: column -> pairs that have no value in it.
      hashed: pairs whose uids are made of ids of another kind.
    """

    kept: int
    uids: int
    steps: tuple[StepCounts, ...]
    without_value: Mapping[str, int]
    hashed: int = 0


def run(options: Filter) -> FilterSummary:
    """Filters, writes the subset and its manifest, and prints what was kept.

    Raises:
      InputError: the metadata, a model or an option is wrong, nothing is kept, or `out` holds something else.
    """
    skipped = metadata.Skipped(options.on_bad)
    parts = metadata.list_parts(options.metadata, skipped, options.uid_column)
    pairs = sum(part.rows for part in parts)
    plan = manifest.describe(
        "filter", options, pool=[part.path for part in parts], devices=options.by_image, pairs=pairs
    )
    file_output.check_replaceable(options.out, plan, overwrite=options.overwrite)
    if not pairs:
        raise InputError(f"{options.metadata}: the metadata holds no pairs, so there is nothing to select from")
    preset = _open_preset(options, parts, skipped)
    with storage.scratch("clipdata-filter-") as scratch:
        sorter = UidSorter(lambda: scratch)
        summary = _apply(preset, parts, sorter, skipped)
        if not summary.kept:
            raise InputError(f"the filter keeps nothing, so no subset is written\n{_table(summary)}")
        summary = dataclasses.replace(summary, uids=uid_files.write(options.out, sorter.blocks()))
    facts = {
        "inputs": [manifest.file_entry(path) for path in preset.inputs],
        "pool_files": [
            *(FileEntry(part.path, part.bytes) for part in parts),
            *(FileEntry(path, storage.size(path)) for path in preset.arrays),
        ],
        **preset.facts,
        **dataclasses.asdict(summary),
        "notes": list(preset.notes),
        "skipped": [{"file": path, "reason": reason} for path, reason in sorted(skipped.reasons.items())],
    }
    manifest.write_beside(options.out, plan, facts)
    print(_text(summary, pairs, preset.notes, skipped, options.out))
    return summary


def _open_preset(options: Filter, parts: Sequence[metadata.Part], skipped: metadata.Skipped) -> presets.Preset:
    """Checks the columns, loads the models and finds the score that a fraction means."""
    name = options.preset
    texts, numbers = presets.needed_columns(name, options.arch)
    metadata.check_columns(parts, texts=texts, numbers=numbers, what=f"--preset {name}")
    score = presets.Preset(())
    if options.arch and options.threshold is not None:
        score = presets.above_score(options.arch, options.threshold)
    elif options.arch and options.fraction is not None:
        score = presets.top_scores(options.arch, options.fraction, parts, skipped)
    if name in ("no_filter", "clip_score"):
        return score
    languages = Languages(options.lid_model, options.processes or threads.cores())
    if name == "basic_filter":
        return presets.basic_filter(languages)
    if name == "laion2b":
        return presets.laion2b(languages)
    if name == "text_based":
        return presets.text_based(languages, options.synsets or "", options.wordnet)
    near = _near_targets(options, parts, presets.image_captions(languages), skipped)
    return dataclasses.replace(
        near,
        conditions=(*score.conditions, *near.conditions),
        notes=(*score.notes, *near.notes),
        facts={**score.facts, **near.facts},
    )


def _near_targets(
    options: Filter, parts: Sequence[metadata.Part], captions: presets.Preset, skipped: metadata.Skipped
) -> presets.Preset:
    from clipdata_jax.filters import images  # imports jax

    tag = options.image_key or options.tag
    k_means = images.KMeans(
        clusters=options.clusters or 0,
        sample=options.sample,
        steps=options.steps,
        seed=options.seed,
        out=f"{options.out}.centroids.npy",
    )
    return images.near_targets(
        images.EmbeddingReader(options.metadata, tag, on_bad=options.on_bad, image_key=options.image_key),
        parts,
        captions,
        tag=tag,
        target=options.target or "",
        centroids=options.centroids or k_means,
        skipped=skipped,
    )


def _apply(
    preset: presets.Preset, parts: Sequence[metadata.Part], sorter: UidSorter, skipped: metadata.Skipped
) -> FilterSummary:
    """Adds the kept uids to the sorter."""
    conditions = preset.conditions
    names = list(dict.fromkeys(name for condition in conditions for name in condition.columns))
    left = np.zeros(len(conditions) + 1, np.int64)
    nulls, hashed = dict.fromkeys(names, 0), 0
    bar = console.bar(total=sum(part.rows for part in parts), unit="pairs", name="filter")
    read = metadata.ahead(lambda part: preset.read(part, names), parts)
    with bar, contextlib.closing(read):
        for number, part in enumerate(parts):
            bar.update(part.rows)
            columns = skipped.attempt(part.path, functools.partial(read, number))
            if columns is None:
                left[0] += part.rows
                continue
            rows, counts = apply(conditions, columns)
            left += [part.rows, *counts]
            nulls = {name: nulls[name] + int(columns.null[name].sum()) for name in names}
            hashed += columns.hashed
            sorter.add(columns.uid[rows])
    steps = [StepCounts(one.text, *map(int, left[i : i + 2])) for i, one in enumerate(conditions)]
    return FilterSummary(int(left[-1]), 0, tuple(steps), nulls, hashed)


def _table(summary: FilterSummary) -> str:
    rows = [(f"{step.seen:,}", f"{step.kept:,}", step.rule) for step in summary.steps]
    lines = [console.table([("considered", "kept", "condition"), *rows], left=(-1,))] if rows else []
    lines += [
        f"{name}: {console.counted(count, 'pair')} without a value; no condition on it holds for them"
        for name, count in summary.without_value.items()
        if count
    ]
    return "\n".join(lines)


def _text(summary: FilterSummary, pairs: int, notes: Sequence[str], skipped: metadata.Skipped, out: str) -> str:
    share = console.percent(summary.kept / pairs)
    lines = [f"kept {summary.kept:,} of {pairs:,} pairs ({share}): {out}", _table(summary)]
    lines += [f"note: {note}" for note in notes]
    if summary.uids < summary.kept:
        repeats = console.counted(summary.kept - summary.uids, "kept pair")
        lines.append(f"{repeats} repeat the uid of another; the subset holds each uid once: {summary.uids:,}")
    if summary.hashed:
        lines.append(f"The uids of {console.counted(summary.hashed, 'pair')} are made of their ids")
    reasons = [reason for _, reason in sorted(skipped.reasons.items())]
    lines.append(console.skipped(manifest.beside(out), file=reasons))
    return "\n".join(line for line in lines if line)
