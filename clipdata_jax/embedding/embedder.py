"""Embeds the samples of sources unit by unit, without collectives: reading, decoding, devices and writing overlap.

In memory are, besides the models, about four samples per decoding thread, three batches of pixels, and the float16
embeddings of two units; two tars are in TMPDIR if they come from an object store.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from clipdata_jax.config import Reading
from clipdata_jax.embedding import single_file
from clipdata_jax.embedding.inputs import FetchedUnit, prefetch
from clipdata_jax.embedding.samples import Bad, Decoded, decoded_samples
from clipdata_jax.embedding.shard_builder import PendingImages, ShardBuilder, TextBatch
from clipdata_jax.errors import InputError, OnBad, StoppedEarly
from clipdata_jax.formats import pool_names
from clipdata_jax.formats.sources import discovery
from clipdata_jax.formats.sources.image_folders import ImageFolder
from clipdata_jax.formats.sources.source import Source, TarSource, first_samples
from clipdata_jax.runs import manifest, profiling, telemetry
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import Facts, FileEntry, Manifest, Receipt
from clipdata_jax.runtime import console, parallel

# Batches that wait for the devices while one is being computed: more would only pile up in memory.
_AHEAD = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """What decides embeddings besides images, captions and models.

    Attributes:
      images_only: whether captions are left out.
      reading: where sources have images, captions and ids.
      batch_size: images per device and step.
      dtype: of the computation.
      decoders: threads that decode images; 0 means one per core.
      on_bad: what to do with broken tars, images and captions.
      limit: samples to embed, the first ones of all sources; None means all.
    """

    images_only: bool = False
    reading: Reading = Reading()
    batch_size: int = 256
    dtype: Literal["float32", "bfloat16"] = "float32"
    decoders: int = 0
    on_bad: OnBad = "stop"
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class EmbedResult:
    """A finished run.

    Attributes:
      manifest: its content.
      was_complete: whether an earlier run had done all of it.
    """

    manifest: Manifest
    was_complete: bool


def embed(
    patterns: Sequence[str],
    checkpoints: Mapping[str, str],
    out: str,
    settings: EmbedSettings,
    *,
    share: parallel.Share = parallel.ALONE,
    stop_after: int | None = None,
    profile: str | None = None,
) -> EmbedResult | None:
    """Embeds images and captions with one or more models.

    Args:
      patterns: where the samples are; see `discovery.find_sources`.
      checkpoints: tag -> folder of a CLIP or SigLIP checkpoint.
      out: folder of the metadata shards, or a single .npz or .npy file for images without captions.
      settings: how to embed.
      share: the units that this process embeds.
      stop_after: units to do before it stops; None means all.
      profile: local folder for a trace of a few batches.

    Returns:
      The result, or None if another process completes or reports the run.

    Raises:
      InputError: bad input; finished units are kept, and the same call continues from there.
      StoppedEarly: units are left after `stop_after` of them.
    """
    found = discovery.find_sources(patterns, images_only=settings.images_only, reading=settings.reading)
    if settings.limit is not None:
        found = dataclasses.replace(found, units=first_samples(found.units, settings.limit))
    models = [_Model(tag, checkpoint, settings) for tag, checkpoint in checkpoints.items()]
    plan = manifest.describe(
        "embed",
        settings,
        pool=[path for source in found.units.values() for path in source.inputs],
        devices=True,
        sources=[{**facts, "name": FileEntry(str(facts["name"]))} for facts in found.facts],
        models={model.tag: model.facts for model in models},
    )
    single = single_file.is_file(out)
    if single and (before := single_file.finished(out, plan)):
        single_file.tidy(out)
        return EmbedResult(before, was_complete=True)
    folder = single_file.parts_folder(out) if single else out
    output = open_output(folder, plan=plan, units=list(found.units), share=share)
    todo = output.remaining(share)
    now = todo[:stop_after]
    if now:
        units = {name: found.units[name] for name in now}
        done = len(output.units[share.index :: share.count]) - len(todo)
        _Embedding(models, settings, output, found.names, share, profile).run(units, done)
    if len(now) < len(todo):
        raise StoppedEarly(len(now), len(todo))
    finish = functools.partial(single_file.finish, out, output, plan) if single else output.finish
    result = finish(functools.partial(_summarise, found), share)
    return None if result is None else EmbedResult(result, was_complete=output.was_finished and not todo)


class _Model:
    """A model of the run; its encoder, transform and tokenizer are made on first use."""

    def __init__(self, tag: str, checkpoint: str, settings: EmbedSettings) -> None:
        from clipdata_jax import models

        self.tag, self._checkpoint, self._batch_size = tag, checkpoint, settings.batch_size
        self._model = models.load_clip(checkpoint, dtype=settings.dtype, sharding=parallel.replicated())
        temperature = self._model.temperature
        self.facts = {
            "name": os.path.basename(os.path.normpath(checkpoint)),
            "digest": models.checkpoint_digest(checkpoint),
            **({} if temperature is None else {"temperature": float(np.asarray(temperature))}),
            "dim": self._model.config.embed_dim,
        }

    @functools.cached_property
    def transform(self) -> Any:
        """Turns an image into this model's pixels."""
        from clipdata_jax import models

        return models.load_image_transform(self._checkpoint)

    @functools.cached_property
    def encoder(self) -> Any:
        """Runs the towers on all devices of this process."""
        from clipdata_jax.embedding.encoder import Encoder

        return Encoder(self._model, self._batch_size, parallel.local_mesh())

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Turns captions into token ids."""
        from clipdata_jax import models

        return models.load_tokenizer(self._checkpoint)


@dataclasses.dataclass
class _Sent:
    """How much of a unit has been sent to the devices.

    Attributes:
      shard: what is made of it.
      rows: images or captions in a batch.
      pending: images that wait to be sent.
      may_repeat: whether later captions may have an image that was sent before.
      images: number of images sent.
      texts: number of captions sent.
    """

    shard: ShardBuilder
    rows: int
    pending: PendingImages
    may_repeat: bool
    images: int = 0
    texts: int = 0


class _Embedding:
    """The stages of the work, each in its own threads, connected by short queues.

    The main thread reads and collects batches, threads decode, one tokenizes, one drives the devices, one writes.
    """

    def __init__(
        self,
        models: Sequence[_Model],
        settings: EmbedSettings,
        output: Output,
        names: Mapping[str, str],
        share: parallel.Share,
        profile: str | None,
    ) -> None:
        self._models, self._settings, self._output = models, settings, output
        self._names, self._watch = names, telemetry.Stopwatch(share.index)
        self._profiler = profiling.Profiler(profile, steps=3)
        self._device_free = time.monotonic()
        self._transforms = list(dict.fromkeys(model.transform for model in models))
        for model in () if settings.images_only else models:
            _ = model.tokenizer  # a missing one is an error before anything is decoded
        self._words = ThreadPoolExecutor(1, thread_name_prefix="words")
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: collections.deque[Future[list[np.ndarray]]] = collections.deque()
        self._writing: collections.deque[Future[None]] = collections.deque()

    def run(self, units: dict[str, Source], before: int) -> None:
        """Embeds units in order, where so many of this process were done `before`; what is finished is kept."""
        self._bar = console.bar(total=None, unit=" images", name="embed")
        ahead = prefetch(units)
        with self._profiler, self._words, self._device, self._writer, self._bar, contextlib.closing(ahead):
            try:
                for number, unit in enumerate(ahead, before + 1):
                    self._bar.set_postfix_str(f"{unit.name}, {number} of {before + len(units)}", refresh=False)
                    shard = self._fill(unit)
                    self._writing.append(self._writer.submit(self._write, unit, shard))
                    if len(self._writing) > 1:
                        self._writing.popleft().result()
                for done in self._writing:
                    done.result()
            except KeyboardInterrupt:
                # Only one batch is waited for; what is embedded already is still written.
                self._device.shutdown(wait=False, cancel_futures=True)
                raise

    def _fill(self, unit: FetchedUnit) -> ShardBuilder:
        """Sends a unit's samples to the devices."""
        tags = [model.tag for model in self._models]
        shard = ShardBuilder(self._names[unit.source.path], tags, with_texts=not self._settings.images_only)
        rows = self._models[0].encoder.rows
        sent = _Sent(shard, rows, PendingImages(rows), may_repeat=not isinstance(unit.source, (TarSource, ImageFolder)))
        start = time.monotonic()
        for sample in self._usable(unit, shard):
            shard.add(sample)
            if sample.pixels:
                sent.pending.add(sample.pixels)
            if len(sent.pending) == sent.rows:
                shard.read += time.monotonic() - start
                self._send(sent, last=False)
                start = time.monotonic()
        shard.read += time.monotonic() - start
        if not shard.skipped:
            self._send(sent, last=True)
        return shard

    def _send(self, sent: _Sent, *, last: bool) -> None:
        """Sends images that wait to the devices, and captions whose images were sent, in whole batches unless last."""
        while len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()
        if self._writing and self._writing[0].done():
            self._writing.popleft().result()  # a full disk is an error now, not at the end of the unit
        if len(sent.pending):
            embedded = self._device.submit(self._embed_images, sent.shard, sent.pending)
            self._waiting.append(embedded)
            sent.shard.add_images(embedded)
            sent.images += len(sent.pending)
            sent.pending = PendingImages(sent.rows)
        while not self._settings.images_only and sent.texts < len(sent.shard):
            stop = min(sent.texts + sent.rows, len(sent.shard))
            if not last and (stop < sent.texts + sent.rows or sent.shard.needs(sent.texts, stop) > sent.images):
                break
            ids = self._words.submit(self._tokenize, sent.shard.captions(sent.texts, stop))
            sent.shard.add_texts(self._device.submit(self._embed_texts, sent, sent.texts, stop, ids))
            sent.texts = stop

    def _usable(self, unit: FetchedUnit, shard: ShardBuilder) -> Iterator[Decoded]:
        """The good samples of a unit; if it is broken and may be skipped, they end there and the shard records why.

        Errors of the code that uses the samples are not caught here.
        """
        try:
            if unit.error is not None:
                raise unit.error
            yield from self._good(unit.source, shard)
            if not len(shard) and not shard.has_bad:
                shard.skipped = f"{unit.source.path}: holds no samples"  # nothing is lost by going on
            elif not len(shard):
                what = "an image" if self._settings.images_only else "an image and a caption"
                raise InputError(f"{unit.source.path}: holds no sample with {what}")
        except InputError as error:
            if self._settings.on_bad == "stop":
                raise
            shard.skipped = str(error)

    def _good(self, source: Source, shard: ShardBuilder) -> Iterator[Decoded]:
        """The good samples; the shard records the others."""
        for sample in decoded_samples(
            source.samples(),
            self._transforms,
            path=source.path,
            on_bad=self._settings.on_bad,
            decoders=self._settings.decoders,
            need_caption=not self._settings.images_only,
            name=self._names[source.path],
            once=True,
        ):
            if isinstance(sample, Bad):
                shard.leave_out(sample)
            else:
                yield sample

    def _tokenize(self, captions: list[str]) -> list[np.ndarray]:
        """The token ids for each model."""
        return [model.tokenizer(captions) for model in self._models]

    def _embed_images(self, shard: ShardBuilder, batch: PendingImages) -> list[np.ndarray]:
        with self._computing(shard):
            self._profiler.step()
            found = [
                model.encoder.images(batch.pixels(self._transforms.index(model.transform))) for model in self._models
            ]
        if self._settings.images_only:
            self._bar.update(len(batch))
            return [images.astype(np.float16) for images in found]
        return found

    def _embed_texts(self, sent: _Sent, start: int, stop: int, ids: Future[list[np.ndarray]]) -> list[TextBatch]:
        tokens_of_models, found = ids.result(), []
        with self._computing(sent.shard):
            for number, (model, tokens) in enumerate(zip(self._models, tokens_of_models, strict=True)):
                texts = model.encoder.texts(tokens)
                images = sent.shard.images(number, start, stop, sent.rows)
                found.append(TextBatch(texts.astype(np.float16), np.einsum("nd,nd->n", images, texts)))
        if not sent.may_repeat:
            sent.shard.round_images((stop - 1) // sent.rows)
        self._bar.update(stop - start)
        return found

    @contextlib.contextmanager
    def _computing(self, shard: ShardBuilder) -> Iterator[None]:
        """Adds the seconds of a block of the device thread to a shard's times."""
        start = time.monotonic()
        shard.waited += start - self._device_free
        yield
        self._device_free = time.monotonic()
        shard.computed += self._device_free - start

    def _write(self, unit: FetchedUnit, shard: ShardBuilder) -> None:
        parts: dict[str, Any] = {}
        shard.wait()
        if not shard.skipped:
            parts = {f"{unit.name}.parquet": shard.parquet(), f"{unit.name}.npz": shard.npz}
        hidden = dict(unit.source.passed_over) if isinstance(unit.source, TarSource) else {}
        done = {**shard.facts(), "passed_over": hidden, "inputs": unit.facts()}
        times = self._watch.lap(len(shard), read=shard.read, wait=shard.waited, compute=shard.computed)
        self._output.complete(unit.name, parts, done, inputs=unit.entries, times=times)


def _summarise(found: discovery.Sources, receipts: list[Receipt]) -> Facts:
    """Sums up the receipts of all units, the files that were passed over and the names that repeat.

    Raises:
      InputError: everything was skipped.
    """
    facts = [receipt.facts for receipt in receipts]
    samples, tars, pool = (
        [entry for fact in facts for entry in fact[name]] for name in ("skipped_samples", "skipped_tars", "inputs")
    )
    pairs = sum(fact["pairs"] for fact in facts)
    if not pairs:
        first = [*tars, *console.skipped_samples(samples)][0]
        raise InputError(f"nothing could be embedded: all inputs are bad and were skipped; the first: {first}")
    return {
        "pairs": pairs,
        "several_captions": sum(fact.get("several_captions", 0) for fact in facts),
        "several_lines": sum(fact.get("several_lines", 0) for fact in facts),
        "skipped_samples": samples,
        "skipped_tars": tars,
        "passed_over": dict(sum((Counter(fact.get("passed_over", {})) for fact in facts), found.passed_over)),
        "repeated_uids": sum(fact["repeated_uids"] for fact in facts),
        "pool": pool,
        **({"own_ids": own} if (own := sum(fact.get("own_ids", 0) for fact in facts)) else {}),
        **({"repeated_names": repeated} if (repeated := pool_names.repeats(found.names)) else {}),
    }
