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
class TextBatch:
    """One model's embeddings of some captions, and their cosines with their images."""

    texts: Float16[np.ndarray, "b d"]
    cosines: Float32[np.ndarray, " b"]


class PendingImages:
    """Images to be embedded together: their pixels in one array.

    Args:
      rows: largest number of images.
    """

    def __init__(self, rows: int) -> None:
        self._rows, self._count = rows, 0
        self._pixels: list[UInt8[np.ndarray, "rows height width 3"]] = []

    def __len__(self) -> int:
        return self._count

    def add(self, pixels: Sequence[np.ndarray]) -> None:
        """Copies an image into the batch, as each transform returned it."""
        if not self._pixels:
            self._pixels = [np.empty((self._rows, *one.shape), one.dtype) for one in pixels]
        for array, one in zip(self._pixels, pixels, strict=True):
            array[self._count] = one
        self._count += 1

    def pixels(self, transform: int) -> UInt8[np.ndarray, "n height width 3"]:
        """The images as one transform returned them."""
        return self._pixels[transform][: self._count]


class ShardBuilder:
    """A metadata shard under construction; holds embeddings and captions, no images.

    Several rows may have one image, which is embedded once.

    Args:
      source: the name of the samples' tar or other source in the pool.
      tags: of the models, in the order of each batch's results.
      with_texts: whether captions are embedded.
    """

    def __init__(self, source: str, tags: Sequence[str], *, with_texts: bool) -> None:
        self._source, self._tags, self._with_texts = source, tags, with_texts
        self._samples: list[_Row] = []
        self._images: list[Future[list[np.ndarray]]] = []
        self._texts: list[Future[list[TextBatch]]] = []
        self._numbers: dict[str, int] = {}  # of an image by its sample's key
        self._sizes: list[tuple[int, int]] = []
        self._image_of: list[int] = []
        self._several = 0
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

    def add(self, sample: Decoded) -> None:
        """Adds the next row; one without pixels has the image of an earlier one."""
        if sample.pixels:
            self._numbers[sample.image] = len(self._sizes)
            self._sizes.append((sample.width, sample.height))
        number = self._numbers[sample.image]
        size = self._sizes[number]
        self._several += len(sample.captions) > 1
        self._image_of.append(number)
        self._samples.append((sample.uid, sample.key, sample.caption, *size, sample.url, sample.id))

    def add_images(self, embedded: Future[list[np.ndarray]]) -> None:
        """Adds the next images' embeddings, float32 or float16 of each model, which may still be computed."""
        self._images.append(embedded)

    def add_texts(self, embedded: Future[list[TextBatch]]) -> None:
        """Adds the next captions' embeddings of each model, which may still be computed."""
        self._texts.append(embedded)

    def captions(self, start: int, stop: int) -> list[str]:
        """The captions of some rows."""
        return [row[2] for row in self._samples[start:stop]]

    def needs(self, start: int, stop: int) -> int:
        """The number of images that must have been added before the captions of some rows can be."""
        return max(self._image_of[start:stop]) + 1

    def images(self, model: int, start: int, stop: int, rows: int) -> np.ndarray:
        """The embeddings of some rows' images, from batches of so many."""
        numbers = self._image_of[start:stop]
        return np.stack([self._images[number // rows].result()[model][number % rows] for number in numbers])

    def leave_out(self, bad: Bad) -> None:
        """Records a sample that can't be used."""
        self._bad.append(bad)

    def wait(self) -> None:
        """Waits for all embeddings; raises what their computation raised."""
        for images in self._images:
            images.result()
        for texts in self._texts:
            texts.result()

    def round_images(self, batch: int) -> None:
        """Rounds a batch of images to float16, once no cosine needs them more exactly."""
        found = self._images[batch].result()
        found[:] = [images.astype(np.float16) for images in found]

    def _column(self, model: int, name: str) -> list[np.ndarray]:
        if name != "images":
            return [getattr(batch.result()[model], name) for batch in self._texts]
        pieces = [batch.result()[model].astype(np.float16, copy=False) for batch in self._images]
        return pieces if len(self._sizes) == len(self._samples) else [np.concatenate(pieces)[self._image_of]]

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
            "several_captions": 0 if self.skipped else self._several,
            "several_lines": sum("\n" in row[2] for row in self._samples[: len(self)]),
            "skipped_samples": [{"tar": bad.tar, "key": bad.key, "reason": bad.reason} for bad in bad_samples],
            "skipped_tars": [self.skipped] if self.skipped else [],
            "repeated_uids": len(uid) - len(uids.sort_unique(uid)),
            **({"own_ids": found} if (found := sum(sample[-1] is not None for sample in self._samples)) else {}),
        }


def _as_text(name: str) -> str:
    """Escapes the surrogates that stand for bytes of a name that isn't UTF-8, so that it can be stored."""
    return name.encode(errors="backslashreplace").decode()
