"""`clipdata select`: score tables and a rule in, the sorted uids of the kept pairs out. Imports no jax."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from clipdata_jax import config, storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import external_columns, score_tables, uid_files
from clipdata_jax.formats.uid_sets import UidSorter
from clipdata_jax.runs import manifest, output
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import console, threads
from clipdata_jax.selection import parsing, rules, stability
from clipdata_jax.selection.pools import TablePool
from clipdata_jax.selection.work import StepCounts


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a selection kept.

    Attributes:
      rule: the rule's text.
      pairs: pairs in the score tables.
      kept: pairs that the rule keeps.
      uids: distinct uids of these, as written; kept, where nothing is written.
      steps: what every part of the rule kept, in the order of application.
      without_score: column or expression -> {"null", "infinite"} -> pairs that it for this reason never selects.
      joined: file of columns -> {"rows", "not_in_the_pool"} -> its rows, and those that belong to no pair.
    """

    rule: str
    pairs: int
    kept: int
    uids: int
    replaced_share: float | None
    steps: tuple[StepCounts, ...]
    without_score: dict[str, dict[str, int]]
    joined: dict[str, dict[str, int]]

    def facts(self) -> dict[str, Any]:
        """The summary as the manifest keeps it."""
        return {**dataclasses.asdict(self), "repeats": self.kept - self.uids}


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What is selected from: names and row counts; no score was read yet."""

    table: score_tables.ScoreTable
    sources: tuple[external_columns.ColumnFile, ...]
    rule: rules.Rule

    def paths(self) -> list[str]:
        """The files that decide what is kept."""
        parts = [
            storage.join(folder, f"{part}.parquet")
            for folder in self.table.folders
            for part in self.table.parts
        ]
        return [*parts, *(part for source in self.sources for part in source.parts), *self.rule.files()]

    def entries(self) -> list[FileEntry]:
        """What the manifest says of these files."""
        several = storage.Folder(self.table.folders[0]).threads
        return list(threads.prefetch(manifest.file_entry, self.paths(), threads=several))


@storage.stat_cache()
def run(options: config.Select) -> Summary:
    """Selects by the rule, writes the subset and its manifest, and prints what was kept.

    Raises:
      InputError: a table, a file of columns or the rule is wrong, the rule keeps nothing, or `out` holds
        something else.
    """
    inputs = _open(options)
    if options.out is None or options.explain:
        summary = _select(inputs, options, None)
        print(_text(summary, None))
        return summary
    plan = manifest.describe("select", options, rule=str(inputs.rule))
    output.is_done(options.out, plan, same=("command", "rule", "options.scores", "options.columns"))
    with ThreadPoolExecutor(1) as beside:  # digests take as long as the selection
        entries = beside.submit(inputs.entries)
        summary = _select(inputs, options, options.out)
    manifest.write_beside(options.out, plan, {"inputs": entries.result(), **summary.facts()})
    print(_text(summary, options.out))
    return summary


def _open(options: config.Select) -> _Inputs:
    table = score_tables.open_tables(options.scores)
    sources = external_columns.open_columns(options.columns)
    rule = parsing.parse(options.rule, [*table.columns, *(name for one in sources for name in one.names)])
    table.check_shared_names(rule.columns())
    external_columns.check_shared_names(sources, table.columns, rule.columns())
    for path in rule.files():
        if not storage.exists(path):
            raise InputError(f"{path}: no such file, but the rule takes uids from it; check the path")
    if not len(table):
        raise InputError(
            f"{options.scores[0]}: the score table holds no pairs, so there is nothing to select from"
        )
    return _Inputs(table, sources, rule)


def _select(inputs: _Inputs, options: config.Select, out: str | None) -> Summary:
    rule, names = inputs.rule, inputs.rule.columns()
    error = stability.error_column(
        rule, [name for name in inputs.table.columns if name not in inputs.table.shared]
    )
    by_column: dict[str, external_columns.ExternalColumns] = {}
    from_files: dict[str, external_columns.ExternalColumns] = {}
    for source in inputs.sources:
        if wanted := [name for name in source.names if name in names]:
            from_files[source.path] = source.read(wanted)
            by_column |= dict.fromkeys(wanted, from_files[source.path])
    read = names if error is None else (*names, error)
    with TablePool(inputs.table, read, by_column, options.memory_gb * 2**30) as pool:
        application, sorter, kept = rule.apply(pool), UidSorter(pool.scratch), 0
        for block, mask in application:
            here = int(np.count_nonzero(mask))
            kept += here
            if here and out is not None:
                sorter.add(block.uid.compress(mask))  # several times faster than by brackets
        summary = Summary(
            rule=str(rule),
            pairs=len(inputs.table),
            kept=kept,
            uids=kept,
            replaced_share=None
            if error is None
            else stability.replaced_share(rule, application, pool, error),
            steps=tuple(application.steps),
            without_score=application.without_score,
            joined={path: one.facts() for path, one in from_files.items()},
        )
        if out is None:
            return summary
        if not kept:
            raise InputError(f"the rule keeps nothing, so no subset is written; see where\n{_table(summary)}")
        return dataclasses.replace(summary, uids=uid_files.write(out, sorter.blocks()))


def _text(summary: Summary, out: str | None) -> str:
    share = console.percent(summary.kept / summary.pairs)
    where = "nothing is written" if out is None else out
    lines = [f"kept {summary.kept:,} of {summary.pairs:,} pairs ({share}): {where}", _table(summary)]
    for path, counts in summary.joined.items():
        if counts["not_in_the_pool"]:
            lines.append(
                f"{path}: {counts['not_in_the_pool']:,} of its {counts['rows']:,} rows are of no pair of the pool"
            )
    if summary.kept > summary.uids:
        repeats = summary.kept - summary.uids
        lines.append(
            f"{repeats:,} of them repeat the uid of another; the subset holds each uid once: {summary.uids:,}"
        )
    if summary.replaced_share is not None:
        lines.append(
            f"another draw of the batches would replace about {100 * summary.replaced_share:.2g} % of the kept pairs"
        )
    if not summary.kept:
        lines.append("the rule keeps nothing")
    return "\n".join(lines)


def _table(summary: Summary) -> str:
    """What every step kept, and what couldn't be kept for want of a score."""
    rows = [("considered", "kept", "step")]
    for step in summary.steps:
        short = f" ({step.asked:,} asked for)" if step.asked is not None and step.kept < step.asked else ""
        rows.append((f"{step.seen:,}", f"{step.kept:,}", f"{step.rule}{short}"))
    lines = [console.table(rows, left=(-1,))]
    for name, counts in summary.without_score.items():
        if any(counts.values()):
            lines.append(
                f"{name}: {counts['null']:,} pairs have no score and {counts['infinite']:,} an infinite one;"
                " it selects none of them"
            )
    return "\n".join(lines)
