"""The rows that `dedup` compares, numbered as in the pool: read from it once, into a file that can be mapped."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from clipdata_jax.formats import embedding_shards, uids
from clipdata_jax.formats.embedding_shards import EmbeddingPool
from clipdata_jax.runs.output import Output
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import console
from clipdata_jax.scoring.units import ScoreUnit, UnitReader, check_bad_rows

UNIT = "rows"
_EMBEDDINGS, _UIDS, _STATES = "embeddings.npy", "uids.npy", "states.npy"
_GOOD, _BAD, _UNREAD = 0, 1, 2
_LISTED = 20  # bad rows that the manifest names
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class PoolRows:
    """The rows of a pool, mapped from files.

    Attributes:
      emb: shape (n, kinds, d), float16: of each row the embeddings of its image, its caption, or both.
      uid: shape (n,), u8,u8.
      good: shape (n,), bool: rows of unit vectors; the others are zeros, and no duplicates.
      unread: shape (n,), bool: rows of shards that could not be read.
    """

    emb: np.ndarray
    uid: np.ndarray
    good: np.ndarray
    unread: np.ndarray


class PoolRowReader:
    """Reads a pool's rows into the working folder; the next shard is read while one is written.

    Args:
      pool: the pool.
      reader: reads its shards.
      kinds: "image", "text" or both: the embeddings to keep.
      max_bad_rows: largest share of bad rows.
    """

    def __init__(self, pool: EmbeddingPool, reader: UnitReader, kinds: tuple[str, ...], max_bad_rows: float) -> None:
        self._pool, self._reader, self._kinds, self._max_bad_rows = pool, reader, kinds, max_bad_rows
        self._masked: collections.Counter[str] = collections.Counter()
        self._uid: list[np.ndarray] = []
        self._states: list[np.ndarray] = []
        self._norms = np.array([[np.inf, -np.inf]] * len(kinds))
        self._facts: dict[str, Any] = {"skipped": [], "masked_rows": []}
        self._inputs: list[FileEntry] = []

    def write(self, output: Output) -> None:
        """Writes the rows, their uids and their states as one unit of work.

        Raises:
          InputError: a shard can't be read, or too many rows are not unit vectors.
        """
        parts: dict[str, bytes | Callable[[BinaryIO], None]] = {
            _EMBEDDINGS: self._write_embeddings,
            _UIDS: lambda file: np.save(file, np.concatenate([np.empty(0, uids.DTYPE), *self._uid])),
            _STATES: lambda file: np.save(file, np.concatenate([np.empty(0, np.uint8), *self._states])),
        }
        # The facts and inputs are complete when the files are written.
        output.complete(UNIT, parts, self._facts, inputs=self._inputs, undigested=(_EMBEDDINGS,))

    def _write_embeddings(self, file: BinaryIO) -> None:
        shape = (len(self._pool), len(self._kinds), self._reader.dim)
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f2", "fortran_order": False, "shape": shape})
        file.write(head.getvalue())
        with console.bar(total=len(self._pool), unit="pair", name="read") as bar:
            queue = (((shard,), 0) for shard in self._pool.shards)
            for unit in self._reader.prefetch(queue):
                for block in self._blocks(unit):
                    file.write(block.data)
                bar.update(len(unit.uid))
        self._facts |= {
            "rows": len(self._pool),
            "masked": {reason: self._masked[reason] for reason in embedding_shards.BAD_REASONS.values()},
            # 1 if there are no good rows.
            "squared_norms": np.where(np.isfinite(self._norms), self._norms, 1).tolist(),
        }

    def _blocks(self, unit: ScoreUnit) -> Iterator[np.ndarray]:
        """The embeddings of a shard, float16, some rows at a time, and takes note of all else."""
        bad = list(unit.bad_rows())
        self._masked.update(reason for _, _, reason in bad)
        listed = self._facts["masked_rows"]
        listed += [{"shard": name, "row": row, "reason": reason} for name, row, reason in bad[: _LISTED - len(listed)]]
        check_bad_rows(self._pool, self._masked.total(), self._max_bad_rows, bad[0] if bad else None)
        self._facts["skipped"] += [{"shard": name, "reason": reason} for name, reason in unit.skipped.items()]
        self._inputs += unit.inputs
        self._uid.append(unit.uid)
        self._states.append(np.where(unit.good, _GOOD, _UNREAD if unit.skipped else _BAD).astype(np.uint8))
        arrays = [unit.images if kind == "image" else unit.texts for kind in self._kinds]
        for start in range(0, len(unit.uid), _CHUNK):
            rows = slice(start, start + _CHUNK)
            # A skipped shard has no captions.
            block = np.stack([_whole(emb[rows], self._reader.dim) for emb in arrays], axis=1)
            wide = block[unit.good[rows]].astype(np.float32)
            if len(wide):
                squares = np.einsum("nkd,nkd->nk", wide, wide)
                self._norms[:, 0] = np.minimum(self._norms[:, 0], squares.min(axis=0))
                self._norms[:, 1] = np.maximum(self._norms[:, 1], squares.max(axis=0))
            yield block


def _whole(emb: np.ndarray, dim: int) -> np.ndarray:
    return emb.astype(np.float16) if emb.shape[1] == dim else np.zeros((len(emb), dim), np.float16)


def open_pool_rows(output: Output) -> PoolRows:
    """Maps the rows that were written."""
    emb, uid, states = (
        np.asarray(np.load(output.folder.at(name).inner, mmap_mode="r", allow_pickle=False))
        for name in (_EMBEDDINGS, _UIDS, _STATES)
    )
    return PoolRows(emb, uid, states == _GOOD, states == _UNREAD)
