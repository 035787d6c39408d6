"""`clipdata entries`: captions and a list of entries in, a table of the entries that each caption holds out. No jax."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

from clipdata_jax.config import Entries
from clipdata_jax.errors import InputError, StoppedEarly
from clipdata_jax.filters.entry_matching import EntryMatcher, read_entries
from clipdata_jax.formats import metadata, score_tables
from clipdata_jax.formats.metadata import Part
from clipdata_jax.formats.sources import table_columns
from clipdata_jax.runs import manifest, telemetry
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import FileEntry, Manifest, Receipt
from clipdata_jax.runtime import console, parallel, threads


def run(options: Entries) -> Manifest | None:
    """Finds the entries, a metadata shard at a time; returns the manifest, or None if another process reports the run.

    Raises:
      InputError: bad input; finished shards are kept, and the same command continues from there.
    """
    share = parallel.start(options.workers)
    entries = read_entries(options.list)
    parts = metadata.list_parts(options.pool, metadata.Skipped(), options.uid_column)
    caption = table_columns.find(
        parts[0].path, list(parts[0].types), options.caption_column, table_columns.CAPTIONS, "caption"
    )
    if caption is None:
        raise InputError(f"{parts[0].path}: no column holds captions; name it with --caption-column")
    metadata.check_columns(parts, texts=[caption], numbers=[], what="entries")
    by_name = {part.path.rsplit("/", 1)[-1].removesuffix(".parquet"): part for part in parts}
    plan = manifest.describe(
        "entries",
        options,
        inputs=[options.list],
        pool=[part.path for part in parts],
        entries=len(entries),
        caption=caption,
    )
    output = open_output(options.out, plan=plan, units=list(by_name), share=share)
    remaining = output.remaining(share)
    todo = remaining[: options.stop_after]
    _find_all(output, {name: by_name[name] for name in todo}, entries, caption, share)
    if len(todo) < len(remaining):
        raise StoppedEarly(len(todo), len(remaining))
    made = output.finish(functools.partial(_facts, output, entries), share)
    if made is not None:
        _print_summary(made, options, is_old=output.was_finished and not remaining)
    return made


def _find_all(output: Output, todo: dict[str, Part], entries: list[str], caption: str, share: parallel.Share) -> None:
    if not todo:
        return
    matcher = EntryMatcher(entries)
    watch = telemetry.Stopwatch(share.index)
    with console.bar(total=sum(part.rows for part in todo.values()), unit="caption", name="entries") as bar:
        for name, part in todo.items():
            before = FileEntry(part.path, part.bytes)
            start = time.monotonic()
            columns = metadata.read_columns(part, [caption])
            read = time.monotonic()
            found = matcher.find(columns.values[caption])
            times = watch.lap(part.rows, read=read - start, compute=time.monotonic() - read)
            with_entries = sum(len(one) > 0 for one in found)
            output.complete(
                name,
                {f"{name}.parquet": score_tables.entries_part_bytes(columns.uid, found)},
                {"rows": part.rows, "with_entries": with_entries, "matches": sum(map(len, found))},
                inputs=[before],
                times=times,
            )
            bar.update(part.rows)


def _facts(output: Output, entries: list[str], receipts: list[Receipt]) -> dict[str, Any]:
    """The run's own part of the manifest; writes the counts of all entries."""
    counts = np.zeros(len(entries), np.int64)
    names = [name for receipt in receipts for name in receipt.files]
    for found in threads.prefetch(functools.partial(_count, output, len(entries)), names):
        counts += found
    output.folder.write(
        score_tables.ENTRY_COUNTS, functools.partial(score_tables.write_entry_counts, entries=entries, counts=counts)
    )
    totals = {name: sum(receipt.facts[name] for receipt in receipts) for name in ("rows", "with_entries", "matches")}
    return {**totals, "entries_found": int(np.count_nonzero(counts)), "most_captions": int(counts.max())}


def _count(output: Output, entries: int, name: str) -> np.ndarray:
    return np.bincount(score_tables.read_lists(output.path(name), score_tables.ENTRIES)[0], minlength=entries)


def _print_summary(made: Manifest, options: Entries, *, is_old: bool) -> None:
    if is_old:
        print(f"Already complete: {options.out}")
        return
    facts = made.facts
    print(
        f"Found {facts['matches']:,} entries in {facts['with_entries']:,} of {facts['rows']:,} captions:"
        f" {options.out}\n"
        f"{facts['entries_found']:,} of {facts['entries']:,} entries occur, the most frequent in"
        f" {facts['most_captions']:,} captions; {score_tables.ENTRY_COUNTS} has the count of each"
    )
