"""What `filter` will take: passes over the metadata, and for pictures k-means and nearest centroids. Imports no jax."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pyarrow.parquet as pq

from clipdata_jax.config import Filter
from clipdata_jax.data import arrays, files, metadata
from clipdata_jax.data import pool as pools
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import (
    filter_presets,
    plan_pool,
    plan_probe_filter,
    plan_score_inputs,
    score_inputs,
)
from clipdata_jax.pipeline.plan_estimates import Estimate, Machine, Times, per_second, refuse_large
from clipdata_jax.pipeline.plan_probe_filter import SEED_ROUNDS, FilterRates
from clipdata_jax.pipeline.progress import counted

_BASE = 100 << 20  # the interpreter and pyarrow
_TEXTS = 30 << 20  # fastText
_JAX = 60 << 20  # jax, and what it compiled
_SORTED = 64 << 20  # uids that are kept, until they go to a file
_PARTS = 2  # in memory: one that is filtered, one that is read
_OF_ROW = 70  # bytes of a pair's uid as text and as numbers
_OF_CAPTION = 80  # of its caption's object and places
_DECODED = 3  # how much larger columns are in memory than in their file
_UID = 16
_DRAWN = 64  # bytes beside a drawn pair's embedding
_BLOCKS = 16 * 2_048  # rows that a device is given at a time to find their clusters
_SAMPLED = 1 << 16  # rows that are read to see how fast that is


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """Embeddings: their dimension and bytes of a row; clusters, and pairs that are drawn to find them, 0 for none."""

    dim: int = 0
    row: int = 0
    clusters: int = 0
    drawn: int = 0


def estimate(options: Filter, machine: Machine) -> Estimate:
    """What a filter takes.

    Raises:
      InputError: the metadata or embeddings are missing or wrong, or can't fit in memory.
    """
    parts = metadata.list_parts(options.metadata, metadata.Skipped(options.on_bad))
    rows = sum(part.rows for part in parts)
    if not rows:
        raise InputError(
            f"{options.metadata}: the metadata holds no pairs, so there is nothing to select from"
        )
    pictures = _pictures(options, rows) if options.by_image else _Pictures()
    found = FilterRates()
    if machine.calibrate:
        sample = _sample(parts)
        found = machine.probe.ask(
            plan_probe_filter.filter_rates, options, sample, pictures.dim, pictures.clusters, pictures.drawn
        )
    drawn, kept = round(pictures.drawn * found.captions), round(rows * found.passing)
    columns = _column_bytes(options, parts)
    memory, on_device = _memory(options, parts, pictures, drawn, machine)
    memory += min(_SORTED, _UID * kept) + round(_PARTS * _DECODED * columns * _largest(parts).rows)
    _refuse_large(options, pictures, memory, on_device, machine)
    passes = 1 + bool(pictures.drawn)
    return Estimate(
        command="filter",
        rows=rows,
        work=f"{counted(rows, 'pair')}, {counted(len(parts), 'file')}{_pictures_text(options, pictures, drawn)}",
        read=round(passes * rows * (columns + pictures.row)),
        written=_UID * kept + 4 * pictures.dim * pictures.clusters * bool(pictures.drawn),
        out=options.out,
        memory=memory,
        device_memory=on_device,
        operations=2.0 * pictures.dim * pictures.clusters * (drawn * (1 + options.steps) + kept),
        times=_times(options, rows, pictures, drawn, found) if machine.calibrate else None,
        rate=_rate(found, pictures) if machine.calibrate else "",
        alone=True,
        notes=("how much is written depends on how many pairs are kept",),
    )


def _refuse_large(
    options: Filter, pictures: _Pictures, memory: int, on_device: int, machine: Machine
) -> None:
    fewer = f"a smaller --sample than {options.sample:,}" if pictures.drawn else "smaller files of metadata"
    refuse_large("filter", "what is held at a time", memory, machine.memory, f"use {fewer}")
    advice = f"use fewer clusters than {pictures.clusters:,}, or {fewer}"
    refuse_large("filter", "the pictures", on_device, machine.devices.memory, advice)


def _pictures(options: Filter, rows: int) -> _Pictures:
    pool = pools.open_pool(options.metadata, on_bad=options.on_bad, texts=False)
    tag = pool.tag(options.tag)
    dim = score_inputs.dimension(pool, tag)
    row = dim * plan_pool.form(pool.shards, tag, dim)[0]
    if options.target is not None:
        plan_score_inputs.target_rows(options.target, tag)
    if options.centroids is not None:
        return _Pictures(dim, row, arrays.array_shape(options.centroids, "")[0])
    return _Pictures(dim, row, options.clusters or 0, min(options.sample, rows))


def _pictures_text(options: Filter, pictures: _Pictures, drawn: int) -> str:
    if not pictures.clusters:
        return ""
    if not pictures.drawn:
        return f"; {pictures.clusters:,} clusters"
    a = "at most " if drawn == pictures.drawn else "about "
    return (
        f"; {pictures.clusters:,} clusters of {a}{drawn:,} pairs in at most {counted(options.steps, 'step')}"
    )


def _sample(parts: Sequence[metadata.Part]) -> tuple[metadata.Part, ...]:
    chosen: list[metadata.Part] = []
    for part in parts:
        if part.rows and sum(one.rows for one in chosen) < _SAMPLED:
            chosen.append(part)
    return tuple(chosen)


def _column_bytes(options: Filter, parts: Sequence[metadata.Part]) -> float:
    """Bytes a row of the columns that are looked at, by those of one file."""
    part = _largest(parts)
    texts, numbers = filter_presets.columns(options)
    with files.open_read(part.path) as file:
        footer = pq.ParquetFile(file).metadata
    sizes = dict.fromkeys(("uid", *texts, *numbers), 0)
    for group, at in itertools.product(range(footer.num_row_groups), range(footer.num_columns)):
        chunk = footer.row_group(group).column(at)
        if chunk.path_in_schema in sizes:
            sizes[chunk.path_in_schema] += chunk.total_compressed_size
    again = sizes[numbers[0]] if options.fraction and numbers[0] in sizes else 0
    return (sum(sizes.values()) + again) / part.rows


def _largest(parts: Sequence[metadata.Part]) -> metadata.Part:
    return max(parts, key=lambda part: part.rows)


def _memory(
    options: Filter, parts: Sequence[metadata.Part], pictures: _Pictures, drawn: int, machine: Machine
) -> tuple[int, int]:
    """Bytes of the process: rows that are looked through, a score a pair, the drawn pairs; and of a device."""
    largest, texts, numbers = _largest(parts), *filter_presets.columns(options)
    rows, devices = sum(part.rows for part in parts), machine.devices.count
    of_row = _OF_ROW + (_OF_CAPTION if texts else 0)
    scores = rows * (9 if str(largest.types.get(numbers[0])) == "double" else 5) if options.fraction else 0
    host = _BASE + (_TEXTS if texts else 0) + _PARTS * largest.rows * of_row + scores
    if not options.by_image:
        return host, 0
    centroids = 4 * pictures.dim * pictures.clusters
    blocks = _BLOCKS * pictures.dim * (2 + 4)
    sample = 2 * pictures.dim * drawn
    on_device = max(blocks + centroids, (sample // devices + 6 * centroids) if pictures.drawn else 0)
    on_devices = devices * on_device if machine.shares_memory else 0
    # The pairs that are drawn are joined, then padded to be handed to the devices: twice there for a moment.
    return host + _JAX + 2 * centroids + 2 * sample + _DRAWN * drawn + on_devices, on_device


def _times(options: Filter, rows: int, pictures: _Pictures, drawn: int, found: FilterRates) -> Times:
    parts = {
        "read": found.read * rows * (1 + bool(pictures.drawn)),
        "bound": found.bound * rows,
        "captions and numbers": found.conditions * (rows + pictures.drawn),
        "first centroids": found.seeding * drawn * _rounds(pictures.clusters) if pictures.drawn else 0.0,
        "k-means": found.lloyd * drawn * pictures.clusters * options.steps,
        "clusters": found.assign * rows * found.passing * pictures.clusters,
    }
    return Times(parts, found.start, sum(parts.values()))


def _rounds(clusters: int) -> int:
    return -(-clusters // max(1, clusters // SEED_ROUNDS))


def _rate(found: FilterRates, pictures: _Pictures) -> str:
    """Of the pass that filters."""
    each = found.read + found.conditions + found.assign * found.passing * pictures.clusters
    return per_second(1, "pairs", each) + (" to filter" if pictures.drawn else "")
