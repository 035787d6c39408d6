"""The image-based presets of `filter`: images in the clusters that target images are in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Filter
from clipdata_jax.errors import InputError
from clipdata_jax.filters.conditions import Condition, apply
from clipdata_jax.filters.presets import Preset
from clipdata_jax.formats import arrays, embedding_shards, metadata
from clipdata_jax.formats.embedding_shards import open_pool, read_target
from clipdata_jax.formats.hashing import mix
from clipdata_jax.runs import manifest
from clipdata_jax.runtime import console
from clipdata_jax.scoring import clustering


def open_preset(
    options: Filter,
    parts: Sequence[metadata.Part],
    captions: Preset,
    score: Preset,
    skipped: metadata.Skipped,
) -> Preset:
    """The filter by centroids, which are read, or found now and written beside `out`.

    Args:
      options: of the command.
      parts: the metadata.
      captions: what is asked of captions; whose pairs are clustered.
      score: what is asked of CLIPScores; it doesn't matter to the clusters.
      skipped: what to do with files that can't be read.

    Raises:
      InputError: embeddings, target or centroids are missing, damaged or don't fit, or are too few to cluster.
    """
    reader = Reader(options)
    target = read_target(options.target or "", options.tag, dim=reader.dim)
    facts: dict[str, Any] = {}
    inputs: tuple[str, ...] = ()
    if options.centroids is not None:
        centroids, inputs = _read_centroids(options.centroids, reader.dim), (options.centroids,)
    else:
        sample = _draw_sample(options, parts, reader, captions, skipped)
        found = clustering.fit(sample, options.clusters or 0, seed=options.seed, steps=options.steps)
        centroids = found.centroids
        path = f"{options.out}.centroids.npy"
        with storage.open_write(path) as file:
            np.save(file, centroids, allow_pickle=False)
        facts = {
            "clustered": len(sample),
            "mean_cosines": list(found.cosines),
            "centroids": manifest.file_entry(path),
        }
    near = _Near(centroids, target)
    note = (
        f"{int(near.wanted.sum()):,} of {len(centroids):,} clusters hold one of {len(target):,} target images"
    )
    return Preset(
        (*score.conditions, *captions.conditions, near.condition(reader.column)),
        (*captions.inputs, *inputs, *_files(options.target or "")),
        (*score.notes, *captions.notes, note),
        tuple(reader.arrays.values()),
        {**score.facts, **facts, "clusters": len(centroids), "target_clusters": int(near.wanted.sum())},
        reader.read,
    )


class Reader:
    """Reads metadata with the embeddings beside it as one more column."""

    def __init__(self, options: Filter) -> None:
        pool = open_pool(options.metadata, on_bad=options.on_bad, texts=False)
        self._tag, self.column = pool.tag(options.tag), f"{options.tag}_img"
        self._shards = {shard.metadata: shard for shard in pool.shards}
        self.arrays = {shard.metadata: shard.images for shard in pool.shards}
        first = next(shard for shard in pool.shards if shard.rows)
        self.dim = arrays.array_shape(first.images, self.column)[1]

    def read(self, part: metadata.Part, names: Sequence[str]) -> metadata.Columns:
        """The columns; rows that are no unit vectors have none."""
        columns = metadata.read_columns(part, [name for name in names if name != self.column])
        emb = embedding_shards.read_images(self._shards[part.path], self._tag)
        if emb.shape[1] != self.dim:
            raise InputError(
                f"{self.arrays[part.path]}: dimension {emb.shape[1]}, but other files have {self.dim}"
            )
        _, bad = embedding_shards.find_bad_rows([emb])
        return dataclasses.replace(
            columns,
            values={**columns.values, self.column: emb},
            null={**columns.null, self.column: bad > 0},
        )


class _Near:
    """Tells which images' nearest centroids are those of target images.

    Attributes:
      wanted: shape (k,), bool: the clusters that hold a target image.
    """

    def __init__(self, centroids: np.ndarray, target: np.ndarray) -> None:
        self._centroids: jax.Array = clustering.place(centroids)
        self.wanted = np.zeros(len(centroids), bool)
        self.wanted[clustering.assign(target, self._centroids)] = True

    def condition(self, column: str) -> Condition:
        """The condition on a column of embeddings."""
        text = "image in a cluster with a target image"
        return Condition(text, (column,), lambda emb: self.wanted[clustering.assign(emb, self._centroids)])


def _read_centroids(path: str, dim: int) -> np.ndarray:
    if not path.endswith(".npy"):
        raise InputError(
            f"{path}: expected centroids as a .npy of shape (k, {dim}); pickles, as torch writes, are not loaded: where"
            " you trust the file, numpy.save('centroids.npy', torch.load(PATH, weights_only=False))"
        )
    centroids = arrays.read_array(path, "")
    if centroids.ndim != 2 or centroids.dtype.kind != "f" or not len(centroids) or centroids.shape[1] != dim:
        found = f"{centroids.dtype}{list(centroids.shape)}"
        raise InputError(f"{path}: the centroids are {found}, expected floats of shape (k, {dim})")
    if not np.isfinite(centroids).all():
        raise InputError(f"{path}: a centroid is not finite")
    return centroids.astype(np.float32)


def _draw_sample(
    options: Filter,
    parts: Sequence[metadata.Part],
    reader: Reader,
    captions: Preset,
    skipped: metadata.Skipped,
) -> np.ndarray:
    """Embeddings of pairs drawn by hash of (seed, uid) whose captions pass, in the pool's order."""
    share = options.sample / max(1, sum(part.rows for part in parts))
    there = Condition("image", (reader.column,), lambda emb: np.ones(len(emb), bool))
    conditions = (*captions.conditions, there)
    names = list(dict.fromkeys(name for condition in conditions for name in condition.columns))
    drawn = []
    with console.bar(total=sum(part.rows for part in parts), unit="pairs", name="sample") as bar:
        for part in parts:
            bar.update(part.rows)
            columns = skipped.attempt(part.path, functools.partial(reader.read, part, names))
            if columns is None:
                continue
            if share < 1:
                word = mix(options.seed, columns.uid["f0"], columns.uid["f1"])
                columns = columns.take(np.flatnonzero(word < np.uint64(int(share * 2.0**64))))
            rows, _ = apply(conditions, columns)
            drawn.append(columns.values[reader.column][rows].astype(np.float16))
    sample = np.concatenate([np.empty((0, reader.dim), np.float16), *drawn])
    if len(sample) < (options.clusters or 0):
        raise InputError(
            f"--clusters is {options.clusters}, but only {len(sample):,} pairs were drawn whose captions pass;"
            " take fewer, or a larger --sample"
        )
    return sample


def _files(path: str) -> tuple[str, ...]:
    return tuple(storage.list_folder(path, ".npz")) if storage.is_folder(path) else (path,)
