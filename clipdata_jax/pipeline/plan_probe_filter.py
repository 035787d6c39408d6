"""What `plan` asks of another process about `filter`: how fast it reads, applies conditions, and clusters pictures."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdata_jax.config import Filter
from clipdata_jax.data import metadata
from clipdata_jax.pipeline import filter_presets, plan_probe
from clipdata_jax.selection import datacomp

_APPLIED = 1 << 16  # rows that conditions are tried on
_CLUSTERS, _FEW = 2_048, 4  # centroids, and blocks a device, to assign to clusters
_SEEDED, _ROUNDS = 1 << 16, 4  # rows a device at most, and rounds, to choose first centroids among
SEED_ROUNDS = 256  # in which k-means chooses its first centroids, as `k_means` does
_LOADED = 0.5  # seconds of what the command imports


@dataclasses.dataclass(frozen=True)
class FilterRates:
    """Seconds: a row to read, to read its score alone, to apply conditions to; a row and centroid of k-means' step and
    of the last pass; a row and round of the first centroids; until the first file can be read. And the shares of rows
    that pass what is asked of captions and numbers, and of captions alone.
    """

    read: float = 0.0
    bound: float = 0.0
    conditions: float = 0.0
    passing: float = 1.0
    captions: float = 1.0
    lloyd: float = 0.0
    assign: float = 0.0
    seeding: float = 0.0
    start: float = 0.0


def filter_rates(
    options: Filter, parts: Sequence[metadata.Part], dim: int, clusters: int, drawn: int
) -> FilterRates:
    """Measures what `filter` does on some files; pictures are clustered at random.

    Args:
      options: of the command.
      parts: some files of the metadata.
      dim: of the pictures' embeddings, 0 where they aren't looked at.
      clusters: how many there are, 0 for none.
      drawn: pairs that they are found of if all captions pass, 0 where they are given.
    """
    begin = time.monotonic()
    skipped = metadata.Skipped("skip")
    score, captions, read = _open(options, parts, skipped)
    conditions = (*score, *captions)
    opening = time.monotonic() - begin
    rows, names = sum(part.rows for part in parts), _names(conditions)
    plan_probe.forget(part.path for part in parts)
    columns, reading = plan_probe.timed(lambda: [read(part, names) for part in parts])
    largest = max(columns, key=lambda one: len(one.uid))
    some = largest.take(np.arange(min(len(largest.uid), _APPLIED)))
    (left, counts), first = plan_probe.timed(lambda: datacomp.apply(conditions, some))
    steady = plan_probe.timed(lambda: datacomp.apply(conditions, some))[1]
    bound = 0.0
    if options.fraction:
        (column,) = filter_presets.columns(options)[1]
        bound = plan_probe.timed(lambda: metadata.read_numbers(parts, column, skipped, lambda rows: None))[1]
    start = _LOADED + max(0.0, opening - bound) + max(0.0, first - steady)
    asked = counts[len(score) - 1] if score else len(some.uid)  # whose captions are looked at
    found = FilterRates(
        reading / rows,
        bound / rows,
        steady / len(some.uid),
        len(left) / len(some.uid),
        len(left) / max(asked, 1),
        start=start,
    )
    return _with_pictures(found, options, dim, clusters, round(drawn * found.captions)) if clusters else found


def _open(options: Filter, parts: Sequence[metadata.Part], skipped: metadata.Skipped) -> tuple[Any, Any, Any]:
    """The conditions on scores, and the others but for that on clusters, and what reads their columns."""
    if not options.by_image:
        preset = filter_presets.open_preset(options, parts, skipped)
        return (), preset.conditions, preset.read
    from clipdata_jax.pipeline import filter_images

    captions, score = filter_presets.beside_pictures(options, parts, skipped)
    reader = filter_images.Reader(options)
    there = datacomp.Condition("picture", (reader.column,), lambda emb: np.ones(len(emb), bool))
    return score.conditions, (*captions.conditions, there), reader.read


def _with_pictures(found: FilterRates, options: Filter, dim: int, clusters: int, drawn: int) -> FilterRates:
    """The rates of clustering too; in few centroids, which take as long each as many do."""
    import jax.numpy as jnp

    from clipdata_jax import parallel
    from clipdata_jax.pipeline import k_means
    from clipdata_jax.scores import k_means as steps

    start = plan_probe.start_seconds()
    mesh = parallel.local_mesh()
    rows, tried = _FEW * k_means.BLOCK * mesh.size, min(clusters, _CLUSTERS)
    emb = plan_probe.unit_rows(rows, dim)
    centroids = k_means.place(plan_probe.unit_rows(tried, dim, seed=1).astype(np.float32))
    assign, compiling = plan_probe.twice(lambda: k_means.assign(emb, centroids))
    found = dataclasses.replace(found, assign=assign / rows / tried, start=found.start + start + compiling)
    if options.clusters is None:
        return found
    placed, mask = k_means.spread(emb, rows, mesh), jnp.ones(rows, bool)
    step = functools.partial(steps.lloyd_step, placed, mask, centroids, mesh=mesh)
    lloyd, compiling = plan_probe.twice(lambda: step().centroids)
    seeding, more = _seeding_seconds(min(drawn, _SEEDED * mesh.size), clusters, dim)
    return dataclasses.replace(
        found, lloyd=lloyd / rows / tried, seeding=seeding, start=found.start + compiling + more
    )


def _seeding_seconds(rows: int, clusters: int, dim: int) -> tuple[float, float]:
    """Seconds a row and round of the first centroids, of so many rows; and to compile."""
    from clipdata_jax import parallel
    from clipdata_jax.pipeline import k_means

    mesh, emb = parallel.local_mesh(), plan_probe.unit_rows(max(rows, k_means.BLOCK), dim)
    a_round = min(k_means.seeds_a_round(clusters), len(emb) // (2 * _ROUNDS))
    placed = k_means.spread(emb, k_means.padded(len(emb), mesh), mesh)
    call = functools.partial(k_means.choose_seeds, emb, placed, 1 + _ROUNDS * a_round, a_round, 0, mesh)
    first, seconds = (plan_probe.timed(call)[1] for _ in range(2))
    return seconds / _ROUNDS / len(emb), max(0.0, first - seconds)


def _names(conditions: Sequence[datacomp.Condition]) -> list[str]:
    return list(dict.fromkeys(name for condition in conditions for name in condition.columns))
