"""`clipdata sensitivity`: a sample of a pool in, a page that says which settings of negCLIPLoss matter out."""

from __future__ import annotations

import dataclasses

import numpy as np

from clipdata_jax.config import Sensitivity
from clipdata_jax.data import files
from clipdata_jax.data import pool as pools
from clipdata_jax.data.pool import Pool, Shard
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import groups, manifest, progress, score_inputs, target_sets
from clipdata_jax.pipeline import sensitivity_scores as trials
from clipdata_jax.pipeline.group_scores import Pairs
from clipdata_jax.pipeline.score_columns import by_rows
from clipdata_jax.pipeline.score_units import read_ahead, shard_files
from clipdata_jax.pipeline.sensitivity_output import Result, as_text, write
from clipdata_jax.pipeline.sensitivity_scores import Figures, Plan, Setting

_LARGEST_BATCH = 32_768
_SHARED = 0.3  # of a pair's others may be the same under both seeds, which takes a sixth off what flips


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Pairs to try settings on: their embeddings and uids, and how many were left out as no unit vectors."""

    pairs: Pairs
    uid: np.ndarray
    left_out: int
    skipped: tuple[str, ...]


def run(options: Sensitivity) -> dict[Setting, Figures]:
    """Writes the page, `.csv` and `.json` of the same name, and the page's manifest; returns the figures.

    Memory: the sample's embeddings, and one float32 a pair for each setting and seed.

    Raises:
      InputError: bad input, or a sample too small to select from.
    """
    inputs = look(options)
    pool = inputs.pool
    sample = _read_sample(inputs, options)
    rows = len(sample.uid)
    count = int(options.fraction * rows)
    if not count:
        raise InputError(
            f"{options.pool}: {rows} pairs are too few to select --fraction {options.fraction:g}"
        )
    made = inputs.plan(options, rows)
    found = _measure(made, sample, options, count)
    result = Result(
        options,
        made,
        found,
        advice=trials.advise(made, found, rows=rows, pairs=len(pool), tolerance=options.tolerance),
        notes=_notes(made, sample, pool, options, inputs.source),
        sampled=rows,
        pairs=len(pool),
    )
    described = manifest.describe(
        "sensitivity",
        options,
        pool=[path for shard in pool.shards for path in shard_files(shard)],
        devices=True,
        tag=inputs.tag,
        temperature=inputs.temperatures[0],
        temperature_from=inputs.source,
        sampled=rows,
        skipped=list(sample.skipped),
    )
    write(result, described)
    print(as_text(result))
    if sample.skipped:
        told = progress.counted(len(sample.skipped), "shard")
        print(f"Skipped {told}, listed in {options.out}.{manifest.NAME}; the first: {sample.skipped[0]}")
    return found


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A pool, what of it is looked at, and how.

    Attributes:
      pool: the shards.
      tag: the model.
      temperatures: to try; others vary at the first.
      source: where that is from.
      sizes: each |B| to try.
      units: runs of shards, evenly spaced, that are read.
      part: share of their pairs that the sample takes.
    """

    pool: Pool
    tag: str
    temperatures: tuple[float, ...]
    source: str
    sizes: tuple[int, ...]
    units: tuple[tuple[Shard, ...], ...]
    part: float

    def quota(self, rows: int) -> int:
        """How many pairs of a unit of so many the sample takes."""
        return max(1, round(self.part * rows))

    def plan(self, options: Sensitivity, rows: int) -> Plan:
        """The settings to try on a sample of so many pairs."""
        return trials.plan(
            repeats=options.repeats,
            group=options.group,
            batch_sizes=self.sizes,
            temperatures=self.temperatures,
            rows=rows,
        )


def look(options: Sensitivity) -> Inputs:
    """Chooses what to read of a pool, about as many pairs as `options.groups` of the largest groups have.

    Raises:
      InputError: the pool is missing or wrong, or `out` is a folder.
    """
    if files.is_folder(options.out):
        raise InputError(f"{options.out}: is a folder; --out names the .html file to write")
    pool = pools.open_pool(options.pool, on_bad=options.on_bad)
    tag = pool.tag(options.tag)
    model = target_sets.made_by_model(options.pool, tag)
    (first, *_), source = score_inputs.temperatures(options.temperature or None, model)
    sizes = options.batch_size or _default_sizes(len(pool))
    wanted = options.groups * max(options.group) * max(sizes)
    units = groups.plan_units(pool.shards, -(-wanted // options.groups))
    chosen = sorted({(2 * i + 1) * len(units) // (2 * options.groups) for i in range(options.groups)})
    read = tuple(units[index] for index in chosen)
    part = min(1.0, wanted / sum(shard.rows for unit in read for shard in unit))
    temperatures = options.temperature or (first, first / 2, first * 2)
    return Inputs(pool, tag, temperatures, source, sizes, read, part)


def _default_sizes(rows: int) -> tuple[int, ...]:
    """32,768 and its half and quarter; on a small pool such that it holds about four of the largest."""
    largest = _LARGEST_BATCH
    while largest > 1 and largest * 4 > rows:
        largest //= 2
    return tuple(size for size in (largest, largest // 2, largest // 4) if size >= min(largest, 8))


def _read_sample(inputs: Inputs, options: Sensitivity) -> _Sample:
    """The sample, drawn by hash."""
    pool, tag = inputs.pool, inputs.tag
    dim = score_inputs.dimension(pool, tag)
    taken: list[tuple[Pairs, np.ndarray]] = []
    left_out, skipped = 0, [*pool.unreadable]
    queue = ((unit, 0) for unit in inputs.units)
    with progress.bar(total=len(inputs.units), unit="unit", name="read") as bar:
        for unit in read_ahead(queue, tag, dim, options):
            drawn = np.sort(groups.hash_order(unit.uid, options.seed)[: inputs.quota(len(unit.uid))])
            rows = drawn[unit.good[drawn]]
            left_out += len(drawn) - len(rows)
            skipped += unit.skipped.values()
            taken.append((Pairs(unit.images[rows], unit.texts[rows], unit.good[rows]), unit.uid[rows]))
            bar.update(1)
    pairs = Pairs(*(np.concatenate(arrays) for arrays in zip(*(pairs for pairs, _ in taken), strict=True)))
    return _Sample(pairs, np.concatenate([uid for _, uid in taken]), left_out, tuple(skipped))


def _measure(made: Plan, sample: _Sample, options: Sensitivity, count: int) -> dict[Setting, Figures]:
    from clipdata_jax import scores

    settings = made.settings()
    total = 2 * len(sample.uid) * sum({setting.group for setting in settings})
    with progress.bar(total=total, unit="pair", name="score") as bar:
        first, second = (
            trials.score(settings, sample.pairs, sample.uid, seed=seed, done=bar.update)
            for seed in (options.seed, options.seed + 1)
        )
    clip_score = by_rows(scores.clip_score, sample.pairs.images, sample.pairs.texts)
    return trials.measure((first, second), made.finest, clip_score=clip_score, uid=sample.uid, count=count)


def _notes(made: Plan, sample: _Sample, pool: Pool, options: Sensitivity, source: str) -> list[str]:
    notes = []
    largest = made.base.batch_size
    if largest > len(pool):
        notes.append(f"--batch-size {largest:,} is more than the pool has: it is one batch.")
    elif not options.batch_size and largest < _LARGEST_BATCH:
        notes.append(
            f"The pool is small, so |B| goes up to {largest:,} here. Scored with a --batch-size of more than two thirds"
            " of the pool it is one batch, and nothing is left to chance."
        )
    if source == "assumed":
        notes.append(f"Temperature {made.base.temperature:g} is assumed: the embeddings name none.")
    held = [setting.group for setting in made.axes["group"]]
    if lacking := sorted(set(options.group) - set(held)):
        notes.append(
            f"m = {', '.join(map(str, lacking))} takes more than the {len(sample.uid):,} pairs there are."
        )
    shared = held[-1] * largest / len(sample.uid)
    if len(sample.uid) < len(pool) and shared > _SHARED:
        notes.append(
            f"At m = {held[-1]} both seeds compare a pair with {trials.percent(min(shared, 1))} of the same others, so"
            " chance is understated there: a larger --groups reads a larger sample."
        )
    if sample.left_out:
        notes.append(
            f"{progress.counted(sample.left_out, 'row')} left out: no unit vectors, or a skipped shard."
        )
    return notes
