"""Units of `score`: shards read as one block of pairs, with bad rows and skipped shards masked in place."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.formats import embedding_shards, uids
from clipdata_jax.formats.embedding_shards import EmbeddingPool, EmbeddingShard
from clipdata_jax.runs import manifest
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import threads

DEFAULT_TEMPERATURE = 0.01
_SKIPPED = 255  # beside the codes of `embedding_shards.BAD_REASONS`


@dataclasses.dataclass(frozen=True)
class ScoreUnit:
    """The pairs of a unit, its shards one after another; masked rows stay in their places.

    Attributes:
      shards: the unit's shards.
      first_row: the unit's first row in the pool.
      uid: shape (n,), u8,u8.
      images: shape (n, d), the dtype on disk; mapped from the file if possible; zeros in masked rows.
      texts: likewise; of shape (n, 0) if there are none.
      good: shape (n,), bool: False for masked rows.
      wanted: shape (n,), bool: the good rows to score.
      bad: for each shard, why rows are masked: a code of `embedding_shards.BAD_REASONS`, 255 in skipped shards.
      skipped: shard name -> why it could not be read.
      inputs: the files read, with their fingerprints from before.
      seconds: time that reading took.
      hashed: how many of the uids are made of ids of another kind.
    """

    shards: tuple[EmbeddingShard, ...]
    first_row: int
    uid: np.ndarray
    images: np.ndarray
    texts: np.ndarray
    good: np.ndarray
    wanted: np.ndarray
    bad: list[np.ndarray]
    skipped: dict[str, str]
    inputs: list[FileEntry]
    seconds: float
    hashed: int = 0

    def bad_rows(self) -> Iterator[tuple[str, int, str]]:
        """The masked rows of shards that could be read: shard name, row in it, reason."""
        for shard, bad in zip(self.shards, self.bad, strict=True):
            if shard.name not in self.skipped:
                for row in np.flatnonzero(bad):
                    yield shard.name, int(row), embedding_shards.BAD_REASONS[int(bad[row])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitReader:
    """Reads units.

    Attributes:
      tag: model whose embeddings are read.
      dim: their dimension.
      subset: sorted uids of the pairs to score; None for all.
      normalize: whether rows are scaled to unit norm instead of masked.
      on_bad: what to do with shards that can't be read.
    """

    tag: str
    dim: int
    subset: np.ndarray | None = None
    normalize: bool = False
    on_bad: OnBad = "stop"

    def prefetch(self, units: Iterable[tuple[tuple[EmbeddingShard, ...], int]]) -> Generator[ScoreUnit]:
        """Yields units (shards, first row) in order; the next one is read meanwhile, so that two are in memory."""

        def read(unit: tuple[tuple[EmbeddingShard, ...], int]) -> ScoreUnit:
            # One download from an object store serves the digest, the uids and both sides.
            with storage.downloaded([path for shard in unit[0] for path in shard_files(shard)]):
                return self.read(*unit)

        return threads.prefetch(read, units, threads=1, ahead=1)

    def read(self, shards: tuple[EmbeddingShard, ...], first_row: int) -> ScoreUnit:
        """Reads a unit.

        Raises:
          InputError: a shard can't be read, and `on_bad` is "stop".
        """
        start = time.monotonic()
        skipped: dict[str, str] = {}
        inputs: list[FileEntry] = []
        read = [self._read_shard(shard, skipped, inputs) for shard in shards]
        uid, images, texts, bad, hashed = zip(*read, strict=True)
        whole = np.concatenate(uid)
        good = np.concatenate(bad) == 0
        wanted = good if self.subset is None else good & (uids.find(self.subset, whole) >= 0)
        image_rows = self._join(shards, images, self.dim)
        text_rows = self._join(shards, texts, self.dim if shards[0].texts else 0)
        # A masked row adds nothing to any sum, but NaN times zero would. Of a mapped file this copies its pages only.
        image_rows[~good] = text_rows[~good] = 0
        seconds = time.monotonic() - start
        return ScoreUnit(
            shards,
            first_row,
            whole,
            image_rows,
            text_rows,
            good,
            wanted,
            list(bad),
            skipped,
            inputs,
            seconds,
            sum(hashed),
        )

    def _read_shard(
        self, shard: EmbeddingShard, skipped: dict[str, str], inputs: list[FileEntry]
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray, int]:
        """uid, images, texts, codes of bad rows, number of hashed ids; a skipped shard has neither images nor texts."""
        try:
            fingerprints = list(map(storage.fingerprint, shard_files(shard)))
            entries = list(map(manifest.file_entry, shard_files(shard)))
            inputs += [
                dataclasses.replace(entry, fingerprint=fingerprint)
                for entry, fingerprint in zip(entries, fingerprints, strict=True)
            ]
            emb = embedding_shards.read_shard(shard, self.tag)
            check_dimension(shard, emb.images, self.dim)
            sides = [emb.images, emb.texts] if shard.texts else [emb.images]
            sides, bad = embedding_shards.find_bad_rows(sides, normalize=self.normalize)
        except InputError as error:
            if self.on_bad == "stop":
                raise InputError(f"{error} (or use --on-bad skip)") from error
            skipped[shard.name] = str(error)
            return _uids_or_zeros(shard), None, None, np.full(shard.rows, _SKIPPED, np.uint8), 0
        return emb.uid, sides[0], sides[1] if shard.texts else emb.texts, bad, emb.hashed

    def _join(self, shards: Sequence[EmbeddingShard], parts: Sequence[np.ndarray | None], dim: int) -> np.ndarray:
        """One array of all shards' rows; that of a single shard stays mapped from its file."""
        dtypes = {part.dtype for part in parts if part is not None}
        dtype = np.result_type(*dtypes) if dtypes else np.dtype(np.float16)
        whole = [
            np.zeros((shard.rows, dim), dtype) if part is None else part
            for shard, part in zip(shards, parts, strict=True)
        ]
        return whole[0] if len(whole) == 1 else np.concatenate(whole)


def _uids_or_zeros(shard: EmbeddingShard) -> np.ndarray:
    try:
        found = embedding_shards.read_uids(shard)
    except InputError:
        found = np.zeros(0, uids.DTYPE)
    return found if len(found) == shard.rows else np.zeros(shard.rows, uids.DTYPE)


def shard_files(shard: EmbeddingShard, *, texts: bool = True) -> list[str]:
    """The files of a shard, each once; without caption embeddings unless `texts`."""
    return sorted({shard.metadata, shard.images, *([shard.texts] if texts and shard.texts else [])})


def check_dimension(shard: EmbeddingShard, images: np.ndarray, dim: int) -> None:
    """Raises InputError unless a shard's embeddings have the pool's dimension."""
    if images.shape[1] != dim:
        raise InputError(
            f"{shard.images}: embeddings of dimension {images.shape[1]}, but the pool's first have {dim};"
            " embed all with one model"
        )


def check_bad_rows(
    pool: EmbeddingPool, bad_rows: int, max_share: float, example: tuple[str, int, str] | None = None
) -> None:
    """Raises InputError if more than a share of the pool's rows are bad; names one as an example."""
    if bad_rows > max_share * len(pool):
        named = " (e.g. shard {}, row {}, {})".format(*example) if example else ""
        raise InputError(
            f"{pool.folder}: {bad_rows} of {len(pool)} pairs have embeddings that are not unit vectors, more than"
            f" --max-bad-rows {max_share:g} allows{named}; embed them again, or use --normalize or a larger"
            " --max-bad-rows"
        )


def choose_temperatures(given: tuple[float, ...] | None, model: dict[str, Any]) -> tuple[tuple[float, ...], str]:
    """The temperatures and where they come from: "options", the embeddings' "manifest", or "assumed"."""
    if given is not None:
        return given, "options"
    if "temperature" in model:
        return (float(model["temperature"]),), "manifest"
    return (DEFAULT_TEMPERATURE,), "assumed"


def dimension(pool: EmbeddingPool, tag: str) -> int:
    """The dimension of the pool's embeddings: that of the first shard that can be read."""
    for shard in pool.shards:
        try:
            return shard.dim(tag)
        except InputError as error:
            last = error
    raise last
