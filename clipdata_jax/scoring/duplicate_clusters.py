"""Clusters that near-duplicates are searched in, as SemDeDup does: found by k-means on a sample of rows, or given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats.hashing import mix
from clipdata_jax.runs import manifest
from clipdata_jax.runs.output import Output
from clipdata_jax.runtime import console
from clipdata_jax.scoring import clustering
from clipdata_jax.scoring.duplicate_rows import PoolRows

UNIT = "clusters"
_CENTROIDS, _CLUSTERS = "centroids.npy", "clusters.npy"
_ROWS_A_CLUSTER = 128  # of the sample
_STEPS = 20
_PIECE = 1 << 15  # rows that are assigned at a time


@dataclasses.dataclass(frozen=True)
class RowClusters:
    """The rows by their clusters.

    Attributes:
      centroids: shape (k, d), float32.
      cluster: shape (n,), int32: of each row.
      order: shape (n,), int64: the rows, by cluster and number.
      starts: shape (k + 1,): where each cluster begins in `order`.
    """

    centroids: np.ndarray
    cluster: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    def rows(self, cluster: int) -> np.ndarray:
        """The rows of a cluster, ascending."""
        return self.order[self.starts[cluster] : self.starts[cluster + 1]]

    def cosines(self, emb: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The cosine of some rows, whose embeddings are given, with their centroids: float64."""
        f, c = emb.astype(np.float64), self.centroids[self.cluster[rows]].astype(np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", f, f) * np.einsum("nd,nd->n", c, c))
        found: np.ndarray = np.einsum("nd,nd->n", f, c) / np.where(norms > 0, norms, 1)
        return found


def write_clusters(
    output: Output, rows: PoolRows, kind: int, clusters: int | None, path: str | None, seed: int
) -> None:
    """Writes the centroids and each row's cluster as one unit of work.

    Args:
      output: the working folder.
      rows: the pool's.
      kind: the embeddings to cluster by.
      clusters: the number of clusters to find; None to take centroids that are given.
      path: the file of these.
      seed: of the sample and of k-means.

    Raises:
      InputError: the centroids can't be read or don't fit, or there are fewer different rows than clusters.
    """
    if path is not None:
        centroids = clustering.read_centroids(path, rows.emb.shape[2])
    else:
        centroids = _find(rows, kind, clusters or 0, seed)
    placed = clustering.place(centroids)
    cluster = np.empty(len(rows.uid), np.int32)
    with console.bar(total=len(cluster), unit="pair", name="assign") as bar:
        for start in range(0, len(cluster), _PIECE):
            some = slice(start, start + _PIECE)
            cluster[some] = clustering.assign(rows.emb[some, kind], placed)
            bar.update(len(cluster[some]))
    parts = {name: _saver(array) for name, array in ((_CENTROIDS, centroids), (_CLUSTERS, cluster))}
    inputs = [] if path is None else [manifest.file_entry(path)]
    output.complete(UNIT, parts, {"clusters": len(centroids)}, inputs=inputs)


def _find(rows: PoolRows, kind: int, clusters: int, seed: int) -> np.ndarray:
    good = np.flatnonzero(rows.good)
    if len(good) < clusters:
        raise InputError(
            f"--clusters is {clusters}, but only {len(good):,} pairs have usable embeddings; use fewer clusters"
        )
    word = mix(seed, rows.uid["f0"][good], rows.uid["f1"][good])
    count = min(len(good), clusters * _ROWS_A_CLUSTER)
    sample = np.sort(good[np.argpartition(word, count - 1)[:count]])
    return clustering.fit(rows.emb[sample][:, kind], clusters, seed=seed, steps=_STEPS).centroids


def _saver(array: np.ndarray) -> Callable[[BinaryIO], None]:
    def save(file: BinaryIO) -> None:
        np.save(file, array, allow_pickle=False)

    return save


def open_clusters(output: Output) -> RowClusters:
    """Reads the clusters that were written."""
    centroids, cluster = (np.load(output.folder.at(name).inner, allow_pickle=False) for name in (_CENTROIDS, _CLUSTERS))
    starts = np.append(0, np.cumsum(np.bincount(cluster, minlength=len(centroids))))
    return RowClusters(centroids, cluster, np.argsort(cluster, kind="stable"), starts)
