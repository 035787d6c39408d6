"""The rows that `norm-sim-d` selects from: read from the pool once, into a file that can be mapped."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.formats import embedding_shards, uids
from clipdata_jax.formats.embedding_shards import EmbeddingPool, EmbeddingShard
from clipdata_jax.runs import manifest
from clipdata_jax.runs.output import Output
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import console, threads
from clipdata_jax.scoring import norm_sim_d_steps
from clipdata_jax.scoring.norm_sim_d_steps import Rows
from clipdata_jax.scoring.units import check_bad_rows, check_dimension, shard_files

UNIT = "rows"
_EMBEDDINGS, _UIDS, _MOMENTS = "embeddings.npy", "uids.npy", "moments.npz"
_LISTED = 20  # bad rows that the manifest names


@dataclasses.dataclass(frozen=True)
class _ShardRows:
    """The rows of a shard.

    Attributes:
      uid: shape (n,), u8,u8.
      member: shape (n,), bool: the survivors.
      images: shape (n, d), mapped from the file if possible; None if no row of the shard is needed.
      bad: shape (n,), codes of `embedding_shards.BAD_REASONS`.
      entries: name, size and digest of the files read.
    """

    uid: np.ndarray
    member: np.ndarray
    images: np.ndarray | None
    bad: np.ndarray
    entries: list[FileEntry]


class RowReader:
    """Reads a pool's rows into the working folder; the next shard is read while one is summed up and written.

    Args:
      pool: the pool.
      tag: model whose image embeddings are read.
      survivors: sorted uids of the rows to select from; None for all.
      whole: whether all rows count in the first second moment, not only the survivors.
      normalize: whether rows are scaled to unit norm instead of left out.
      max_bad_rows: largest share of bad rows.
      on_bad: what to do with shards that can't be read.

    Attributes:
      facts: for the manifest; complete when the files are written.
      inputs: the files read.
    """

    def __init__(
        self,
        pool: EmbeddingPool,
        tag: str,
        survivors: np.ndarray | None,
        *,
        whole: bool = True,
        normalize: bool = False,
        max_bad_rows: float = 0.0,
        on_bad: OnBad = "stop",
    ) -> None:
        self._pool, self._tag, self._survivors = pool, tag, survivors
        self._whole = whole or survivors is None
        self._normalize, self._max_bad_rows, self._on_bad = normalize, max_bad_rows, on_bad
        self._masked: collections.Counter[str] = collections.Counter()
        self._uid: list[np.ndarray] = []
        self._dim = 0
        self._pool_rows = 0  # good ones
        self._moments: dict[str, Any] = {}
        self.facts: dict[str, Any] = {"skipped": [], "masked_rows": []}
        self.inputs: list[FileEntry] = []

    def write(self, output: Output) -> None:
        """Writes the rows, their uids and their second moments as one unit of work.

        Raises:
          InputError: a shard can't be read, or too many rows are not unit vectors.
        """
        parts: dict[str, bytes | Callable[[BinaryIO], None]] = {
            _EMBEDDINGS: self._write_embeddings,
            _UIDS: lambda file: np.save(file, np.concatenate([np.empty(0, uids.DTYPE), *self._uid])),
            _MOMENTS: lambda file: np.savez(file, **self._moments),
        }
        output.complete(UNIT, parts, self.facts, inputs=self.inputs)

    def _write_embeddings(self, file: BinaryIO) -> None:
        file.write(_header(len(self._pool), 1 << 16))
        count = 0
        with console.bar(total=len(self._pool), unit="pair", name="read") as bar:
            found = threads.prefetch(self._read, self._pool.shards, threads=1, ahead=1)
            for shard, read in zip(self._pool.shards, found, strict=True):
                emb = self._chosen(shard, read)
                count += len(emb)
                file.write(emb.data)
                bar.update(shard.rows)
        file.seek(0)
        file.write(_header(count, self._dim))
        file.seek(0, io.SEEK_END)
        self.facts |= {"rows": count, "pool_rows": self._pool_rows, "masked": dict(self._masked)}

    def _read(self, shard: EmbeddingShard) -> _ShardRows | InputError:
        """The rows of a shard; or, if it may be skipped, why they can't be read."""
        try:
            uid = embedding_shards.read_uids(shard)
            member = np.ones(len(uid), bool)
            if self._survivors is not None:
                member = uids.find(self._survivors, uid) >= 0
            if not self._whole and not member.any():
                return _ShardRows(uid, member, None, np.zeros(len(uid), np.uint8), [])
            entries = list(map(manifest.file_entry, shard_files(shard, texts=False)))
            images = embedding_shards.read_images(shard, self._tag)
        except InputError as error:
            if self._on_bad == "stop":
                raise InputError(f"{error} (or use --on-bad skip)") from error
            return error
        (images,), bad = embedding_shards.find_bad_rows([images], normalize=self._normalize)
        return _ShardRows(uid, member, images.astype(np.float16, copy=False), bad, entries)

    def _chosen(self, shard: EmbeddingShard, read: _ShardRows | InputError) -> np.ndarray:
        """The rows of a shard to select from, float16; the others count in the pool's moment only."""
        if isinstance(read, InputError):
            self.facts["skipped"].append({"shard": shard.name, "reason": str(read)})
            return np.empty((0, self._dim), np.float16)
        if read.images is None:
            return np.empty((0, self._dim), np.float16)
        self._dim = self._dim or read.images.shape[1]
        check_dimension(shard, read.images, self._dim)
        self.inputs += read.entries
        considered = np.ones(len(read.uid), bool) if self._whole else read.member
        self._count_bad(shard, np.where(considered, read.bad, 0))
        good = considered & (read.bad == 0)
        self._pool_rows += int(good.sum())
        self._add("pool", read.images, good)
        if self._survivors is not None and self._whole:  # else the two are one
            self._add("survivors", read.images, good & read.member)
        self._uid.append(read.uid[good & read.member])
        rows: np.ndarray = read.images[good & read.member]
        return rows

    def _add(self, name: str, images: np.ndarray, which: np.ndarray) -> None:
        moment = norm_sim_d_steps.sum_moment(images, np.flatnonzero(which))
        self._moments[name] = self._moments[name] + moment if name in self._moments else moment

    def _count_bad(self, shard: EmbeddingShard, bad: np.ndarray) -> None:
        listed = self.facts["masked_rows"]
        for row in np.flatnonzero(bad)[: _LISTED - len(listed)]:
            reason = embedding_shards.BAD_REASONS[int(bad[row])]
            listed.append({"shard": shard.name, "row": int(row), "reason": reason})
        for code, reason in embedding_shards.BAD_REASONS.items():
            self._masked[reason] += int((bad == code).sum())
        first = (*listed[0].values(),) if listed else None
        check_bad_rows(self._pool, self._masked.total(), self._max_bad_rows, first)


def open_rows(output: Output, pool_rows: int) -> Rows:
    """Maps the rows that were written; the first moment is the sum over `pool_rows` rows."""
    with np.load(output.folder.at(_MOMENTS).inner, allow_pickle=False) as file:
        moments: dict[str, np.ndarray] = dict(file)
    uid = np.load(output.folder.at(_UIDS).inner, mmap_mode="r", allow_pickle=False)
    emb = np.asarray(np.load(output.folder.at(_EMBEDDINGS).inner, mmap_mode="r", allow_pickle=False))
    own = moments["survivors" if "survivors" in moments else "pool"]
    return Rows(emb, uid, moments["pool"] / pool_rows, own)


def _header(rows: int, dim: int) -> bytes:
    """The header of a .npy of float16; NumPy pads it so that the number of rows may grow."""
    head = io.BytesIO()
    shape = {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(head, shape)
    return head.getvalue()


def count_members(pool: EmbeddingPool, survivors: np.ndarray, path: str, *, skip: bool) -> tuple[int, int]:
    """Counts the pool's rows that are survivors, and the survivors that the pool lacks; reads uids only.

    Raises:
      InputError: the pool lacks some, and no shard was skipped that might hold them.
    """
    rows, unread = 0, len(pool.unreadable)
    seen = np.zeros(len(survivors), bool)
    for shard in pool.shards:
        try:
            at = uids.find(survivors, embedding_shards.read_uids(shard))
        except InputError:
            unread += 1
            if not skip:
                raise
            continue
        rows += int((at >= 0).sum())
        seen[at[at >= 0]] = True
    missing = np.flatnonzero(~seen)
    if len(missing) and not unread:
        example = uids.to_hex(survivors[missing[:1]])[0]
        raise InputError(
            f"{path}: {len(missing):,} of its {len(survivors):,} uids are not in the pool {pool.folder}"
            f" (e.g. {example}); give a subset of this pool"
        )
    return rows, len(missing)
