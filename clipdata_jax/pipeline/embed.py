"""`clipdata embed`: tars in, metadata shards out, a tar at a time, no collective."""

from __future__ import annotations

import functools
import io
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax import parallel
from clipdata_jax.config import Embed
from clipdata_jax.data import tars, uids
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import manifest, progress, work
from clipdata_jax.pipeline.samples import Bad, Decoded, decoded_samples


def run(options: Embed) -> dict[str, Any] | None:
    """Embeds the pairs of tars; returns the manifest, or None while other workers' tars are missing.

    Raises:
      InputError: bad input; what was finished is kept, and the same command goes on from there.
    """
    share = parallel.start(options.workers)
    paths = tars.find_tars(options.tars, or_pictures=options.images_only)
    from clipdata_jax import models

    model = models.load_clip(options.model, dtype=options.dtype)
    facts = {
        "name": os.path.basename(os.path.normpath(options.model)),
        "digest": models.checkpoint_digest(options.model),
        "temperature": float(np.asarray(model.temperature)),
        "dim": model.config.embed_dim,
    }
    by_name = dict(zip(tars.unit_names(paths), paths, strict=True))
    plan = manifest.describe("embed", options, pool=paths, devices=True, models={options.tag: facts})
    output = work.open_output(options.out, plan=plan, units=list(by_name))
    todo = output.remaining(share)
    tools = _Tools(options, model) if todo else None
    with progress.bar(total=len(todo), unit="tar", name="embed") as bar:
        for name in todo:
            start = time.monotonic()
            shard = _embed_tar(by_name[name], options, tools, tars.shared_names(paths))
            parts: dict[str, bytes | Callable[[BinaryIO], None]] = {}
            if not shard.skipped_tar:
                parts = {f"{name}.parquet": shard.parquet(), f"{name}.npz": shard.npz}
            seconds, pairs = round(time.monotonic() - start, 3), len(shard.samples)
            done = shard.facts(by_name[name])
            output.complete(name, parts, done, inputs=done["inputs"], pairs=pairs, seconds=seconds)
            bar.update(1)
            bar.set_postfix_str(f"{pairs / max(seconds, 1e-3):,.0f} pictures/s")
    result = output.finish(_summarise)
    _print_summary(result, options)
    return result


class _Tools:
    """What turns samples into embeddings; the tokenizer is None where only pictures are embedded."""

    def __init__(self, options: Embed, model: Any) -> None:
        from clipdata_jax import models
        from clipdata_jax.pipeline.encode import Encoder

        self.encoder = Encoder(model, options.batch_size, parallel.local_mesh())
        self.tokenizer = None if options.images_only else models.load_tokenizer(options.model)
        self.transform = models.load_image_transform(options.model)


def _embed_tar(path: str, options: Embed, tools: Any, shared_names: Collection[str]) -> _Shard:
    """What becomes of a tar; if it is bad, and may be skipped, the shard says why."""
    shard = _Shard(options)
    samples = decoded_samples(
        path,
        tools.transform,
        on_bad=options.on_bad,
        decoders=options.decoders,
        need_caption=not options.images_only,
        shared_names=shared_names,
    )
    try:
        shard.fill(samples, tools.encoder, tools.tokenizer)
        if not shard.samples:
            what = "a picture" if options.images_only else "a picture and a caption"
            raise InputError(f"{path}: holds no sample with {what}")
    except InputError as error:
        if options.on_bad == "stop":
            raise
        shard.skipped_tar = str(error)
    return shard


class _Shard:
    """What becomes of one tar: rows in the order of its samples, and the samples left out."""

    def __init__(self, options: Embed) -> None:
        self.tag, self.with_texts = options.tag, not options.images_only
        self.samples: list[tuple[str, str, str, int, int]] = []  # uid, key, caption, width, height
        self.bad: list[Bad] = []
        self.skipped_tar = ""
        self.tar = ""
        self._images: list[np.ndarray] = []
        self._texts: list[np.ndarray] = []

    def fill(self, samples: Iterable[Decoded | Bad], encoder: Any, tokenizer: Any) -> None:
        """Embeds the samples in batches; the next batch is decoded while the devices work on the last."""
        waiting: Future[tuple[np.ndarray, np.ndarray]] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as worker:
            for batch in self._batches(samples, encoder.rows):
                if waiting is not None:
                    self._keep(waiting)
                waiting = worker.submit(_encode, batch, encoder, tokenizer)
            if waiting is not None:
                self._keep(waiting)

    def _keep(self, waiting: Future[tuple[np.ndarray, np.ndarray]]) -> None:
        images, texts = waiting.result()
        self._images.append(images)
        self._texts.append(texts)

    def _batches(self, samples: Iterable[Decoded | Bad], rows: int) -> Iterator[list[Decoded]]:
        batch: list[Decoded] = []
        for sample in samples:
            if isinstance(sample, Bad):
                self.bad.append(sample)
                continue
            self.tar = os.path.basename(sample.tar)
            self.samples.append((sample.uid, sample.key, sample.caption, sample.width, sample.height))
            batch.append(sample)
            if len(batch) == rows:
                yield batch
                batch = []
        if batch:
            yield batch

    def parquet(self) -> bytes:
        """The metadata: DataComp's columns, and tar and key, so that a report finds the pictures."""
        uid, key, caption, width, height = zip(*self.samples, strict=True)
        table = {
            "uid": pa.array(uid, pa.string()),
            "text": pa.array(caption if self.with_texts else [None] * len(uid), pa.string()),
            "url": pa.nulls(len(uid), pa.string()),
            "original_width": pa.array(width, pa.int64()),
            "original_height": pa.array(height, pa.int64()),
            "tar": pa.array([self.tar] * len(uid), pa.string()),
            "key": pa.array(key, pa.string()),
        }
        if self.with_texts:
            cosines = np.einsum("nd,nd->n", np.concatenate(self._images), np.concatenate(self._texts))
            table[f"clip_{self.tag}_similarity_score"] = pa.array(cosines, pa.float32())
        buffer = io.BytesIO()
        pq.write_table(pa.table(table), buffer, compression="zstd")
        return buffer.getvalue()

    def npz(self, file: BinaryIO) -> None:
        """The embeddings, float16, row i of both being row i of the metadata."""
        arrays = {"img": self._images, **({"txt": self._texts} if self.with_texts else {})}
        stacked = {
            f"{self.tag}_{side}": np.concatenate(rows).astype(np.float16) for side, rows in arrays.items()
        }
        np.savez(file, allow_pickle=False, **stacked)

    def facts(self, path: str) -> dict[str, Any]:
        """What the manifest says of the tar."""
        uid = uids.from_hex([sample[0] for sample in self.samples])
        return {
            "pairs": len(self.samples) if not self.skipped_tar else 0,
            "skipped_samples": [{"tar": bad.tar, "key": bad.key, "reason": bad.reason} for bad in self.bad],
            "skipped_tars": [self.skipped_tar] if self.skipped_tar else [],
            "repeated_uids": len(uid) - len(uids.sort_unique(uid)),
            "inputs": [manifest.file_entry(path)],
        }


def _encode(batch: list[Decoded], encoder: Any, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    images = encoder.images(np.stack([sample.pixels for sample in batch]))
    if tokenizer is None:
        return images, np.empty((len(batch), 0), np.float32)
    return images, encoder.texts(tokenizer([sample.caption for sample in batch]))


def _summarise(receipts: list[dict[str, Any]]) -> dict[str, Any]:
    facts = list(work.read_receipts(receipts))
    add = functools.partial(sum, start=[])
    return {
        "pairs": sum(fact["pairs"] for fact in facts),
        "skipped_samples": add(fact["skipped_samples"] for fact in facts),
        "skipped_tars": add(fact["skipped_tars"] for fact in facts),
        "repeated_uids": sum(fact["repeated_uids"] for fact in facts),
        "pool": add(fact["inputs"] for fact in facts),
    }


def _print_summary(result: dict[str, Any] | None, options: Embed) -> None:
    if result is None:
        print("This worker's tars are done; others are missing, whoever finishes last writes the manifest.")
        return
    model = result["models"][options.tag]
    noun = "picture" if options.images_only else "pair"
    print(
        f"Embedded {progress.counted(result['pairs'], noun)}, dimension {model['dim']}, temperature"
        f" {model['temperature']:.4g}: {options.out}"
    )
    if result["repeated_uids"]:
        print(f"{result['repeated_uids']:,} pairs repeat an uid of their tar")
    skipped = result["skipped_tars"] + [
        f"{sample['tar']}: sample {sample['key']!r}: {sample['reason']}"
        for sample in result["skipped_samples"]
    ]
    if skipped:
        print(
            f"Skipped {progress.counted(len(result['skipped_tars']), 'tar')} and"
            f" {progress.counted(len(result['skipped_samples']), 'sample')}, listed in {manifest.NAME};"
            f" the first: {skipped[0]}"
        )
