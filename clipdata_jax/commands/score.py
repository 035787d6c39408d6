"""`clipdata score`: embeddings in, a score table out, a unit of whole shards at a time, no collective."""

from __future__ import annotations

import collections
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import NegClipLoss, Score
from clipdata_jax.errors import InputError, StoppedEarly
from clipdata_jax.formats import embedding_shards, score_tables, uid_files, uids
from clipdata_jax.formats.embedding_shards import EmbeddingPool, EmbeddingShard
from clipdata_jax.runs import manifest, profiling, records, telemetry
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import Facts, FileEntry, Manifest, Receipt, RunPlan
from clipdata_jax.runs.writer import Writer
from clipdata_jax.runtime import console, parallel
from clipdata_jax.scoring import groups, head_files, reference_division, target_sets, unit_differences
from clipdata_jax.scoring.columns import SCORES, ColumnInputs, Columns, neg_clip_loss_columns
from clipdata_jax.scoring.units import (
    ScoreUnit,
    UnitReader,
    check_bad_rows,
    choose_temperatures,
    dimension,
    shard_files,
)

_LISTED = 20  # bad rows per unit that the manifest names


def run(options: Score) -> Manifest | None:
    """Scores a pool; returns the manifest, or None if another process reports the run.

    The embeddings of two units are in memory, one being read while the other is scored. A unit is a shard, or the
    `--mix-shards` shards whose pairs are dealt to its groups, or small shards that together fill a group.

    Raises:
      InputError: bad input; finished units are kept, and the same command continues from there.
    """
    share = parallel.start(options.workers)
    pool = embedding_shards.open_pool(
        options.pool,
        on_bad=options.on_bad,
        texts=options.by_text,
        rows=_planned_rows(options),
        keys=(options.image_key, options.text_key),
        uid_column=options.uid_column,
    )
    whole = len(pool)
    pool = pool if options.limit is None else pool.first(options.limit)
    tag = pool.tag(options.tag)
    made_by = target_sets.made_by_model(options.pool, tag)
    temperatures, source = choose_temperatures(options.neg_clip_loss.temperatures(), made_by)
    dim = dimension(pool, tag)
    if options.where is not None:
        storage.size(options.where)  # a missing file is an error before targets are embedded
    target_options = target_sets.TargetSets(
        settings=options.norm_sim,
        tag=tag,
        made_by=made_by,
        force=options.force,
        on_bad=options.on_bad,
        alone=options.workers.worker is None and options.workers.coordinator in (None, "none"),
    )
    targets, target_files = target_options.read(dim)
    inputs = ColumnInputs(
        neg_clip_loss=options.neg_clip_loss,
        norm_sim=options.norm_sim,
        seed=options.seed,
        tag=tag,
        temperatures=temperatures,
        targets=targets,
        heads={name: head_files.read_head(path, dim) for name, path in options.heads().items()},
    )
    makers = [SCORES[name](inputs) for name in options.chosen()]
    units = plan_units(pool, options.neg_clip_loss)
    by_name = {f"unit-{index:05d}": unit for index, unit in enumerate(units)}
    plan = manifest.describe(
        "score",
        options,
        inputs=[*target_files, *options.heads().values(), *([options.where] if options.where else [])],
        pool=[path for shard in pool.shards for path in shard_files(shard)],
        devices=True,
        tag=tag,
        temperature=temperatures[0] if len(temperatures) == 1 else list(temperatures),
        temperature_from=source,
        has_uids=pool.has_uids,
        **({} if options.limit is None else {"pairs_in_the_pool": whole}),
        unreadable=list(pool.unreadable),
        model=made_by.get("digest"),
        targets={name: len(target) for name, target in targets.items()},
        plan={name: [[shard.name, shard.rows] for shard in unit] for name, unit in by_name.items()},
        groups=_describe_groups(units, options.neg_clip_loss),
    )
    output = open_output(options.out, plan=plan, units=list(by_name), share=share)
    todo = output.remaining(share)
    reader = UnitReader(
        tag=tag,
        dim=dim,
        subset=None if options.where is None else uid_files.read_subset(options.where),
        normalize=options.normalize,
        on_bad=options.on_bad,
    )

    def check(bad_rows: int, example: tuple[str, int, str] | None = None) -> None:
        check_bad_rows(pool, bad_rows, options.max_bad_rows, example)

    now = todo[: options.stop_after]
    mine = output.units[share.index :: share.count]
    before = sum(shard.rows for name in {*mine} - {*todo} for shard in by_name[name])
    _score_units(output, by_name, now, reader, makers, check, options, share, before)
    if len(now) < len(todo):
        raise StoppedEarly(len(now), len(todo))
    check(_count_bad(output))
    result = output.finish(functools.partial(_summarise, temperature=temperatures[0]), share)
    if result is not None:
        if not todo and output.was_finished:
            print(f"Already complete: {options.out}")
        else:
            _print_summary(result.facts, options, made_by.get("temperature"))
    return result


def _planned_rows(options: Score) -> dict[str, int]:
    """The shards' numbers of rows in the plan that the run's first process wrote, for pools in object stores.

    Otherwise a thousand processes would read every footer of a bucket at the same time.
    """
    out = storage.Folder(options.out)
    if options.limit is not None or storage.Folder(options.pool).is_local or not out.exists(storage.PLAN):
        return {}
    try:
        plan = records.read(RunPlan, out.join(storage.PLAN))
        if FileEntry.from_json(plan.options["pool"]).name != storage.absolute(options.pool):
            return {}
        return {shard: int(rows) for unit in plan.facts["plan"].values() for shard, rows in unit}
    except (InputError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # opening the output reports what is wrong with it


def _score_units(
    output: Output,
    units: dict[str, tuple[EmbeddingShard, ...]],
    todo: list[str],
    reader: UnitReader,
    makers: list[Columns],
    check: Callable[[int, tuple[str, int, str] | None], None],
    options: Score,
    share: parallel.Share,
    before: int,
) -> None:
    """Scores the units to do, this process's that are not done yet; `check` is given the count of bad rows so far.

    `before` is the number of rows of this process's units that are done.
    """
    rows = {name: sum(shard.rows for shard in unit) for name, unit in units.items()}
    first_rows = dict(zip(rows, np.cumsum([0, *rows.values()]).tolist(), strict=False))
    bad_rows = _count_bad(output)
    queue = ((units[name], first_rows[name]) for name in todo)
    watch = telemetry.Stopwatch(share.index)
    with (
        console.bar(total=before + sum(rows[name] for name in todo), unit="pair", name="score", done=before) as bar,
        Writer(output.complete) as writer,
        profiling.Profiler(options.profile, steps=1) as profiler,
    ):
        asked = time.monotonic()
        for name, unit in zip(todo, reader.prefetch(queue), strict=True):
            bad = list(unit.bad_rows())
            bad_rows += len(bad)
            check(bad_rows, bad[0] if bad else None)
            start = time.monotonic()
            profiler.step()
            columns: dict[str, np.ndarray] = {}
            for maker in makers:
                columns |= maker(unit)
            done = time.monotonic()
            times = watch.lap(len(unit.uid), read=unit.seconds, wait=start - asked, compute=done - start)
            facts = _facts(unit, bad)
            first = next((column[:-3] for column in columns if column.endswith("_se")), None)
            if first is not None and options.neg_clip_loss.division != "shard":
                facts["log_sums"] = unit_differences.unit_moments(columns, first, unit.wanted)
            writer.complete(name, _parts(unit, columns), facts, inputs=unit.inputs, times=times)
            bar.update(len(unit.uid))
            asked = time.monotonic()


def plan_units(pool: EmbeddingPool, options: NegClipLoss) -> list[tuple[EmbeddingShard, ...]]:
    """The units of a pool: whole shards, joined until they fill a group."""
    if options.division == "shard":
        return [(shard,) for shard in pool.shards]
    rows = max(options.batch_sizes()) * options.group
    return groups.plan_units(pool.shards, rows, together=options.mix_shards or 1)


def _describe_groups(units: list[tuple[EmbeddingShard, ...]], options: NegClipLoss) -> dict[str, Any]:
    """The sizes that `--batch-size` and `--group` result in for this pool."""
    rows, sizes = [sum(shard.rows for shard in unit) for unit in units], options.batch_sizes()
    if options.division == "shard":
        return reference_division.describe(rows, batch_sizes=sizes)
    return groups.describe(rows, batch_sizes=sizes, group=options.group)


def _parts(unit: ScoreUnit, columns: dict[str, np.ndarray]) -> dict[str, Callable[[BinaryIO], None]]:
    parts: dict[str, Callable[[BinaryIO], None]] = {}
    uid, missing, start = unit.uid, ~unit.wanted, 0  # not the unit itself: it holds the embeddings
    for shard in unit.shards:
        rows = slice(start, start + shard.rows)
        start += shard.rows
        part = {name: values[rows] for name, values in columns.items()}
        parts[f"{shard.name}.parquet"] = functools.partial(_write_part, uid=uid[rows], columns=part, null=missing[rows])
    return parts


def _write_part(file: BinaryIO, uid: np.ndarray, columns: dict[str, np.ndarray], null: np.ndarray) -> None:
    file.write(score_tables.part_bytes(uid, columns, null))


def _facts(unit: ScoreUnit, bad: list[tuple[str, int, str]]) -> Facts:
    masked = collections.Counter(reason for _, _, reason in bad)
    return {
        "rows": len(unit.uid),
        "scored": int(unit.wanted.sum()),
        "masked": {reason: masked[reason] for reason in embedding_shards.BAD_REASONS.values()},
        "masked_rows": [dict(zip(("shard", "row", "reason"), one, strict=True)) for one in bad[:_LISTED]],
        "skipped": [{"shard": name, "reason": reason} for name, reason in unit.skipped.items()],
        "repeated_uids": len(unit.uid) - len(uids.sort_unique(unit.uid)),
        "inputs": [entry.without_fingerprint() for entry in unit.inputs],
        **({"hashed_uids": unit.hashed} if unit.hashed else {}),
    }


def _count_bad(output: Output) -> int:
    """The bad rows of the units that are done, whichever process did them."""
    return sum(sum(receipt.facts["masked"].values()) for receipt in output.receipts().values())


def _summarise(receipts: list[Receipt], *, temperature: float) -> Facts:
    facts = [receipt.facts for receipt in receipts]
    masked: collections.Counter[str] = collections.Counter()
    for fact in facts:
        masked.update(fact["masked"])
    differs = unit_differences.difference([fact.get("log_sums", {}) for fact in facts], temperature)
    return {
        "rows": sum(fact["rows"] for fact in facts),
        "scored": sum(fact["scored"] for fact in facts),
        "masked": dict(masked),
        "masked_rows": [row for fact in facts for row in fact["masked_rows"]],
        "skipped": [entry for fact in facts for entry in fact["skipped"]],
        "repeated_uids": sum(fact["repeated_uids"] for fact in facts),
        "pool": [entry for fact in facts for entry in fact["inputs"]],
        **({} if differs is None else {"unit_difference": differs._asdict()}),
        **({"hashed_uids": hashed} if (hashed := sum(fact.get("hashed_uids", 0) for fact in facts)) else {}),
    }


def _describe_size(size: dict[str, Any], rows: int) -> str:
    batches = console.counted(size["batches"], "batch")
    asked, (least, most) = size["batch_size"], size["effective"]
    pairs = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    text = f" (--batch-size {asked:,} is more than the pool has)" if asked > rows else ""
    return f"{batches} of {pairs} pairs{text}"


def _other_temperature(given: Sequence[float], stated: object) -> str:
    """A note if the embeddings' manifest says another temperature than was given."""
    other = isinstance(stated, float) and not any(math.isclose(t, stated, rel_tol=1e-3) for t in given)
    return f" (the embeddings' manifest says {stated:.4g})" if other else ""


def _print_summary(result: Facts, options: Score, stated: object) -> None:
    masked = {reason: count for reason, count in result["masked"].items() if count}
    temperatures = np.atleast_1d(result["temperature"]).tolist()
    assumed = " (assumed: the embeddings name none; --temperature sets it)"
    text = " and ".join(f"{t:.4g}" for t in temperatures)
    text += _other_temperature(temperatures, stated)
    how = ""
    if options.by_text:
        how = f" at temperature{'s' if len(temperatures) > 1 else ''} {text}"
        how += f"{assumed if result['temperature_from'] == 'assumed' else ''}, in"
        how += f" {' and in '.join(_describe_size(size, result['rows']) for size in result['groups']['sizes'])}"
    lines = [f"Scored {console.counted(result['rows'], 'pair')}{how}: {options.out}"]
    if len(temperatures) * len(result["groups"]["sizes"]) > 1 and "neg_clip_loss" in options.chosen():
        named = neg_clip_loss_columns(options.neg_clip_loss, result["tag"], temperatures)
        lines.append(f"Columns of negCLIPLoss: {', '.join(named)}")
    if options.limit is not None:
        pairs = f"the first {result['rows']:,} of {result['pairs_in_the_pool']:,} pairs"
        lines.append(f"--limit left {pairs} of the pool: a rule's fractions are of these")
    if options.where is not None:
        lines.append(f"--where left {result['scored']:,} pairs to score; the others are null")
    if not result["has_uids"]:
        lines.append("The metadata has no 'uid' column: uids are derived from file name and row and match no tar")
    if hashed := result.get("hashed_uids"):
        lines.append(
            f"The uids of {console.counted(hashed, 'pair')} are made of the ids in column {options.uid_column!r}"
        )
    if differs := result.get("unit_difference"):
        lines.append(
            f"Shards differ by more than chance: beside a noise of {differs['noise']:.2g} that the draw of the batches"
            f" leaves in a score, {differs['spread']:.2g} comes from the shards a pair is compared with; if each is of"
            " one topic, --mix-shards 8 deals the pairs of 8 shards to each group"
        )
    if masked:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in masked.items())
        lines.append(f"Masked rows (null scores): {listed}; listed in {manifest.NAME}")
    if result["repeated_uids"]:
        lines.append(f"{result['repeated_uids']:,} rows repeat a uid of their unit")
    lines.append(parallel.computed_on())
    skipped = [*result["unreadable"], *(entry["reason"] for entry in result["skipped"])]
    lines.append(console.skipped(manifest.NAME, shard=skipped))
    print("\n".join(filter(None, lines)))
