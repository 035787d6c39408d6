"""`clipdata report`: score tables, a subset and the pool in, one page of figures and images out."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clipdata_jax import config, storage
from clipdata_jax.commands import report_inputs
from clipdata_jax.errors import InputError
from clipdata_jax.formats import score_tables, uid_files, uids
from clipdata_jax.report import caption_statistics, comparison, contents, duplicates, page, text
from clipdata_jax.report.throughput import draw as draw_run
from clipdata_jax.report.trace import TraceStep
from clipdata_jax.runs import file_output, manifest, records, telemetry
from clipdata_jax.runs.records import Manifest
from clipdata_jax.runtime import console

# Parts of a manifest that are shown elsewhere on the page or are too long for it.
_LEFT_OUT = (
    "inputs",
    "outputs",
    "pool",
    "units",
    "options",
    "versions",
    "rule",
    "steps",
    "replaced_share",
    "trace",
    "nearest",
)
_MOST_FACTS, _LONGEST_FACT, _LONGEST_RULE, _LONGEST_NAME = 80, 300, 2_000, 60


def run(options: config.Report) -> Manifest:
    """Writes the page and `<out>.manifest.json`; returns that.

    Memory: one float32 a pair for every score column, a bool a pair for every selection, and copies of one column at
    a time; the uids are read part by part, once for every selection. The page's size is bounded by the number of
    cards, not by the pool (see `report.page.render`).

    Raises:
      InputError: a score table, a subset or a tar is missing or damaged, or a subset is of another pool.
    """
    asked = manifest.describe("report", options)
    file_output.check_replaceable(options.out, asked, overwrite=options.overwrite)
    table = score_tables.open_tables(options.scores)
    if not table.columns:
        raise InputError(f"{options.scores[0]}: no score columns; expected a table `clipdata score` wrote")
    pool = report_inputs.find_pool(options.pool, options.reading) if options.pool else None
    own, *others = _read_selections(table, options)
    scores = _read_columns(table)
    made_by = _manifest_at(manifest.beside(options.subset))
    rule = _rule_of(made_by)
    wanted = {"images": options.images if pool else 0, "seed": options.seed}
    unions = report_inputs.union_columns(table)
    compared = comparison.plan(own.kept, others, scores, **wanted, unions=unions)
    copies, shown = None, None
    if options.duplicates is not None:
        copies = report_inputs.read_duplicates(options.duplicates, table)
        nearest = report_inputs.read_nearest_others(options.duplicates)
        shown = duplicates.plan(copies, own.kept, images=wanted["images"], nearest=nearest)
    also = compared.shown() | (set() if shown is None else shown.shown())
    plan = contents.plan(scores, own.kept, rule=rule, also=also, times=own.times, **wanted)
    pairs, described = None, None
    skipped: list[str] = []
    if pool:
        pairs, found = report_inputs.read_pairs(
            table,
            pool,
            shown=plan.scores,
            described=compared.counted(),
            skipped=skipped if options.on_bad == "skip" else None,
        )
        described = caption_statistics.describe(compared.samples, found)
    if pairs and options.target:
        targets = report_inputs.read_targets(table, options.targets(), pairs)
        pairs = {row: dataclasses.replace(pair, nearest=targets[row]) for row, pair in pairs.items()}
    if pairs and copies and options.against:
        near = report_inputs.read_near(copies, options.near_sets(), pairs)
        pairs |= {row: dataclasses.replace(pairs[row], nearest=images) for row, images in near.items()}
    about = page.About(
        title=options.title,
        rule=rule,
        steps=_steps(made_by),
        replaced_share=_replaced_share(made_by),
        trace=_trace(options.subset),
        runs=[
            draw_run(folder, units)
            for folder in options.scores
            if (units := telemetry.read(storage.join(folder, storage.TIMES)))
        ],
        warnings=[
            *_warnings(own, others),
            *_absent(plan, pairs),
            *(f"Skipped: {text.shorten(reason)}" for reason in skipped),
        ],
        provenance=_provenance(options, made_by),
    )
    uid = report_inputs.uids_of(table, plan.scores if pool else ())
    html = page.render(plan, about, pairs, compared=compared, captions=described, uids=uid, duplicates=shown).encode()
    storage.sweep_beside(options.out)
    storage.write_bytes(options.out, html)
    counted_pairs = {"absent": own.absent, "found": len(pairs or ())}
    made = _write_manifest(options, table, plan, compared, skipped, **counted_pairs)
    found_text = "" if pairs is None else f", {len(pairs)} of {len(plan.scores)} shown pairs found in the pool"
    print(f"{options.out}: {plan.kept:,} of {plan.rows:,} pairs kept{found_text}, {text.file_size(len(html))}")
    if line := console.skipped(manifest.beside(options.out), source=skipped):
        print(line)
    return made


def _write_manifest(
    options: config.Report,
    table: score_tables.ScoreTable,
    plan: contents.Contents,
    compared: comparison.Comparison,
    skipped: Sequence[str],
    *,
    absent: int,
    found: int,
) -> Manifest:
    counts: dict[str, Any] = {
        "pairs": plan.rows,
        "kept": plan.kept,
        "named": plan.named,
        "null": plan.nulls,
        "subset_uids_without_row": absent,
        "shown": len(plan.scores),
        "found_in_pool": found,
    }
    if others := compared.overlaps[1:]:
        counts["compared"] = {one.name: {"kept": one.pairs, "shared": one.shared[0]} for one in others}
    subsets = [options.subset, *(path for _, path in options.compared())]
    inputs = [*subsets, *([options.duplicates] if options.duplicates else []), *_part_paths(table)]
    about = manifest.describe("report", options, inputs=inputs, counts=counts, skipped_tars=list(skipped))
    return manifest.write_beside(options.out, about, {})


def _trace(subset: str) -> list[TraceStep]:
    """Reads the trace that `norm-sim-d` wrote with its subset; [] for subsets of other commands."""
    path = storage.beside(subset, storage.TRACE)
    if not storage.exists(path):
        return []
    try:
        found = [json.loads(line) for line in storage.read_bytes(path).decode().splitlines()]
        return [
            TraceStep(int(step["step"]), int(step["rows"]), step.get("threshold"), tuple(step["eigenvalues"]))
            for step in found
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a trace of norm-sim-d ({error}); remove it, or run norm-sim-d again") from error


@dataclasses.dataclass(frozen=True)
class _Selection(comparison.Selection):
    """A selection, how many uids its subset file has, and how many of them have no row.

    `times`: how often the file names each pair, (n,); None if it repeats none.
    """

    wanted: int
    absent: int
    times: np.ndarray | None


def _read_selections(table: score_tables.ScoreTable, options: config.Report) -> list[_Selection]:
    """The page's own selection and those it is compared with."""
    named = [(comparison.OWN, options.subset), *options.compared()]
    for _, path in named:
        storage.size(path)  # so that a missing file is reported before the first pass over the uids
    return [_read_selection(table, text.shorten(name, _LONGEST_NAME), path) for name, path in named]


def _read_selection(table: score_tables.ScoreTable, name: str, path: str) -> _Selection:
    subset, named = uid_files.read_multiset(path)
    index = uids.UidIndex(subset)
    kept, met = np.zeros(len(table), bool), np.zeros(len(subset), bool)
    times = np.zeros(len(table), np.uint32) if (named > 1).any() else None
    start = 0
    for uid in table.ahead(table.read_uids, table.parts):
        at = index.find(uid)
        kept[start : start + len(at)] = at >= 0
        met[at[at >= 0]] = True
        if times is not None:
            times[start : start + len(at)] = np.where(at >= 0, named[at], 0)
        start += len(at)
    if len(subset) and not met.any():
        raise InputError(
            f"{path}: none of its {len(subset):,} uids is in {table.folders[0]}; does it belong to another pool?"
        )
    return _Selection(name, kept, len(subset), len(subset) - int(met.sum()), times)


def _read_columns(table: score_tables.ScoreTable) -> dict[str, np.ndarray]:
    names = sorted(set(table.columns) - set(report_inputs.row_columns(table).values()))
    columns = {name: np.empty(len(table), np.float32) for name in names}
    start = 0
    for _, uid, values in table.iterate(list(columns)):
        for name, column in columns.items():
            column[start : start + len(uid)] = values[name]
        start += len(uid)
    return columns


def _part_paths(table: score_tables.ScoreTable) -> list[str]:
    return [storage.join(folder, f"{part}.parquet") for folder in table.folders for part in table.parts]


def _manifest_at(path: str) -> dict[str, Any]:
    return report_inputs.object_of(storage.read_bytes(path)) if storage.exists(path) else {}


def _rule_of(made_by: Mapping[str, Any]) -> str:
    rule = made_by.get("rule")
    return text.shorten(rule, _LONGEST_RULE) if isinstance(rule, str) else ""


def _steps(made_by: Mapping[str, Any]) -> list[page.RuleStep]:
    """The steps of the rule as `select` wrote them; anything else is ignored."""
    steps = made_by.get("steps")
    found = []
    for step in steps[:_MOST_FACTS] if isinstance(steps, list) else ():
        match step:
            case {"rule": str(part), "seen": int(seen), "kept": int(kept)}:
                found.append(page.RuleStep(text.shorten(part, _LONGEST_RULE), seen, kept))
    return found


def _replaced_share(made_by: Mapping[str, Any]) -> float | None:
    share = made_by.get("replaced_share")
    return share if isinstance(share, float) and 0 <= share <= 1 else None


def _warnings(own: _Selection, others: list[_Selection]) -> list[str]:
    named = [("the subset", own), *((one.name, one) for one in others)]
    return [
        f"{text.count(one.absent)} of {name}'s {text.count(one.wanted)} uids have no row in the score tables."
        for name, one in named
        if one.absent
    ]


def _absent(plan: contents.Contents, pairs: Mapping[int, page.Pair] | None) -> list[str]:
    """Some images of a pool are always missing; if most are, probably not all of its tars were given."""
    if pairs is None or 2 * len(pairs) >= len(plan.scores):
        return []
    return ["Most of the pairs shown are not in what --pool names: name all that was embedded."]


def _provenance(options: config.Report, made_by: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The facts of each input's manifest, flattened and cut: manifests are untrusted."""
    asked = manifest.describe("report", options)
    sections = [("This page", json.loads(records.to_json({**asked.options, **asked.facts["versions"]})))]
    if made_by:
        sections.append(("Subset", _facts(made_by)))
    for folder in options.scores:
        described = manifest.read_facts(folder)
        if described:
            sections.append((f"Scores {folder}", _facts(described)))
    return [(heading, list(itertools.islice(_flatten(facts), _MOST_FACTS))) for heading, facts in sections]


def _facts(described: Mapping[str, Any]) -> dict[str, Any]:
    parts = [described.get("options"), described.get("versions")]
    whole = {name: value for name, value in described.items() if name not in _LEFT_OUT}
    for part in parts:
        whole |= part if isinstance(part, dict) else {}
    return whole


def _flatten(facts: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict) and depth < 3 and "relative" not in value:
            yield from _flatten(value, f"{prefix}{name} ", depth + 1)
            continue
        several = value if isinstance(value, list) else [value]
        yield f"{prefix}{name}", text.shorten(", ".join(map(_shown, several[:_MOST_FACTS])), _LONGEST_FACT)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    try:
        match value:
            case {"relative": str(path)}:  # a path: the way from where the output lies
                return path
            case dict() if len(value) == 1:  # NAME=PATH
                return "".join(f"{name}={_shown(path)}" for name, path in value.items())
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "…"
