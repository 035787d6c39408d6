"""`clipdata filter`: a pool's metadata and one of DataComp's filters in, the sorted uids of the kept pairs out.

Metadata is read one file at a time, and embeddings too. In memory stay, for a --fraction, one score a pair (4 bytes of
a float column, 8 of a double) and a byte, and for k-means the sample. Uids kept go through a temporary file where they
are more than 64 MiB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Filter
from clipdata_jax.errors import InputError
from clipdata_jax.filters import presets
from clipdata_jax.filters.conditions import apply
from clipdata_jax.formats import metadata
from clipdata_jax.formats.uid_files import UidSorter
from clipdata_jax.runs import manifest
from clipdata_jax.runtime import console, stopping
from clipdata_jax.selection.work import StepCounts


def run(options: Filter) -> dict[str, Any]:
    """Filters, writes the subset and its manifest, prints what was kept; returns the manifest.

    Raises:
      InputError: the metadata, a model or an option is wrong, nothing is kept, or `out` holds something else.
    """
    skipped = metadata.Skipped(options.on_bad)
    parts = metadata.list_parts(options.metadata, skipped)
    pairs = sum(part.rows for part in parts)
    plan = manifest.describe(
        "filter", options, pool=[part.path for part in parts], devices=options.by_image, pairs=pairs
    )
    manifest.check_same_run(options.out, plan, "command", *(f"options.{name}" for name in plan["options"]))
    if not pairs:
        raise InputError(
            f"{options.metadata}: the metadata holds no pairs, so there is nothing to select from"
        )
    preset = presets.open_preset(options, parts, skipped)
    with stopping.scratch("clipdata-filter-") as scratch:
        sorter = UidSorter(lambda: scratch)
        facts = _apply(preset, parts, sorter, skipped)
        if not facts["kept"]:
            raise InputError(f"the filter keeps nothing, so no subset is written; see where\n{_table(facts)}")
        distinct = sorter.write(options.out)
    content = {
        **plan,
        "inputs": [manifest.file_entry(path) for path in preset.inputs],
        "pool_files": [
            *({"name": part.path, "bytes": part.bytes, "pairs": part.rows} for part in parts),
            *({"name": path, "bytes": storage.size(path)} for path in preset.arrays),
        ],
        **preset.facts,
        **facts,
        "uids": distinct,
        "notes": list(preset.notes),
        "skipped": [{"file": path, "reason": reason} for path, reason in sorted(skipped.reasons.items())],
    }
    manifest.write_beside(options.out, content)
    print(_text(content, options.out))
    return content


def _apply(
    preset: presets.Preset,
    parts: Sequence[metadata.Part],
    sorter: UidSorter,
    skipped: metadata.Skipped,
) -> dict[str, Any]:
    """Hands on the uids kept; counts them, what each condition kept, and pairs that lack a value of each column."""
    conditions = preset.conditions
    names = list(dict.fromkeys(name for condition in conditions for name in condition.columns))
    left = np.zeros(len(conditions) + 1, np.int64)
    nulls = dict.fromkeys(names, 0)
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
            sorter.add(columns.uid[rows])
    steps = [
        StepCounts(one.text, int(seen), int(stay))
        for one, seen, stay in zip(conditions, left[:-1], left[1:], strict=True)
    ]
    return {
        "kept": int(left[-1]),
        "steps": [dataclasses.asdict(step) for step in steps],
        "without_value": nulls,
    }


def _table(facts: dict[str, Any]) -> str:
    rows = [(f"{step['seen']:,}", f"{step['kept']:,}", step["rule"]) for step in facts["steps"]]
    lines = [console.table([("considered", "kept", "condition"), *rows], left=(-1,))] if rows else []
    lines += [
        f"{name}: {console.counted(count, 'pair')} without a value; no condition on it holds for them"
        for name, count in facts["without_value"].items()
        if count
    ]
    return "\n".join(lines)


def _text(content: dict[str, Any], out: str) -> str:
    share = console.percent(content["kept"] / content["pairs"])
    lines = [f"kept {content['kept']:,} of {content['pairs']:,} pairs ({share}): {out}", _table(content)]
    lines += [f"note: {note}" for note in content["notes"]]
    if content["uids"] < content["kept"]:
        repeats = console.counted(content["kept"] - content["uids"], "kept pair")
        lines.append(
            f"{repeats} repeat the uid of another; the subset holds each uid once: {content['uids']:,}"
        )
    lines.append(
        console.skipped(f"{out}.{manifest.NAME}", file=[one["reason"] for one in content["skipped"]])
    )
    return "\n".join(line for line in lines if line)
