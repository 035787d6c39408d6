"""Units of `dedup`: the pool's rows, their clusters if there are any, and searches for near-duplicates among them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats.embedding_shards import EmbeddingPool
from clipdata_jax.runs import telemetry
from clipdata_jax.runs.output import Output
from clipdata_jax.runtime import console, parallel
from clipdata_jax.scoring import duplicate_clusters, duplicate_rows
from clipdata_jax.scoring.duplicate_clusters import RowClusters
from clipdata_jax.scoring.duplicate_rows import PoolRows
from clipdata_jax.scoring.duplicate_search import (
    BLOCK,
    Among,
    Components,
    Criterion,
    TargetMatch,
    join_near,
    near_targets_of,
    search_units,
)
from clipdata_jax.scoring.duplicate_table import COSINE_STEPS, NO_COSINE, NearestInSets
from clipdata_jax.scoring.units import UnitReader


class DuplicateResults(NamedTuple):
    """What a search found.

    Attributes:
      components: the rows, joined to groups.
      in_sets: the rows that are too near another set.
      nearest: shape (n,), int16: the cosine of each row with the nearest other row that it was compared with, in
        steps of 1 / COSINE_STEPS; NO_COSINE without any.
    """

    components: Components
    in_sets: NearestInSets
    nearest: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicateSearch:
    """A search for near-duplicates in a pool, in units of work.

    Attributes:
      pool: the pool.
      reader: reads its shards.
      compared: the embeddings that are compared: "image", "text" or both.
      threshold: the least cosine of near-duplicates.
      targets: name -> embeddings (t, d), float16, of images that pairs must not be near to.
      clusters: number of clusters to find, inside which pairs are compared.
      centroids: a file of centroids, instead.
      seed: of k-means.
      max_bad_rows: largest share of bad rows.
    """

    pool: EmbeddingPool
    reader: UnitReader
    compared: tuple[str, ...]
    threshold: float
    targets: dict[str, np.ndarray]
    clusters: int | None
    centroids: str | None
    seed: int
    max_bad_rows: float

    @property
    def is_clustered(self) -> bool:
        """Whether pairs are compared inside clusters only."""
        return self.clusters is not None or self.centroids is not None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The embeddings that are read: those compared, and the images' where there are targets."""
        return ("image", "text") if self.targets and self.compared == ("text",) else self.compared

    @functools.cached_property
    def searches(self) -> list[str]:
        """The units that search."""
        return search_units(len(self.pool), self.clusters, is_clustered=self.is_clustered)

    @property
    def units(self) -> list[str]:
        """All units, in order."""
        first = [duplicate_rows.UNIT, *([duplicate_clusters.UNIT] if self.is_clustered else [])]
        return [*first, *self.searches]

    def do(self, output: Output, units: Sequence[str], share: parallel.Share) -> None:
        """Does some units, in order; what they need and no process has done yet is done, too.

        Raises:
          InputError: a shard can't be read, too many rows are bad, or there are fewer rows than clusters.
        """
        if not units:
            return
        watch = telemetry.Stopwatch(share.index)
        if duplicate_rows.UNIT not in output.receipts():
            duplicate_rows.PoolRowReader(self.pool, self.reader, self.kinds, self.max_bad_rows).write(output)
        if units[-1] == duplicate_rows.UNIT:
            return
        rows = duplicate_rows.open_pool_rows(output)
        clusters = self._find_clusters(output, rows, share) if self.is_clustered else None
        todo = [number for number, unit in enumerate(self.searches) if unit in units]
        criterion = self.criterion(output, rows)
        total = sum(self._comparisons(number, clusters) for number in todo)
        with console.bar(total=total, unit="comparison", name="dedup") as bar:
            for number in todo:
                start, unit = time.monotonic(), self.searches[number]
                own, found = self._search(criterion, number, clusters, bar.update)
                matches = self._near_targets(criterion, own)
                times = watch.lap(len(own), compute=time.monotonic() - start)
                parts = {f"{unit}.npz": functools.partial(_save, found=found, matches=matches)}
                output.complete(unit, parts, {"joined": len(found.row)}, times=times)

    def criterion(self, output: Output, rows: PoolRows) -> Criterion:
        """The criterion for near-duplicates among the rows that were read."""
        norms = output.receipts()[duplicate_rows.UNIT].facts["squared_norms"]
        kinds = tuple(map(self.kinds.index, self.compared))
        squared = min(norms[kind][0] for kind in kinds), max(norms[kind][1] for kind in kinds)
        return Criterion(rows.emb, kinds, rows.good, self.threshold, squared)

    def results(self, output: Output, rows: int) -> DuplicateResults:
        """What all units found, of a pool of so many rows."""
        components, nearest = Components(rows), np.full(rows, NO_COSINE, np.int16)
        clusters = duplicate_clusters.open_clusters(output) if self.is_clustered else None
        matches: list[list[TargetMatch]] = [[] for _ in self.targets]
        for number, unit in enumerate(self.searches):
            with np.load(output.folder.at(f"{unit}.npz").inner, allow_pickle=False) as file:
                components.join(file["root"], file["row"])
                compared = self._compared(number, clusters)
                nearest[compared] = np.maximum(nearest[compared], file["nearest"])
                for of_set, found in enumerate(matches):
                    found.append(TargetMatch(*(file[f"{name}_{of_set}"] for name in TargetMatch._fields)))
        joined = [TargetMatch(*map(np.concatenate, zip(*one, strict=True))) for one in matches]
        return DuplicateResults(components, NearestInSets.of(joined), nearest)

    def _find_clusters(self, output: Output, rows: PoolRows, share: parallel.Share) -> RowClusters:
        if duplicate_clusters.UNIT not in output.receipts():
            try:
                kind = self.kinds.index(self.compared[0])
                duplicate_clusters.write_clusters(output, rows, kind, self.clusters, self.centroids, self.seed)
            except InputError:
                if share.count == 1:  # no search is lost, and other options can be tried
                    with contextlib.suppress(InputError, OSError):
                        storage.remove(str(output.folder))
                raise
        return duplicate_clusters.open_clusters(output)

    def _bounds(self, number: int, clusters: RowClusters | None) -> range:
        """The rows, or the clusters, of a unit."""
        if clusters is None:
            return range(number * BLOCK, min((number + 1) * BLOCK, len(self.pool)))
        return range(*(len(clusters.centroids) * one // len(self.searches) for one in (number, number + 1)))

    def _comparisons(self, number: int, clusters: RowClusters | None) -> int:
        bounds = self._bounds(number, clusters)
        if clusters is None:
            return len(bounds) * (len(self.pool) - bounds.start) - len(bounds) * (len(bounds) + 1) // 2
        sizes = np.diff(clusters.starts[bounds.start : bounds.stop + 1])
        return int((sizes * (sizes - 1) // 2).sum())

    def _compared(self, number: int, clusters: RowClusters | None) -> np.ndarray:
        """The rows that a unit compares with each other, or with its own."""
        bounds = self._bounds(number, clusters)
        if clusters is None:
            return np.arange(bounds.start, len(self.pool))
        return clusters.order[clusters.starts[bounds.start] : clusters.starts[bounds.stop]]

    def _search(
        self, criterion: Criterion, number: int, clusters: RowClusters | None, done: Callable[[int], object]
    ) -> tuple[np.ndarray, _UnitResults]:
        """A unit's own rows, and what it finds."""
        bounds, compared = self._bounds(number, clusters), self._compared(number, clusters)
        if clusters is None:
            among = Among.some_of(np.arange(len(self.pool)), bounds)
            join_near(criterion, [among], done)
            return compared[: len(bounds)], _UnitResults(*among.components.joined(), among.nearest[bounds.start :])
        searches = [Among.all_of(clusters.rows(cluster)) for cluster in bounds]
        join_near(criterion, searches, done)
        joined = [[one.index[part] for part in one.components.joined()] for one in searches]
        none = np.empty(0, np.int64)  # of a unit without a cluster
        rows, roots = map(np.concatenate, zip((none, none), *joined, strict=True))
        nearest = np.concatenate([np.empty(0, np.float32), *(one.nearest for one in searches)])
        return compared, _UnitResults(rows, roots, nearest)

    def _near_targets(self, criterion: Criterion, own: np.ndarray) -> list[TargetMatch]:
        if not self.targets:
            return []
        images = dataclasses.replace(criterion, kinds=(self.kinds.index("image"),))
        return near_targets_of(images, own, list(self.targets.values()))


class _UnitResults(NamedTuple):
    """What a unit finds: rows connected with one of a lower number, each with the lowest such; cosines."""

    row: np.ndarray
    root: np.ndarray
    nearest: np.ndarray


def _save(file: BinaryIO, found: _UnitResults, matches: Sequence[TargetMatch]) -> None:
    arrays: dict[str, Any] = {"row": found.row.astype(np.int64), "root": found.root.astype(np.int64)}
    # Two bytes a row: of all pairs, every unit has some of most rows.
    cosine = np.clip(np.round(found.nearest * COSINE_STEPS), -COSINE_STEPS, COSINE_STEPS)
    arrays["nearest"] = np.where(np.isfinite(found.nearest), cosine, NO_COSINE).astype(np.int16)
    for number, match in enumerate(matches):
        arrays |= {f"{name}_{number}": part for name, part in match._asdict().items()}
    np.savez(file, **arrays)
