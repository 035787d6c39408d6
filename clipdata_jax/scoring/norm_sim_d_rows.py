"""The rows that `norm-sim-d` chooses from: read from the pool once, into one file that can be mapped."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from clipdata_jax.config import NormSimD
from clipdata_jax.errors import InputError
from clipdata_jax.formats import embedding_shards, uids
from clipdata_jax.formats.embedding_shards import EmbeddingPool, EmbeddingShard
from clipdata_jax.runs import manifest
from clipdata_jax.runs.output import Output
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import console, threads
from clipdata_jax.scoring import norm_sim_d_steps
from clipdata_jax.scoring.norm_sim_d_steps import Rows

UNIT = "rows"
_EMBEDDINGS, _UIDS, _MOMENTS = "embeddings.npy", "uids.npy", "moments.npz"
_LISTED = 20  # rows left out that the manifest names


@dataclasses.dataclass(frozen=True)
class _Found:
    """What is read of a shard.

    Attributes:
      uid: shape (n,), u8,u8.
      member: shape (n,), bool: the survivors.
      images: shape (n, d), mapped from the file where that can be; None where the shard has no row to look at.
      bad: shape (n,), codes of `embeddings.BAD_REASONS`.
      entries: name, size and digest of the files read.
    """

    uid: np.ndarray
    member: np.ndarray
    images: np.ndarray | None
    bad: np.ndarray
    entries: list[FileEntry]


class Reader:
    """Reads a pool's rows into the working folder: the next shard while this one is summed up and written.

    Attributes:
      facts: what the manifest keeps of it; filled while the files are written.
      inputs: name, size and digest of the files read.
    """

    def __init__(
        self, pool: EmbeddingPool, tag: str, options: NormSimD, survivors: np.ndarray | None
    ) -> None:
        self._pool, self._tag, self._options, self._survivors = pool, tag, options, survivors
        self._masked: collections.Counter[str] = collections.Counter()
        self._uid: list[np.ndarray] = []
        self._whole = survivors is None or options.init == "pool"  # whether all rows count
        self._dim = 0
        self._pool_rows = 0  # good ones
        self._moments: dict[str, Any] = {}
        self.facts: dict[str, Any] = {"skipped": [], "masked_rows": []}
        self.inputs: list[FileEntry] = []

    def write(self, output: Output) -> None:
        """Writes the rows, their uids and their second moments as one unit of work.

        Raises:
          InputError: a shard can't be read, or too many rows are no unit vectors.
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

    def _read(self, shard: EmbeddingShard) -> _Found | InputError:
        """A shard's rows; or, where it may be skipped, why they can't be read."""
        try:
            uid = embedding_shards.read_uids(shard)
            member = np.ones(len(uid), bool)
            if self._survivors is not None:
                member = uids.find(self._survivors, uid) >= 0
            if not self._whole and not member.any():
                return _Found(uid, member, None, np.zeros(len(uid), np.uint8), [])
            entries = [manifest.file_entry(path) for path in shard_files(shard)]
            images = embedding_shards.read_images(shard, self._tag)
        except InputError as error:
            if self._options.on_bad == "stop":
                raise InputError(f"{error} (or use --on-bad skip)") from error
            return error
        (images,), bad = embedding_shards.find_bad_rows([images], normalize=self._options.normalize)
        return _Found(uid, member, images.astype(np.float16, copy=False), bad, entries)

    def _chosen(self, shard: EmbeddingShard, read: _Found | InputError) -> np.ndarray:
        """The rows of a shard to choose from, float16; the others count in the pool's moment only."""
        if isinstance(read, InputError):
            self.facts["skipped"].append({"shard": shard.name, "reason": str(read)})
            return np.empty((0, self._dim), np.float16)
        if read.images is None:
            return np.empty((0, self._dim), np.float16)
        self._dim = self._dim or read.images.shape[1]
        if read.images.shape[1] != self._dim:
            raise InputError(
                f"{shard.images}: embeddings of dimension {read.images.shape[1]}, but the pool's first have"
                f" {self._dim}; embed all with one model"
            )
        self.inputs += read.entries
        considered = np.ones(len(read.uid), bool) if self._whole else read.member
        self._count_bad(shard, np.where(considered, read.bad, 0))
        good = considered & (read.bad == 0)
        self._pool_rows += int(good.sum())
        self._add("pool", read.images, good)
        if self._survivors is not None and self._whole:  # else the two are one
            self._add("survivors", read.images, good & read.member)
        self._uid.append(read.uid[good & read.member])
        return read.images[good & read.member]

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
        masked, share = self._masked.total(), self._options.max_bad_rows
        if masked > share * len(self._pool):
            first = "shard {shard}, row {row}, {reason}".format(**listed[0])
            raise InputError(
                f"{self._pool.folder}: at least {masked} of {len(self._pool)} image embeddings are no unit vectors,"
                f" more than --max-bad-rows {share:g} allows (e.g. {first});"
                " embed them again, or use --normalize or a larger --max-bad-rows"
            )


def open_rows(output: Output, pool_rows: int) -> Rows:
    """The rows that were written, mapped from their file; `pool_rows` are behind the first moment."""
    with np.load(output.folder.at(_MOMENTS).inner, allow_pickle=False) as file:
        moments: dict[str, np.ndarray] = dict(file)
    uid = np.load(output.folder.at(_UIDS).inner, mmap_mode="r", allow_pickle=False)
    emb = np.asarray(np.load(output.folder.at(_EMBEDDINGS).inner, mmap_mode="r", allow_pickle=False))
    own = moments["survivors" if "survivors" in moments else "pool"]
    return Rows(emb, uid, moments["pool"] / pool_rows, own)


def _header(rows: int, dim: int) -> bytes:
    """The head of a .npy of float16; NumPy leaves room in it for the number of rows to grow."""
    head = io.BytesIO()
    shape = {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(head, shape)
    return head.getvalue()


def count_members(pool: EmbeddingPool, survivors: np.ndarray, path: str, *, skip: bool) -> tuple[int, int]:
    """How many of the pool's rows are survivors, and how many survivors the pool lacks; reads uids only.

    Raises:
      InputError: the pool lacks some, and no shard was skipped that might have them.
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


def shard_files(shard: EmbeddingShard) -> list[str]:
    """The files that are read of a shard."""
    return sorted({shard.metadata, shard.images})
