"""The image-based filters: images in the clusters that target images are in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.filters.conditions import Condition, apply
from clipdata_jax.filters.presets import Preset
from clipdata_jax.formats import embedding_shards, hashing, metadata
from clipdata_jax.runs import manifest
from clipdata_jax.runtime import console
from clipdata_jax.scoring import clustering


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeans:
    """Settings of k-means.

    Attributes:
      clusters: k.
      sample: about how many pairs to draw, of which those whose captions pass are clustered.
      steps: at most.
      seed: of the sample and of the first centroids.
      out: the .npy file to write the centroids to.
    """

    clusters: int
    sample: int
    steps: int
    seed: int
    out: str


class EmbeddingReader:
    """Reads metadata with the image embeddings of the .npz beside it as one more column.

    Attributes:
      column: that column.
      arrays: metadata file -> the .npz beside it.
      dim: the dimension of the embeddings.
    """

    def __init__(self, folder: str, tag: str, *, on_bad: OnBad, image_key: str | None = None) -> None:
        pool = embedding_shards.open_pool(folder, on_bad=on_bad, texts=False, keys=(image_key, None))
        self._tag, self.column = pool.tag(tag), f"{tag}_img"
        self._shards = {shard.metadata: shard for shard in pool.shards}
        self.arrays = {shard.metadata: shard.images for shard in pool.shards}
        first = next(shard for shard in pool.shards if shard.rows)
        self.dim = first.dim(self._tag)

    def read(self, part: metadata.Part, names: Sequence[str]) -> metadata.Columns:
        """Reads columns; zero and not finite embeddings are null, those of another norm are scaled to unit norm.

        The nearest centroid by inner product is the same for any norm.
        """
        columns = metadata.read_columns(part, [name for name in names if name != self.column])
        emb = embedding_shards.read_images(self._shards[part.path], self._tag)
        if emb.shape[1] != self.dim:
            raise InputError(f"{self.arrays[part.path]}: dimension {emb.shape[1]}, but other files have {self.dim}")
        _, bad = embedding_shards.find_bad_rows([emb])
        if (bad == 3).any():
            (emb,), bad = embedding_shards.find_bad_rows([emb], normalize=True)
        return dataclasses.replace(
            columns, values={**columns.values, self.column: emb}, null={**columns.null, self.column: bad > 0}
        )


def near_targets(
    reader: EmbeddingReader,
    parts: Sequence[metadata.Part],
    captions: Preset,
    *,
    tag: str,
    target: str,
    centroids: str | KMeans,
    skipped: metadata.Skipped,
) -> Preset:
    """Keeps pairs whose caption passes and whose image's nearest centroid is also that of a target image.

    Args:
      reader: of the pool's metadata and embeddings.
      parts: the metadata.
      captions: the conditions on captions; the pairs that meet them are clustered.
      tag: the model of the embeddings.
      target: embeddings of target images.
      centroids: a file of them, or how to find them.
      skipped: what to do with files that can't be read.

    Raises:
      InputError: embeddings, target or centroids are missing, damaged or don't fit, or are too few to cluster.
    """
    targets = embedding_shards.read_target(target, tag, dim=reader.dim)
    facts: dict[str, Any] = {}
    inputs = captions.inputs
    if isinstance(centroids, str):
        found, inputs = clustering.read_centroids(centroids, reader.dim), (*inputs, centroids)
    else:
        found, facts = _find_centroids(reader, parts, captions, centroids, skipped)
    placed = clustering.place(found)
    wanted = np.zeros(len(found), bool)
    wanted[clustering.assign(targets, placed)] = True
    count = int(wanted.sum())
    text = "image in a cluster with a target image"
    near = Condition(text, (reader.column,), lambda emb: wanted[clustering.assign(emb, placed)])
    note = f"{count:,} of {len(found):,} clusters hold one of {len(targets):,} target images"
    return Preset(
        (*captions.conditions, near),
        (*inputs, *(storage.Folder(target).files(".npz") if storage.is_folder(target) else (target,))),
        (*captions.notes, note),
        tuple(reader.arrays.values()),
        {**facts, "clusters": len(found), "target_clusters": count},
        reader.read,
    )


def _find_centroids(
    reader: EmbeddingReader,
    parts: Sequence[metadata.Part],
    captions: Preset,
    settings: KMeans,
    skipped: metadata.Skipped,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Clusters a sample and writes the centroids; returns them, and facts for the manifest."""
    sample = _draw_sample(reader, parts, captions, settings, skipped)
    if len(sample) < settings.clusters:
        raise InputError(
            f"--clusters is {settings.clusters}, but only {len(sample):,} pairs were drawn whose captions pass;"
            " take fewer, or a larger --sample"
        )
    found = clustering.fit(sample, settings.clusters, seed=settings.seed, steps=settings.steps)
    with storage.open_write(settings.out) as file:
        np.save(file, found.centroids, allow_pickle=False)
    facts = {
        "clustered": len(sample),
        "mean_cosines": list(found.cosines),
        "centroids": manifest.file_entry(settings.out),
    }
    return found.centroids, facts


def _draw_sample(
    reader: EmbeddingReader,
    parts: Sequence[metadata.Part],
    captions: Preset,
    settings: KMeans,
    skipped: metadata.Skipped,
) -> np.ndarray:
    """Embeddings of pairs drawn by hash of (seed, uid) whose captions pass, in the pool's order."""
    rows = sum(part.rows for part in parts)
    share = settings.sample / max(1, rows)
    has_image = Condition("image", (reader.column,), lambda emb: np.ones(len(emb), bool))
    conditions = (*captions.conditions, has_image)
    names = list(dict.fromkeys(name for condition in conditions for name in condition.columns))
    drawn = [np.empty((0, reader.dim), np.float16)]
    with console.bar(total=rows, unit="pairs", name="sample") as bar:
        for part in parts:
            bar.update(part.rows)
            columns = skipped.attempt(part.path, functools.partial(reader.read, part, names))
            if columns is None:
                continue
            if share < 1:
                word = hashing.mix(settings.seed, columns.uid["f0"], columns.uid["f1"])
                columns = columns.take(np.flatnonzero(word < np.uint64(int(share * 2.0**64))))
            kept, _ = apply(conditions, columns)
            drawn.append(columns.values[reader.column][kept].astype(np.float16))
    return np.concatenate(drawn)
