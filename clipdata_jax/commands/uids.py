"""`clipdata uids`: union, intersection, difference, overlaps, conversion, checks, look-ups of uids. Imports no jax."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from clipdata_jax import config, storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import uid_files, uid_sets
from clipdata_jax.formats.uid_files import UidFile
from clipdata_jax.formats.uid_lookup import IdCounts, find_rows, ids_text, write_ids
from clipdata_jax.formats.uids import to_hex
from clipdata_jax.runs import file_output, manifest
from clipdata_jax.runtime import threads
from clipdata_jax.runtime.console import counted, percent, table

T = TypeVar("T")
_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class FileCounts:
    """Counts of a file of uids.

    Attributes:
      path: the file, or folder.
      rows: uids in it.
      repeats: rows that repeat an earlier uid.
      is_sorted: whether the file is sorted.
      hashed: rows that hold another id, of which the uid was made.
    """

    path: str
    rows: int
    repeats: int
    is_sorted: bool
    hashed: int = 0

    @classmethod
    def of(cls, source: UidFile) -> FileCounts:
        """Counts an open file."""
        return cls(source.path, len(source.rows), source.repeats, source.order.unsorted_at is None, source.hashed)


@dataclasses.dataclass(frozen=True)
class UidsSummary:
    """The result of an operation.

    Attributes:
      files: counts of the inputs, in the order given.
      written: uids written, None if nothing is written.
      ids: counts of `convert --ids`, else None.
      rows: what `show` found: column -> value as text.
      overlap: the files' overlaps for `stats`, else None.
    """

    files: tuple[FileCounts, ...]
    written: int | None = None
    ids: IdCounts | None = None
    rows: tuple[dict[str, str], ...] = ()
    overlap: uid_sets.SetOverlap | None = None


def run(options: config.Uids) -> UidsSummary:
    """Runs the operation, prints its counts, and writes the result with its manifest beside it.

    Raises:
      InputError: a file can't be read, `out` holds something else, or `verify` found a fault.
    """
    if options.operation == "show":
        return UidsSummary((), rows=tuple(_show(options.files, options.metadata or "", options.uid_column)))
    plan = manifest.describe("uids", options)
    if options.out is not None:
        file_output.check_replaceable(options.out, plan, overwrite=options.overwrite)
    for path in options.files if options.operation != "verify" else ():
        if not storage.exists(path):
            raise InputError(f"{path}: no such file or folder; check the path")
    with storage.scratch("clipdata-uids-") as scratch:
        if options.operation == "verify":
            return _verify(options, scratch)
        # Digests take about as long as merging.
        with ThreadPoolExecutor(1) as background:
            named = [*options.files, *([] if options.ids is None else [options.ids])]
            entries = [background.submit(manifest.file_entry, path) for path in named if options.out]
            sources = [uid_files.open_uids(path, scratch) for path in options.files]
            holds = tuple(map(FileCounts.of, sources))
            if options.operation == "stats":
                summary = UidsSummary(holds, overlap=_overlap(sources, options.multiset))
                print(_table(summary, options.multiset))
                return summary
            summary = _write(options, sources, holds)
            inputs = [entry.result() for entry in entries]
    facts = {"inputs": inputs, "files": [dataclasses.asdict(one) for one in holds], "uids": summary.written}
    facts |= {} if summary.ids is None else {"ids": dataclasses.asdict(summary.ids)}
    manifest.write_beside(options.out or "", plan, facts)
    print(_text(options, summary))
    return summary


def _show(given: Sequence[str], folder: str, uid_column: str) -> list[dict[str, str]]:
    """Prints the rows of metadata that have some uids, a column a line; returns them.

    Raises:
      InputError: no row has one of them; the others are printed before.
    """
    found, missing = find_rows(given, folder, uid_column)
    for row in found:
        width = max(map(len, row))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in row.items()), end="\n\n")
    if missing:
        raise InputError(
            f"{folder}: has no row of {', '.join(missing[:_EXAMPLES])} ({len(missing):,} of {len({*given}):,})"
        )
    return found


def _write(options: config.Uids, sources: Sequence[UidFile], holds: tuple[FileCounts, ...]) -> UidsSummary:
    if options.ids is not None:
        counts = write_ids(
            sources[0], options.ids, options.out or "", uid_column=options.uid_column, multiset=options.multiset
        )
        return UidsSummary(holds, written=counts.written, ids=counts)
    operation: uid_sets.Operation = "union"
    if options.operation in ("intersect", "minus"):
        operation = options.operation
    combine = functools.partial(uid_sets.combine, operation, multiset=options.multiset)
    written = uid_files.write(options.out or "", _over_parts(combine, sources), halves=options.halves)
    return UidsSummary(holds, written=written)


def _over_parts(function: Callable[[list[np.ndarray]], T], sources: Sequence[UidFile]) -> Iterator[T]:
    return threads.prefetch(function, uid_sets.parts([source.rows for source in sources]))


def _overlap(sources: Sequence[UidFile], multiset: bool) -> uid_sets.SetOverlap:
    both, in_any, in_all = np.zeros((len(sources),) * 2, np.int64), 0, 0
    for part in _over_parts(functools.partial(uid_sets.overlap, multiset=multiset), sources):
        both, in_any, in_all = both + part.both, in_any + part.any, in_all + part.all
    return uid_sets.SetOverlap(both, in_any, in_all)


def _verify(options: config.Uids, scratch: str) -> UidsSummary:
    pool = None if options.pool is None else uid_files.open_uids(options.pool, scratch)
    found, holds = [], []
    for path in options.files:
        try:
            source = uid_files.open_uids(path, scratch)
        except InputError as error:
            found.append(str(error))
            continue
        holds.append(FileCounts.of(source))
        wrong = list(_findings(source, pool, options.multiset))
        found += [f"{path}: {'; '.join(wrong)}"] if wrong else []
        if not wrong:
            unique = "" if source.repeats else ", unique"
            member = "" if pool is None else f", all in {options.pool}"
            print(f"{path}: good: {counted(len(source.rows), 'uid')}, sorted{unique}{member}")
    if found:
        raise InputError(". ".join(found) + ". `clipdata uids convert` writes a sorted and unique copy of a file")
    return UidsSummary(tuple(holds))


def _findings(source: UidFile, pool: UidFile | None, multiset: bool) -> Iterator[str]:
    if source.form:
        yield f"holds {source.form}, expected uids of dtype u8,u8 in one dimension"
    if source.order.unsorted_at is not None:
        row = source.order.unsorted_at
        yield f"not sorted: row {row:,} is smaller than row {row - 1:,}"
    if source.repeats and not multiset:
        at = source.order.repeated_at
        first = "" if at is None else f", the first in row {at:,}"
        yield f"{counted(source.repeats, 'row')} {'repeats' if source.repeats == 1 else 'repeat'} a uid{first}"
    if pool is not None:
        minus = functools.partial(uid_sets.combine, "minus")
        missing, examples = 0, list[str]()
        for part in _over_parts(minus, [source, pool]):
            missing += len(part)
            examples += to_hex(part[: _EXAMPLES - len(examples)])
        if missing:
            yield f"{counted(missing, 'uid')} not in {pool.path}, e.g. {', '.join(examples)}"


def _text(options: config.Uids, summary: UidsSummary) -> str:
    lines = [_file_text(one, options.multiset) for one in summary.files]
    written = summary.written or 0
    noun = "uid" if summary.ids is None else "id"
    lines.append(f"{options.operation}: {counted(written, noun)}{_share(options, summary)}: {options.out}")
    if summary.ids is not None and (text := ids_text(summary.ids, options.ids or "", options.out or "")):
        lines.append(text)
    if not written:
        lines.append("no uids are left; the file is empty")
    return "\n".join(lines)


def _share(options: config.Uids, summary: UidsSummary) -> str:
    whole = summary.files[0].rows - (0 if options.multiset else summary.files[0].repeats)
    if options.operation not in ("intersect", "minus") or not whole:
        return ""
    return f", {percent((summary.written or 0) / whole)} of {summary.files[0].path}"


def _file_text(one: FileCounts, multiset: bool) -> str:
    text = f"{one.path}: {counted(one.rows, 'uid')}{_hashed_text(one)}"
    if one.repeats:
        kept = "kept" if multiset else "left out (--multiset keeps them)"
        text += f", {counted(one.repeats, 'repeat')} {kept}"
    return text + ("" if one.is_sorted else ", not in order: sorted")


def _hashed_text(one: FileCounts) -> str:
    return f", {one.hashed:,} made of other ids" if one.hashed else ""


def _table(summary: UidsSummary, multiset: bool) -> str:
    """Formats sizes, then the overlap of every two files, a line each, so that it fits a terminal."""
    if summary.overlap is None:
        raise AssertionError("no overlap")
    both, names = summary.overlap.both, [f"[{i}]" for i in range(1, len(summary.files) + 1)]
    sizes: list[tuple[str, ...]] = [("", "rows", "uids", "repeats", "file")]
    for name, one in zip(names, summary.files, strict=True):
        order = "" if one.is_sorted else " (not sorted)"
        numbers = (f"{n:,}" for n in (one.rows, one.rows - one.repeats, one.repeats))
        sizes.append((name, *numbers, f"{one.path}{order}{_hashed_text(one)}"))
    lines = [table(sizes, left=(0, -1))]
    if len(names) > 1:
        what = "with repeats" if multiset else "each once"
        shared: list[tuple[str, ...]] = [(what, "in both", "of the first", "of the second")]
        for i, j in itertools.combinations(range(len(names)), 2):
            n = both[i, j]
            shares = (percent(n / both[k, k]) if both[k, k] else "-" for k in (i, j))
            shared.append((f"{names[i]} {names[j]}", f"{n:,}", *shares))
        counts = f"{summary.overlap.any:,} distinct uids in any of them, {summary.overlap.all:,} in all"
        lines += ["", table(shared), "", counts]
    return "\n".join(lines)
