"""`clipdata select`: score tables and a rule in, the sorted uids of the kept pairs out. Imports no jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from clipdata_jax import config, storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import external_columns, score_tables, uid_files, uids
from clipdata_jax.formats.uid_sets import UidSorter
from clipdata_jax.runs import file_output, manifest
from clipdata_jax.runs.records import Facts, FileEntry
from clipdata_jax.runtime import console, threads
from clipdata_jax.selection import parsing, rules, stability
from clipdata_jax.selection.pools import TablePool
from clipdata_jax.selection.work import StepCounts


@dataclasses.dataclass(frozen=True)
class SelectSummary:
    """The result of a selection.

    Attributes:
      pairs: pairs in the score tables.
      kept: pairs that the rule keeps.
      uids: distinct uids of these, as written; `kept` if nothing is written.
      total: uids written: `uids`, or the draws of `soft_cap` and `hard_cap`, with repeats.
      replaced_share: share of the kept pairs that another draw of the batches would replace; None if unknown.
      steps: the counts of every step of the rule, in the order of application.
      without_score: column or expression -> {"null", "infinite"} -> pairs that are never selected for this reason.
      joined: file of columns -> {"rows", "not_in_the_pool", "pairs_found"} -> its rows, those that match no pair, and
        the pairs that have a row; {} for a file of which the rule uses no column.
    """

    pairs: int
    kept: int
    uids: int
    total: int
    replaced_share: float | None
    steps: tuple[StepCounts, ...]
    without_score: dict[str, dict[str, int]]
    joined: dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The opened inputs, of which only names and row counts were read."""

    table: score_tables.ScoreTable
    sources: tuple[external_columns.ColumnFile, ...]
    rule: rules.Rule
    ids: external_columns.PoolIds | None

    def entries(self) -> list[FileEntry]:
        """The manifest's entries of the files that decide what is kept."""
        table = self.table
        parts = [storage.join(folder, f"{part}.parquet") for folder in table.folders for part in table.parts]
        external = [part for source in self.sources for part in source.parts]
        joined_by = [self.ids.file(part) for part in table.parts] if self.ids else []
        paths = [*parts, *external, *joined_by, *self.rule.files()]
        several = storage.Folder(table.folders[0]).threads
        return list(threads.prefetch(manifest.file_entry, paths, threads=several))

    def error_columns(self) -> tuple[str, ...]:
        """The columns of standard errors that say how stable the selection is."""
        table = self.table
        known = [name for name in table.columns if name not in table.shared]
        known += [name for source in self.sources for name in source.names if name not in table.columns]
        return stability.error_columns(self.rule, [name for name in known if known.count(name) == 1])


@storage.stat_cache()
def run(options: config.Select) -> SelectSummary:
    """Selects by the rule, writes the subset and its manifest, and prints what was kept.

    Raises:
      InputError: a table, a file of columns or the rule is wrong, the rule keeps nothing, or `out` holds
        something else.
    """
    inputs = _open(options)
    if options.out is None or options.explain:
        summary = _select(inputs, options, None)
        print(_text(summary, None, inputs))
        return summary
    rule = str(inputs.rule)  # however it was spaced
    plan = manifest.describe("select", dataclasses.replace(options, rule=rule), rule=rule)
    file_output.check_replaceable(options.out, plan, overwrite=options.overwrite)
    with ThreadPoolExecutor(1) as background:  # digests take as long as the selection
        entries = background.submit(inputs.entries)
        summary = _select(inputs, options, options.out)
    facts = {**dataclasses.asdict(summary), "repeats": summary.kept - summary.uids}
    manifest.write_beside(options.out, plan, {"inputs": entries.result(), **facts})
    print(_text(summary, options.out, inputs))
    return summary


def _open(options: config.Select) -> _Inputs:
    table = score_tables.open_tables(options.scores)
    sources = external_columns.open_columns(options.columns, options.on)
    unchecked = parsing.parse(options.rule)
    scored = [str(leaf) for value in unchecked.values() for leaf in value.leaves()]
    external_columns.check_usable(sources, table.columns, scored)
    external_columns.check_usable(sources, table.columns, list(map(str, unchecked.groups())), texts=True)
    known = [name for one in sources for name in (*one.names, *one.texts)]
    rule = parsing.parse(options.rule, [*table.columns, *known])
    table.check_shared_names(rule.columns())
    for path in rule.files():
        if not storage.exists(path):
            raise InputError(f"{path}: no such file, but the rule takes uids from it; check the path")
    if not len(table):
        raise InputError(f"{options.scores[0]}: the score table holds no pairs, so there is nothing to select from")
    return _Inputs(table, sources, rule, _pool_ids(options))


def _pool_ids(options: config.Select) -> external_columns.PoolIds | None:
    """Finds the ids that --columns are joined by, if not by uid."""
    if options.on == "uid":
        return None
    scored = manifest.read_facts(options.scores[0]).get("options", {})
    folder = options.metadata or _scored_pool(options.scores[0], scored)
    if not storage.is_folder(folder):
        raise InputError(f"{folder}: no such folder, but --on {options.on} is read from it; name it with --metadata")
    inner = storage.join(folder, "metadata")  # clip-retrieval's
    uid_column = str(scored.get("uid_column", "uid"))
    return external_columns.PoolIds(inner if storage.is_folder(inner) else folder, options.on, uid_column)


def _scored_pool(scores: str, options: Facts) -> str:
    """The folder of metadata that a score table was made of, as the options in its manifest say."""
    match options:
        case {"pool": held}:
            paths = FileEntry.from_json(held).paths(storage.parent(storage.absolute(scores)))
            return next((path for path in paths if storage.is_folder(path)), paths[-1])
    raise InputError(f"{scores}: doesn't say what was scored; name its metadata with --metadata")


def _select(inputs: _Inputs, options: config.Select, out: str | None) -> SelectSummary:
    rule, errors = inputs.rule, inputs.error_columns()
    names = (*rule.columns(), *errors)
    by_column: dict[str, external_columns.ExternalColumns] = {}
    from_files: dict[str, external_columns.ExternalColumns | None] = {}
    for source in inputs.sources:
        wanted = [name for name in (*source.names, *source.texts) if name in names]
        from_files[source.path] = source.read(wanted) if wanted else None
        by_column |= {name: one for name in wanted if (one := from_files[source.path])}
    with TablePool(inputs.table, names, by_column, options.memory_gb * 2**30, inputs.ids) as pool:
        application, sorter = rule.apply(pool), UidSorter(pool.scratch, multiset=rule.repeats)
        kept, total = 0, 0
        for block, mask in application:
            here = int(np.count_nonzero(mask))
            kept += here
            total += int(mask.sum(dtype=np.int64))
            if here and out is not None:
                # compress is several times faster than brackets.
                sorter.add(np.repeat(block.uid, mask) if rule.repeats else block.uid.compress(mask))
        summary = SelectSummary(
            pairs=len(inputs.table),
            kept=kept,
            uids=kept,
            total=total,
            replaced_share=stability.replaced_share(rule, application, pool, errors),
            steps=tuple(application.steps),
            without_score=application.without_score,
            joined={path: one.facts() if one else {} for path, one in from_files.items()},
        )
        _check_found(summary, inputs)
        if out is None:
            return summary
        if not kept:
            raise InputError(f"the rule keeps nothing, so no subset is written\n{_table(summary)}")
        distinct: list[int] = []

        def count(block: np.ndarray) -> np.ndarray:
            distinct.append(int(np.count_nonzero(uids.first_of_each(block))))  # no uid is in two blocks
            return block

        total = uid_files.write(out, map(count, sorter.blocks()))
        return dataclasses.replace(summary, uids=sum(distinct), total=total)


def _check_found(summary: SelectSummary, inputs: _Inputs) -> None:
    """Checks that each file of columns that the rule uses has a row for some pair."""
    for source in inputs.sources:
        counts = summary.joined[source.path]
        if counts and not counts["pairs_found"]:
            text = f"{source.path}: none of its {counts['rows']:,} rows match a pair of the pool"
            if inputs.ids is None:
                raise InputError(f"{text}; it has other uids: join it by another column, --on NAME, or leave it out")
            theirs = external_columns.first_id(source.parts[0], source.on)
            ours = external_columns.first_id(inputs.ids.file(inputs.table.parts[0]), source.on)
            raise InputError(f"{text}; its {source.on} are such as {theirs}, the metadata's such as {ours}")


def _text(summary: SelectSummary, out: str | None, inputs: _Inputs) -> str:
    share = console.percent(summary.kept / summary.pairs)
    where = "nothing is written" if out is None else out
    drawn = f", drawn {summary.total:,} times" if inputs.rule.repeats else ""
    lines = [f"kept {summary.kept:,} of {summary.pairs:,} pairs ({share}){drawn}: {where}", _table(summary)]
    for source in inputs.sources:
        if source.renamed:
            renamed = ", ".join(f"{before!r} as {name}" for name, before in source.renamed.items())
            lines.append(f"{source.path}: columns renamed for rules: {renamed}")
    lines += [_coverage(path, counts, summary.pairs) for path, counts in summary.joined.items()]
    lines += [
        f"{step.rule}: {step.tied:,} pairs tie where it cuts; the uid alone decided which {step.tied_kept:,} are kept"
        for step in summary.steps
        if step.tied
    ]
    if summary.kept > summary.uids:
        repeats = summary.kept - summary.uids
        once = f"; the subset holds each uid once: {summary.uids:,}" if not inputs.rule.repeats else ""
        lines.append(f"{repeats:,} of them repeat the uid of another{once}")
    if summary.replaced_share is not None:
        lines.append(
            f"another draw of the batches would replace about {100 * summary.replaced_share:.2g} % of the kept pairs"
        )
    if not summary.kept:
        lines.append("the rule keeps nothing")
    return "\n".join(lines)


def _coverage(path: str, counts: Mapping[str, int], pairs: int) -> str:
    """Says how many pairs a file of columns has, and what else is in it."""
    if not counts:
        return f"{path}: not read; the rule has none of its columns"
    found, missed = counts["pairs_found"], counts["not_in_the_pool"]
    text = f"{path}: {found:,} of {pairs:,} pairs found"
    if missed:
        text += f"; {missed:,} of its {counts['rows']:,} rows match no pair of the pool"
    if found > counts["rows"] - missed:
        text += f"; {found - counts['rows'] + missed:,} pairs share a row with another"
    return text


def _table(summary: SelectSummary) -> str:
    """Formats the counts of every step, and of the pairs without a score."""
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
