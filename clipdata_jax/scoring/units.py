"""The units of work of `score`: a run of shards read whole, bad rows and skipped shards masked in place."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Score
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, embedding_shards, uids
from clipdata_jax.formats.embedding_shards import EmbeddingPool, EmbeddingShard
from clipdata_jax.runs import manifest
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import threads


def shard_files(shard: EmbeddingShard) -> list[str]:
    """The files of a shard, each once."""
    return sorted({shard.metadata, shard.images, shard.texts})


class Unit:
    """The pairs of a unit, all shards after one another; masked rows stay in their places.

    Attributes:
      shards: the unit's shards.
      first_row: the unit's first row in the pool.
      uid: shape (n,), u8,u8.
      images: shape (n, d), the dtype on disk; mapped from it where it can be; zeros in masked rows.
      texts: likewise.
      good: shape (n,), bool: False for masked rows.
      wanted: shape (n,), bool: the good rows that `--where` leaves to score.
      bad: per shard why rows are masked, a code of `data.embeddings.BAD_REASONS`; 255 for a skipped shard.
      skipped: shard name -> why it could not be read.
      digests: name, size and digest of the files read.
      inputs: the same with the fingerprints that the files had before they were read.
      seconds: how long reading took.
    """

    def __init__(self, shards: tuple[EmbeddingShard, ...], first_row: int) -> None:
        self.shards, self.first_row = shards, first_row
        self.uid = np.empty(0, uids.DTYPE)
        self.images = self.texts = np.empty((0, 0), np.float16)
        self.good = self.wanted = np.empty(0, bool)
        self.bad: list[np.ndarray] = []
        self.skipped: dict[str, str] = {}
        self.digests: list[FileEntry] = []
        self.inputs: list[FileEntry] = []
        self.seconds = 0.0


def read_ahead(
    queue: Iterator[tuple[tuple[EmbeddingShard, ...], int]], tag: str, dim: int, options: Score
) -> Iterator[Unit]:
    """Reads the next unit while the devices work on this one: two units are in memory, no more."""
    where = options.where if isinstance(options, Score) else None
    subset = None if where is None else uids.read_subset(where)

    def read(planned: tuple[tuple[EmbeddingShard, ...], int]) -> Unit:
        shards, first_row = planned
        # Of an object store, for the digest, the uids and both sides.
        with storage.downloaded([path for shard in shards for path in shard_files(shard)]):
            return _read_unit(shards, first_row, tag, dim, options, subset)

    return threads.prefetch(read, queue, threads=1, ahead=1)


def _read_unit(
    shards: tuple[EmbeddingShard, ...],
    first_row: int,
    tag: str,
    dim: int,
    options: Score,
    subset: np.ndarray | None,
) -> Unit:
    start = time.monotonic()
    unit = Unit(shards, first_row)
    read: list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = []
    for shard in shards:
        try:
            fingerprints = list(map(storage.fingerprint, shard_files(shard)))
            entries = list(map(manifest.file_entry, shard_files(shard)))
            unit.digests += entries
            unit.inputs += [
                dataclasses.replace(entry, fingerprint=fingerprint)
                for entry, fingerprint in zip(entries, fingerprints, strict=True)
            ]
            emb = embedding_shards.read_shard(shard, tag)
            if emb.images.shape[1] != dim:
                raise InputError(
                    f"{shard.images}: embeddings of dimension {emb.images.shape[1]}, but the pool's first have {dim};"
                    " embed all with one model"
                )
            (images, texts), bad = embedding_shards.find_bad_rows(
                [emb.images, emb.texts], normalize=options.normalize
            )
            read.append((emb.uid, images, texts))
            unit.bad.append(bad)
        except InputError as error:
            if options.on_bad == "stop":
                raise InputError(f"{error} (or use --on-bad skip)") from error
            unit.skipped[shard.name] = str(error)
            read.append((_uids_or_zeros(shard), None, None))
            unit.bad.append(np.full(shard.rows, 255, np.uint8))
    whole = [images for _, images, _ in read if images is not None]
    like = whole[0] if whole else np.empty((0, dim), np.float16)
    unit.uid = np.concatenate([uid for uid, _, _ in read])
    lacking = {len(uid): np.zeros((len(uid), dim), like.dtype) for uid, images, _ in read if images is None}
    unit.images, unit.texts = (
        _join([lacking[len(one[0])] if (rows := one[i]) is None else rows for one in read]) for i in (1, 2)
    )
    unit.good = unit.wanted = np.concatenate(unit.bad) == 0
    if subset is not None:
        unit.wanted = unit.good & (uids.find(subset, unit.uid) >= 0)
    # A masked row's numbers reach no sum, but NaN times zero would. Of a mapped file this copies its pages only.
    unit.images[~unit.good] = unit.texts[~unit.good] = 0
    unit.seconds = time.monotonic() - start
    return unit


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """A shard by itself stays where it is, mapped from its file."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _uids_or_zeros(shard: EmbeddingShard) -> np.ndarray:
    try:
        found = embedding_shards.read_uids(shard)
    except InputError:
        found = np.zeros(0, uids.DTYPE)
    return found if len(found) == shard.rows else np.zeros(shard.rows, uids.DTYPE)


def list_bad(unit: Unit) -> Iterator[tuple[str, int, str]]:
    """The masked rows of shards that were read: shard name, row in it, reason."""
    for shard, bad in zip(unit.shards, unit.bad, strict=True):
        if shard.name not in unit.skipped:
            for row in np.flatnonzero(bad):
                yield shard.name, int(row), embedding_shards.BAD_REASONS[int(bad[row])]


DEFAULT_TEMPERATURE = 0.01


def temperatures(given: tuple[float, ...] | None, model: dict[str, Any]) -> tuple[tuple[float, ...], str]:
    """The temperatures and where they are from: the options, the manifest of the embeddings, or nowhere."""
    if given is not None:
        return given, "options"
    if "temperature" in model:
        return (float(model["temperature"]),), "manifest"
    return (DEFAULT_TEMPERATURE,), "assumed"


def dimension(pool: EmbeddingPool, tag: str) -> int:
    """The dimension of the pool's embeddings: that of the first shard that can be read."""
    for shard in pool.shards:
        try:
            return arrays.array_shape(shard.images, f"{tag}_img")[1]
        except InputError as error:
            last = error
    raise last
