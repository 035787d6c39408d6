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
from clipdata_jax.formats import embedding_shards, score_tables, uids
from clipdata_jax.formats.embedding_shards import EmbeddingPool, EmbeddingShard
from clipdata_jax.runs import manifest, profiling, records, telemetry
from clipdata_jax.runs.output import Output, Writer, open_output
from clipdata_jax.runs.records import Facts, Manifest, Plan, Receipt
from clipdata_jax.runtime import console, parallel
from clipdata_jax.scoring import groups, reference_division, target_sets
from clipdata_jax.scoring import units as scoring_units
from clipdata_jax.scoring.columns import SCORES, Columns, Inputs, neg_clip_loss_columns
from clipdata_jax.scoring.units import Unit, list_bad, read_ahead, shard_files

_LISTED = 20  # bad rows that the manifest names, a part


def run(options: Score) -> Manifest | None:
    """Scores a pool; returns the manifest, or None where another process tells of the run.

    Memory: the embeddings of two units, one being read while the other is scored. A unit is a shard, or the
    `--mix-shards` shards whose pairs are dealt to its groups, or small shards that together fill a group.

    Raises:
      InputError: bad input; what was finished is kept, and the same command goes on from there.
    """
    share = parallel.start(options.workers)
    pool = embedding_shards.open_pool(options.pool, on_bad=options.on_bad, rows=_planned_rows(options))
    tag = pool.tag(options.tag)
    made_by = target_sets.made_by_model(options.pool, tag)
    temperatures, source = scoring_units.temperatures(options.neg_clip_loss.temperatures(), made_by)
    dim = scoring_units.dimension(pool, tag)
    if options.where is not None:
        storage.size(options.where)  # a missing file is told of before targets are embedded
    target_options = target_sets.TargetSets(
        settings=options.norm_sim,
        tag=tag,
        made_by=made_by,
        force=options.force,
        on_bad=options.on_bad,
        alone=options.workers.worker is None and options.workers.coordinator in (None, "none"),
    )
    targets, target_files = target_options.read(dim)
    inputs = Inputs(options, tag, temperatures, targets)
    makers = [SCORES[name](inputs) for name in options.chosen()]
    units = plan_units(pool, options.neg_clip_loss)
    by_name = {f"unit-{index:05d}": unit for index, unit in enumerate(units)}
    plan = manifest.describe(
        "score",
        options,
        inputs=[*target_files, *([options.where] if options.where else [])],
        pool=[path for shard in pool.shards for path in shard_files(shard)],
        devices=True,
        tag=tag,
        temperature=temperatures[0] if len(temperatures) == 1 else list(temperatures),
        temperature_from=source,
        has_uids=pool.has_uids,
        unreadable=list(pool.unreadable),
        model=made_by.get("digest"),
        targets={name: len(target) for name, target in targets.items()},
        plan={name: [[shard.name, shard.rows] for shard in unit] for name, unit in by_name.items()},
        groups=_describe_groups(units, options.neg_clip_loss),
    )
    output = open_output(options.out, plan=plan, units=list(by_name))
    todo = output.remaining(share)
    now = todo[: options.stop_after]
    _score_units(output, share, by_name, now, pool, tag, options, makers)
    if len(now) < len(todo):
        raise StoppedEarly(len(now), len(todo))
    _check_all_bad_rows(output, pool, options)
    result = output.finish(_summarise, share)
    if result is not None:
        if not todo and output.was_finished:
            print(f"Already complete: {options.out}")
        else:
            _print_summary(result.facts, options, made_by.get("temperature"))
    return result


def _planned_rows(options: Score) -> dict[str, int]:
    """The shards' rows by the plan that the run's first process wrote: for pools where a footer is a request each.

    A thousand processes would else read every footer of a bucket, all at a time.
    """
    out = storage.Folder(options.out)
    if storage.Folder(options.pool).is_local or not out.exists(storage.PLAN):
        return {}
    try:
        plan = records.read(Plan, out.join(storage.PLAN))
        if plan.options["pool"] != (options.pool.rstrip("/") or options.pool):
            return {}
        return {shard: int(rows) for unit in plan.facts["plan"].values() for shard, rows in unit}
    except (InputError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # whoever opens the output says what is wrong with it


def _score_units(
    output: Output,
    share: parallel.Share,
    by_name: dict[str, tuple[EmbeddingShard, ...]],
    todo: list[str],
    pool: EmbeddingPool,
    tag: str,
    options: Score,
    makers: list[Columns],
) -> None:
    """Scores the units to do, this process's that are not done yet."""
    rows = {name: sum(shard.rows for shard in unit) for name, unit in by_name.items()}
    first_rows = dict(zip(rows, np.cumsum([0, *rows.values()]).tolist(), strict=False))
    dim = scoring_units.dimension(pool, tag)
    bad_rows = sum(_count_bad(receipt.facts) for receipt in output.receipts().values())
    queue = ((by_name[name], first_rows[name]) for name in todo)
    watch = telemetry.Stopwatch(share.index)
    with (
        console.bar(total=sum(rows[name] for name in todo), unit="pair", name="score") as bar,
        Writer(output.complete) as writer,
        profiling.Profiler(options.profile, steps=1) as profiler,
    ):
        asked = time.monotonic()
        for name, unit in zip(todo, read_ahead(queue, tag, dim, options), strict=True):
            bad_rows += sum(1 for _ in list_bad(unit))
            _check_bad_rows(bad_rows, unit, pool, options)
            start = time.monotonic()
            profiler.step()
            columns: dict[str, np.ndarray] = {}
            for maker in makers:
                columns |= maker(unit)
            done = time.monotonic()
            times = watch.lap(len(unit.uid), read=unit.seconds, wait=start - asked, compute=done - start)
            writer.complete(name, _parts(unit, columns), _facts(unit), inputs=unit.inputs, times=times)
            bar.update(len(unit.uid))
            asked = time.monotonic()


def plan_units(pool: EmbeddingPool, options: NegClipLoss) -> list[tuple[EmbeddingShard, ...]]:
    """The units of a pool: whole shards, joined until they fill a group."""
    if options.division == "shard":
        return [(shard,) for shard in pool.shards]
    rows = max(options.batch_sizes()) * options.group
    return groups.plan_units(pool.shards, rows, together=options.mix_shards or 1)


def _describe_groups(units: list[tuple[EmbeddingShard, ...]], options: NegClipLoss) -> dict[str, Any]:
    """What `--batch-size` and `--group` came to on this pool."""
    rows, sizes = [sum(shard.rows for shard in unit) for unit in units], options.batch_sizes()
    if options.division == "shard":
        return reference_division.describe(rows, batch_sizes=sizes)
    return groups.describe(rows, batch_sizes=sizes, group=options.group)


def _check_bad_rows(bad_rows: int, unit: Unit, pool: EmbeddingPool, options: Score) -> None:
    if bad_rows <= options.max_bad_rows * len(pool):
        return
    first = next((f" (e.g. {shard}, row {row}, {reason})" for shard, row, reason in list_bad(unit)), "")
    raise InputError(
        f"{options.pool}: {bad_rows} of {len(pool)} rows are no unit vectors, more than --max-bad-rows"
        f" {options.max_bad_rows:g} allows{first};"
        " embed them again, or use --normalize or a larger --max-bad-rows"
    )


def _check_all_bad_rows(output: Output, pool: EmbeddingPool, options: Score) -> None:
    """The limit holds for the pool, whichever workers met the rows."""
    receipts = output.receipts()
    bad_rows = sum(_count_bad(receipt.facts) for receipt in receipts.values())
    if len(receipts) == len(output.units) and bad_rows > options.max_bad_rows * len(pool):
        raise InputError(
            f"{options.pool}: {bad_rows} of {len(pool)} rows are no unit vectors, more than --max-bad-rows"
            f" {options.max_bad_rows:g} allows; {options.out} is left without its manifest"
        )


def _parts(unit: Unit, columns: dict[str, np.ndarray]) -> dict[str, Callable[[BinaryIO], None]]:
    parts: dict[str, Callable[[BinaryIO], None]] = {}
    uid, missing, start = unit.uid, ~unit.wanted, 0  # not the unit itself: it holds the embeddings
    for shard in unit.shards:
        rows = slice(start, start + shard.rows)
        start += shard.rows
        part = {name: values[rows] for name, values in columns.items()}
        parts[f"{shard.name}.parquet"] = functools.partial(
            _write_part, uid=uid[rows], columns=part, null=missing[rows]
        )
    return parts


def _write_part(file: BinaryIO, uid: np.ndarray, columns: dict[str, np.ndarray], null: np.ndarray) -> None:
    file.write(score_tables.part_bytes(uid, columns, null))


def _facts(unit: Unit) -> Facts:
    bad = np.concatenate(unit.bad)
    listed = [{"shard": shard, "row": row, "reason": reason} for shard, row, reason in list_bad(unit)]
    ordered = uids.sort_unique(unit.uid)
    return {
        "rows": len(unit.uid),
        "scored": int(unit.wanted.sum()),
        "masked": {reason: int((bad == code).sum()) for code, reason in embedding_shards.BAD_REASONS.items()},
        "masked_rows": listed[:_LISTED],
        "skipped": [{"shard": name, "reason": reason} for name, reason in unit.skipped.items()],
        "repeated_uids": len(unit.uid) - len(ordered),
        "inputs": unit.digests,
    }


def _count_bad(facts: dict[str, Any]) -> int:
    return sum(facts["masked"].values())


def _summarise(receipts: list[Receipt]) -> Facts:
    facts = [receipt.facts for receipt in receipts]
    masked: collections.Counter[str] = collections.Counter()
    for fact in facts:
        masked.update(fact["masked"])
    return {
        "rows": sum(fact["rows"] for fact in facts),
        "scored": sum(fact["scored"] for fact in facts),
        "masked": dict(masked),
        "masked_rows": [row for fact in facts for row in fact["masked_rows"]],
        "skipped": [entry for fact in facts for entry in fact["skipped"]],
        "repeated_uids": sum(fact["repeated_uids"] for fact in facts),
        "pool": [entry for fact in facts for entry in fact["inputs"]],
    }


def _describe_size(size: dict[str, Any], rows: int) -> str:
    batches = console.counted(size["batches"], "batch")
    asked = size["batch_size"]
    told = f" (--batch-size {asked:,} is more than the pool has)" if asked > rows else ""
    return f"{batches} of {size['effective'][1]:,} pairs{told}"


def _other_temperature(given: Sequence[float], stated: object) -> str:
    """A word where the embeddings' manifest says another temperature than was given."""
    other = isinstance(stated, float) and not any(math.isclose(t, stated, rel_tol=1e-3) for t in given)
    return f" (the embeddings' manifest says {stated:.4g})" if other else ""


def _print_summary(result: Facts, options: Score, stated: object) -> None:
    masked = {reason: count for reason, count in result["masked"].items() if count}
    temperatures = np.atleast_1d(result["temperature"]).tolist()
    assumed = " (assumed: the embeddings name none; --temperature sets it)"
    told = " and ".join(f"{t:.4g}" for t in temperatures)
    told += _other_temperature(temperatures, stated)
    lines = [
        f"Scored {console.counted(result['rows'], 'pair')} at temperature{'s' if len(temperatures) > 1 else ''} {told}"
        f"{assumed if result['temperature_from'] == 'assumed' else ''}, in"
        f" {' and in '.join(_describe_size(size, result['rows']) for size in result['groups']['sizes'])}: {options.out}"
    ]
    if len(temperatures) * len(result["groups"]["sizes"]) > 1 and "neg_clip_loss" in options.chosen():
        named = neg_clip_loss_columns(options.neg_clip_loss, result["tag"], temperatures)
        lines.append(f"Columns of negCLIPLoss: {', '.join(named)}")
    if options.where is not None:
        lines.append(f"--where left {result['scored']:,} pairs to score; the others are null")
    if not result["has_uids"]:
        lines.append(
            "The metadata has no 'uid' column: uids are made of file name and row, which no tar knows"
        )
    if masked:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in masked.items())
        lines.append(f"Masked rows (null scores): {listed}; listed in {manifest.NAME}")
    if result["repeated_uids"]:
        lines.append(f"{result['repeated_uids']:,} rows repeat a uid of their unit")
    skipped = [*result["unreadable"], *(entry["reason"] for entry in result["skipped"])]
    lines.append(console.skipped(manifest.NAME, shard=skipped))
    print("\n".join(filter(None, lines)))
