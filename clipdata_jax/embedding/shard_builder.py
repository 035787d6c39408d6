"""Builds the metadata shard of a unit: rows in the order of its samples, and the samples left out."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Float32, UInt8

from clipdata_jax.embedding.samples import Bad, Decoded
from clipdata_jax.formats import arrays, ids, uids

# uid, key, caption, width, height, url, id
_Row: TypeAlias = tuple[str, str, str, int, int, str | None, str | None]


@dataclasses.dataclass(frozen=True)
class Batch:
    """One model's embeddings of a batch; texts and cosines are None if only images are embedded."""

    images: Float16[np.ndarray, "b d"]
    texts: Float16[np.ndarray, "b d"] | None
    cosines: Float32[np.ndarray, " b"] | None


class PendingBatch:
    """Samples to be embedded together: their pixels in one array, the rest as rows of the metadata.

    Args:
      rows: largest number of samples.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._pixels: list[UInt8[np.ndarray, "rows height width 3"]] = []
        self.samples: list[_Row] = []

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, sample: Decoded) -> None:
        """Copies a sample into the batch."""
        if not self._pixels:
            self._pixels = [np.empty((self._rows, *one.shape), one.dtype) for one in sample.pixels]
        for array, one in zip(self._pixels, sample.pixels, strict=True):
            array[len(self)] = one
        self.samples.append(
            (sample.uid, sample.key, sample.caption, sample.width, sample.height, sample.url, sample.id)
        )

    def pixels(self, transform: int) -> UInt8[np.ndarray, "n height width 3"]:
        """The images as one transform returned them."""
        return self._pixels[transform][: len(self)]

    def captions(self) -> list[str]:
        """The captions, in order."""
        return [row[2] for row in self.samples]


class ShardBuilder:
    """A metadata shard under construction; holds float16 embeddings and captions, no images.

    Args:
      source: the name of the samples' tar or other source in the pool.
      tags: of the models, in the order of each batch's results.
      with_texts: whether captions are embedded.
    """

    def __init__(self, source: str, tags: Sequence[str], *, with_texts: bool) -> None:
        self._source, self._tags, self._with_texts = source, tags, with_texts
        self._samples: list[_Row] = []
        self._batches: list[Future[list[Batch]]] = []
        self._bad: list[Bad] = []
        self.skipped = ""
        """Why the whole source is left out; "" if it isn't."""
        self.read = self.waited = self.computed = 0.0
        """Seconds of reading and decoding, of the devices waiting for batches, and of computing them."""

    def __len__(self) -> int:
        return 0 if self.skipped else len(self._samples)

    @property
    def has_bad(self) -> bool:
        """Whether a sample was left out."""
        return bool(self._bad)

    def add(self, batch: PendingBatch, embedded: Future[list[Batch]]) -> None:
        """Adds the next samples, whose embeddings may still be computed."""
        self._samples += batch.samples
        self._batches.append(embedded)

    def leave_out(self, bad: Bad) -> None:
        """Records a sample that can't be used."""
        self._bad.append(bad)

    def wait(self) -> None:
        """Waits for all embeddings; raises what their computation raised."""
        for batch in self._batches:
            batch.result()

    def _column(self, model: int, name: str) -> list[np.ndarray]:
        return [getattr(batch.result()[model], name) for batch in self._batches]

    def parquet(self) -> bytes:
        """The metadata: DataComp's columns, tar and key, by which `report` finds the images, and ids of other kinds."""
        uid, key, caption, width, height, url, own = zip(*self._samples, strict=True)
        table = {
            "uid": pa.array(uid, pa.string()),
            "text": pa.array(caption if self._with_texts else [None] * len(uid), pa.string()),
            "url": pa.array([None if one is None else _as_text(one) for one in url], pa.string()),
            "original_width": pa.array(width, pa.int64()),
            "original_height": pa.array(height, pa.int64()),
            "tar": pa.array([_as_text(self._source)] * len(uid), pa.string()),
            "key": pa.array(map(_as_text, key), pa.string()),
        }
        if any(own):
            table["id"] = pa.array(own, pa.string())
        if self._with_texts:
            for model, tag in enumerate(self._tags):
                cosines = np.concatenate(self._column(model, "cosines"))
                table[f"clip_{tag}_similarity_score"] = pa.array(cosines, pa.float32())
        buffer = io.BytesIO()
        pq.write_table(pa.table(table), buffer, compression="zstd", write_page_checksum=True)
        return buffer.getvalue()

    def npz(self, file: BinaryIO) -> None:
        """Writes the embeddings, float16; row i of each array belongs to row i of the metadata."""
        sides = {"img": "images", **({"txt": "texts"} if self._with_texts else {})}
        written = {}
        for model, tag in enumerate(self._tags):
            for side, name in sides.items():
                pieces = self._column(model, name)
                written[f"{tag}_{side}"] = arrays.RowChunks((len(self), pieces[0].shape[1]), pieces)
        arrays.write_npz(file, written)

    def facts(self) -> dict[str, Any]:
        """The unit's entry in its receipt."""
        uid = uids.from_hex([sample[0] for sample in self._samples])
        ids.check_collisions(uid, [(sample[-1] or sample[0]).encode() for sample in self._samples], self._source)
        bad_samples = [] if self.skipped else self._bad  # a skipped source has no samples
        return {
            "pairs": len(self),
            "skipped_samples": [{"tar": bad.tar, "key": bad.key, "reason": bad.reason} for bad in bad_samples],
            "skipped_tars": [self.skipped] if self.skipped else [],
            "repeated_uids": len(uid) - len(uids.sort_unique(uid)),
            **({"own_ids": found} if (found := sum(sample[-1] is not None for sample in self._samples)) else {}),
        }


def _as_text(name: str) -> str:
    """Escapes the surrogates that stand for bytes of a name that isn't UTF-8, so that it can be stored."""
    return name.encode(errors="backslashreplace").decode()
