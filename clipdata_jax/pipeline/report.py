"""`clipdata report`: score tables, a subset and the pool's tars in, one page of figures and pictures out."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clipdata_jax import config
from clipdata_jax.data import files, runs, tables, tars, uids
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import manifest, progress, samples
from clipdata_jax.report import contents, page, text, thumbnails
from clipdata_jax.report.trace import TraceStep

# Of what a manifest says, these are told elsewhere on the page or too long for it.
_LEFT_OUT = ("inputs", "outputs", "pool", "units", "options", "versions", "rule", "steps", "trace")
_MOST_FACTS, _LONGEST_FACT, _LONGEST_RULE = 80, 300, 2_000


def run(options: config.Report) -> None:
    """Writes the page and, beside it, `<out>.manifest.json`.

    Memory: one float32 a pair for every score column, and copies of one column at a time; the uids are read part
    by part. The page's size is bounded by the number of cards, not by the pool (see `report.page.render`).

    Raises:
      InputError: a score table, the subset or a tar is missing or damaged, or the subset is of another pool.
    """
    if files.is_folder(options.out):
        raise InputError(f"{options.out}: is a folder; --out names the .html file to write")
    table = tables.open_tables(options.scores)
    if not table.columns:
        raise InputError(f"{options.scores[0]}: no score columns; expected a table `clipdata score` wrote")
    paths = tars.find_tars(options.tars) if options.tars else []
    pool = _read_pool(table, options)
    made_by = _manifest_at(f"{options.subset}.{manifest.NAME}")
    rule = _rule_of(made_by)
    wanted = options.pictures if paths else 0
    plan = contents.plan(pool.columns, pool.kept, pictures=wanted, seed=options.seed, rule=rule)
    pairs = _pairs(table, paths, sorted(plan.scores)) if paths else None
    about = page.About(
        title=options.title,
        rule=rule,
        steps=_steps(made_by),
        trace=_trace(options.subset),
        warnings=_warnings(pool),
        provenance=_provenance(options, made_by),
    )
    html = page.render(plan, about, pairs).encode()
    files.write_bytes(options.out, html)
    counts = {
        "pairs": plan.rows,
        "kept": plan.kept,
        "null": plan.nulls,
        "subset_uids_without_row": pool.absent,
        "shown": len(plan.scores),
        "found_in_tars": len(pairs or ()),
    }
    inputs = [options.subset, *_part_paths(table)]
    manifest.write_beside(options.out, manifest.describe("report", options, inputs=inputs, counts=counts))
    told = "" if pairs is None else f", {len(pairs)} of {len(plan.scores)} shown pairs found in the tars"
    print(f"{options.out}: {plan.kept:,} of {plan.rows:,} pairs kept{told}, {text.file_size(len(html))}")


def _trace(subset: str) -> list[TraceStep]:
    """What `norm-sim-d` wrote beside its subset; nothing where the subset is another command's."""
    path = f"{subset}.{runs.TRACE}"
    if not files.exists(path):
        return []
    try:
        found = [json.loads(line) for line in files.read_bytes(path).decode().splitlines()]
        return [
            TraceStep(int(step["step"]), int(step["rows"]), step.get("threshold"), tuple(step["eigenvalues"]))
            for step in found
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no trace of norm-sim-d ({error}); remove it, or run norm-sim-d again"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Pool:
    """Score columns, which rows are kept, how many uids the subset has and how many of them have no row."""

    columns: dict[str, np.ndarray]
    kept: np.ndarray
    wanted: int
    absent: int


def _read_pool(table: tables.ScoreTable, options: config.Report) -> _Pool:
    subset = uids.read_subset(options.subset)
    names = sorted(table.columns)
    columns = {name: np.empty(len(table), np.float32) for name in names}
    kept, met = np.zeros(len(table), bool), np.zeros(len(subset), bool)
    start = 0
    for _, uid, values in table.iterate(names):
        rows = slice(start, start + len(uid))
        for name in names:
            columns[name][rows] = values[name]
        at = uids.find(subset, uid)
        kept[rows] = at >= 0
        met[at[at >= 0]] = True
        start = rows.stop
    if len(subset) and not met.any():
        raise InputError(
            f"{options.subset}: none of its {len(subset):,} uids is in {options.scores[0]}; is it of another pool?"
        )
    return _Pool(columns, kept, len(subset), len(subset) - int(met.sum()))


def _pairs(table: tables.ScoreTable, paths: Sequence[str], rows: Sequence[int]) -> dict[int, page.Pair]:
    """Row -> caption and picture, for those of the rows that the tars hold; one pass, ended when all are found."""
    wanted: dict[str, list[int]] = {}
    for row, uid in zip(rows, uids.to_hex(_uids_of(table, rows)), strict=True):
        wanted.setdefault(uid, []).append(row)
    found: dict[int, page.Pair] = {}
    with progress.bar(total=len(paths), unit="tar", name="pictures") as bar:
        for path in paths:
            if not wanted:
                break
            for sample in tars.read_tar(path):
                uid = _uid(path, sample)
                if uid in wanted:
                    found.update(dict.fromkeys(wanted.pop(uid), _pair(sample)))
            bar.update(1)
    return found


def _uids_of(table: tables.ScoreTable, rows: Sequence[int]) -> np.ndarray:
    """The uids of some rows of the whole table, reading no part that holds none of them."""
    ends = np.cumsum(table.rows)
    order = np.asarray(rows, np.int64)
    part_of = np.searchsorted(ends, order, side="right")
    found = np.empty(len(order), uids.DTYPE)
    for part in np.unique(part_of):
        uid, _ = table.read_part(table.parts[part], ())
        here = part_of == part
        found[here] = uid[order[here] - (ends[part] - table.rows[part])]
    return found


def _uid(path: str, sample: tars.Sample) -> str:
    try:
        return samples.sample_uid(path, sample)
    except InputError:  # `embed` stops at such a sample or leaves it out, so it has no score
        return ""


def _pair(sample: tars.Sample) -> page.Pair:
    picture = sample.image()
    return page.Pair(_caption(sample), "no picture" if picture is None else thumbnails.make(picture))


def _caption(sample: tars.Sample) -> str:
    """The caption that `embed` takes, in whatever state it is."""
    if "txt" in sample.members:
        return sample.members["txt"].decode("utf-8", "replace")
    fields = _object(sample.members.get("json", b""))
    several = fields.get("captions")
    caption = fields.get("caption")
    if caption is None and isinstance(several, list) and several:
        caption = several[0]
    return caption if isinstance(caption, str) else ""


def _object(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _part_paths(table: tables.ScoreTable) -> list[str]:
    return [files.join(folder, f"{part}.parquet") for folder in table.folders for part in table.parts]


def _manifest_at(path: str) -> dict[str, Any]:
    return _object(files.read_bytes(path)) if files.exists(path) else {}


def _rule_of(made_by: Mapping[str, Any]) -> str:
    rule = made_by.get("rule")
    return text.shorten(rule, _LONGEST_RULE) if isinstance(rule, str) else ""


def _steps(made_by: Mapping[str, Any]) -> list[page.Step]:
    """What each part of the rule kept; anything but what `select` writes is left out."""
    steps = made_by.get("steps")
    found = []
    for step in steps[:_MOST_FACTS] if isinstance(steps, list) else ():
        match step:
            case {"rule": str(part), "seen": int(seen), "kept": int(kept)}:
                found.append(page.Step(text.shorten(part, _LONGEST_RULE), seen, kept))
    return found


def _warnings(pool: _Pool) -> list[str]:
    if not pool.absent:
        return []
    absent, wanted = text.count(pool.absent), text.count(pool.wanted)
    return [f"{absent} of the subset's {wanted} uids have no row in the score tables."]


def _provenance(
    options: config.Report, made_by: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """What each input says of itself, flattened; strangers' manifests are cut to a bearable length."""
    asked = manifest.describe("report", options)
    told = [("This page", {**asked["options"], **asked["versions"]})]
    if made_by:
        told.append(("Subset", _facts(made_by)))
    for folder in options.scores:
        described = manifest.read(folder)
        if described:
            told.append((f"Scores {folder}", _facts(described)))
    return [(heading, list(itertools.islice(_flatten(facts), _MOST_FACTS))) for heading, facts in told]


def _facts(described: Mapping[str, Any]) -> dict[str, Any]:
    parts = [described.get("options"), described.get("versions")]
    whole = {name: value for name, value in described.items() if name not in _LEFT_OUT}
    for part in parts:
        whole |= part if isinstance(part, dict) else {}
    return whole


def _flatten(facts: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict) and depth < 3:
            yield from _flatten(value, f"{prefix}{name} ", depth + 1)
            continue
        several = value if isinstance(value, list) else [value]
        yield f"{prefix}{name}", text.shorten(", ".join(map(_shown, several[:_MOST_FACTS])), _LONGEST_FACT)


def _shown(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "…"
