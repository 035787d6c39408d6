"""`clipdata embed`: images and captions in, metadata shards out, a unit at a time, no collective.

Reading, decoding, the devices and writing overlap, across units too. In memory are, beside the models, some four
samples per decoding thread, three batches of pixels, and the float16 embeddings of two units; in TMPDIR are two tars,
where they are an object store's.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from clipdata_jax.config import Embed
from clipdata_jax.embedding import single_file
from clipdata_jax.embedding.inputs import Unit, prefetch
from clipdata_jax.embedding.samples import Bad, decoded_samples
from clipdata_jax.embedding.shard_builder import Batch, PendingBatch, Shard, Tally
from clipdata_jax.errors import InputError
from clipdata_jax.formats import sources, tars
from clipdata_jax.runs import manifest, profiling, telemetry
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import Facts, Manifest, Receipt
from clipdata_jax.runtime import console, parallel

# Batches that wait for the devices while one is there: more would only pile up in memory.
_AHEAD = 1


def run(options: Embed) -> Manifest | None:
    """Embeds what the sources hold; returns the manifest, or None where another process tells of the run.

    Raises:
      InputError: bad input; what was finished is kept, and the same command goes on from there.
    """
    share = parallel.start(options.workers)
    found = sources.find_sources(
        options.sources,
        images_only=options.images_only,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )
    models = [_Model(tag, folder, options) for tag, folder in options.models().items()]
    plan = manifest.describe(
        "embed",
        options,
        pool=[path for source in found.units.values() for path in source.inputs],
        devices=True,
        sources=found.facts,
        models={model.tag: model.facts for model in models},
    )
    single = single_file.is_file(options.out)
    if single and (before := single_file.finished(options.out, plan)):
        single_file.tidy(options.out)
        print(f"Already complete: {options.out}")
        return before
    folder = single_file.parts_folder(options.out) if single else options.out
    output = open_output(folder, plan=plan, units=list(found.units))
    todo = output.remaining(share)
    if todo:
        watch = telemetry.Stopwatch(share.index)
        _Embedding(options, models, output, found.shared_names(), watch).run(
            {name: found.units[name] for name in todo}
        )
    finish = functools.partial(single_file.finish, options.out, output, plan) if single else output.finish
    result = finish(summarise, share)
    if result is not None:
        if output.was_finished and not todo:
            print(f"Already complete: {options.out}")
        else:
            tell(result.facts, options)
    return result


class _Model:
    """One of the run's models; what runs it is made when there is something to run."""

    def __init__(self, tag: str, checkpoint: str, options: Embed) -> None:
        from clipdata_jax import models

        self.tag, self._checkpoint, self._options = tag, checkpoint, options
        self._model = models.load_clip(checkpoint, dtype=options.dtype, sharding=parallel.replicated())
        self.facts = {
            "name": os.path.basename(os.path.normpath(checkpoint)),
            "digest": models.checkpoint_digest(checkpoint),
            "temperature": float(np.asarray(self._model.temperature)),
            "dim": self._model.config.embed_dim,
        }

    @functools.cached_property
    def transform(self) -> Any:
        """From an image to this model's pixels."""
        from clipdata_jax import models

        return models.load_image_transform(self._checkpoint)

    @functools.cached_property
    def encoder(self) -> Any:
        """The towers on all devices of this process."""
        from clipdata_jax.embedding.encoder import Encoder

        return Encoder(self._model, self._options.batch_size, parallel.local_mesh())

    @functools.cached_property
    def tokenizer(self) -> Any:
        """From captions to ids."""
        from clipdata_jax import models

        return models.load_tokenizer(self._checkpoint)

    def embed(self, pixels: np.ndarray, ids: np.ndarray | None) -> Batch:
        """Embeds a batch; without captions' ids images alone."""
        images = self.encoder.images(pixels)
        if ids is None:
            return Batch(images.astype(np.float16), None, None)
        texts = self.encoder.texts(ids)
        cosines = np.einsum("nd,nd->n", images, texts)
        return Batch(images.astype(np.float16), texts.astype(np.float16), cosines)


class _Embedding:
    """The stages of the work, each in threads of its own, joined by short queues.

    The main thread reads and collects batches, threads decode, one tokenizes, one drives the devices, one writes.
    """

    def __init__(
        self,
        options: Embed,
        models: Sequence[_Model],
        output: Output,
        shared_names: Collection[str],
        watch: telemetry.Stopwatch,
    ) -> None:
        self._options, self._models, self._output = options, models, output
        self._shared_names, self._watch = shared_names, watch
        self._profiler = profiling.Profiler(options.profile, steps=3)
        self._device_free = time.monotonic()
        self._transforms = list(dict.fromkeys(model.transform for model in models))
        for model in () if options.images_only else models:
            _ = model.tokenizer  # one that is missing is told before anything is decoded
        self._words = ThreadPoolExecutor(1, thread_name_prefix="words")
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: collections.deque[Future[list[Batch]]] = collections.deque()
        self._writing: collections.deque[Future[None]] = collections.deque()

    def run(self, units: dict[str, sources.Source]) -> None:
        """Embeds units in order; what was finished before an error stays."""
        noun = "tar" if all(isinstance(source, sources.TarSource) for source in units.values()) else "part"
        bar = console.bar(total=len(units), unit=noun, name="embed")
        ahead = prefetch(units)
        with self._profiler, self._words, self._device, self._writer, bar, contextlib.closing(ahead):
            self._tally = Tally(bar)
            try:
                for unit in ahead:
                    shard = self._fill(unit)
                    self._writing.append(self._writer.submit(self._write, unit, shard))
                    if len(self._writing) > 1:
                        self._writing.popleft().result()
                for done in self._writing:
                    done.result()
                bar.n = round(bar.n, 6)  # of shares that round
            except KeyboardInterrupt:
                # Whoever stops it waits for one batch; what is embedded already is still written.
                self._device.shutdown(wait=False, cancel_futures=True)
                raise

    def _fill(self, unit: Unit) -> Shard:
        """Sends a unit's samples to the devices."""
        tags = [model.tag for model in self._models]
        shard = Shard(unit.source, tags, with_texts=not self._options.images_only)
        start = time.monotonic()
        for gathered in self._usable(unit, shard):
            shard.read += time.monotonic() - start
            while len(self._waiting) > _AHEAD:
                self._waiting.popleft().result()
            if self._writing and self._writing[0].done():
                self._writing.popleft().result()  # a full disk is told of now, not at the unit's end
            ids = self._words.submit(self._tokenize, gathered)
            embedded = self._device.submit(self._embed, shard, gathered, ids)
            self._waiting.append(embedded)
            shard.add(gathered, embedded)
            start = time.monotonic()
        shard.read += time.monotonic() - start
        return shard

    def _usable(self, unit: Unit, shard: Shard) -> Iterator[PendingBatch]:
        """The batches of a unit; if it turns out bad, and may be skipped, they end there and the shard says why.

        What goes wrong where they are used is not caught here: it is no fault of the source.
        """
        try:
            if unit.error is not None:
                raise unit.error
            yield from self._gathered(unit.source, shard)
            if not len(shard):
                what = "an image" if self._options.images_only else "an image and a caption"
                raise InputError(f"{unit.source.path}: holds no sample with {what}")
        except InputError as error:
            if self._options.on_bad == "stop":
                raise
            shard.skipped = str(error)

    def _gathered(self, source: sources.Source, shard: Shard) -> Iterator[PendingBatch]:
        """The good samples in batches; the shard takes note of the others."""
        shares: collections.deque[float] = collections.deque()

        def noted() -> Iterator[tars.RawSample]:
            for sample in source.samples():
                shares.append(source.share(sample))
                yield sample

        samples = decoded_samples(
            noted(),
            self._transforms,
            path=source.path,
            on_bad=self._options.on_bad,
            decoders=self._options.decoders,
            need_caption=not self._options.images_only,
            shared_names=self._shared_names,
        )
        rows = self._models[0].encoder.rows
        gathered = PendingBatch(rows)
        for sample in samples:
            gathered.share += shares.popleft()
            if isinstance(sample, Bad):
                shard.leave_out(sample)
                continue
            gathered.add(sample)
            if len(gathered) == rows:
                yield gathered
                gathered = PendingBatch(rows)
        if len(gathered):
            yield gathered

    def _tokenize(self, gathered: PendingBatch) -> list[np.ndarray | None]:
        """Each model's ids of the captions, None where only images are embedded."""
        if self._options.images_only:
            return [None] * len(self._models)
        return [model.tokenizer(gathered.captions()) for model in self._models]

    def _embed(
        self, shard: Shard, gathered: PendingBatch, ids: Future[list[np.ndarray | None]]
    ) -> list[Batch]:
        tokens_of_models = ids.result()
        start = time.monotonic()
        self._profiler.step()
        found = [
            model.embed(gathered.pixels(self._transforms.index(model.transform)), tokens)
            for model, tokens in zip(self._models, tokens_of_models, strict=True)
        ]
        shard.waited += start - self._device_free
        self._device_free = time.monotonic()
        shard.computed += self._device_free - start
        self._tally.add(shard, len(gathered), gathered.share)
        return found

    def _write(self, unit: Unit, shard: Shard) -> None:
        parts: dict[str, Any] = {}
        shard.wait()
        if not shard.skipped:
            parts = {f"{unit.name}.parquet": shard.parquet(), f"{unit.name}.npz": shard.npz}
        done = {**shard.facts(), "inputs": unit.facts()}
        times = self._watch.lap(len(shard), read=shard.read, wait=shard.waited, compute=shard.computed)
        self._output.complete(unit.name, parts, done, inputs=unit.entries, times=times)
        self._tally.add(shard, 0, 1.0)


def summarise(receipts: list[Receipt]) -> Facts:
    """The run's own facts, from its units' receipts.

    Raises:
      InputError: everything was skipped, so that there is nothing to go on with.
    """
    facts = [receipt.facts for receipt in receipts]
    samples, tars, pool = (
        [entry for fact in facts for entry in fact[name]]
        for name in ("skipped_samples", "skipped_tars", "inputs")
    )
    pairs = sum(fact["pairs"] for fact in facts)
    if not pairs:
        first = [*tars, *console.skipped_samples(samples)][0]
        raise InputError(
            f"nothing could be embedded: all inputs are bad and were skipped; the first: {first}"
        )
    return {
        "pairs": pairs,
        "skipped_samples": samples,
        "skipped_tars": tars,
        "repeated_uids": sum(fact["repeated_uids"] for fact in facts),
        "pool": pool,
    }


def tell(result: Facts, options: Embed) -> None:
    """Prints what was embedded and what was left out."""
    noun = "image" if options.images_only else "pair"
    for tag, model in result["models"].items():
        print(
            f"Embedded {console.counted(result['pairs'], noun)} as {tag}, dimension {model['dim']}, temperature"
            f" {model['temperature']:.4g}: {options.out}"
        )
    if result["repeated_uids"]:
        print(f"{result['repeated_uids']:,} pairs repeat a uid of their tar")
    listed = f"{options.out}.{manifest.NAME}" if single_file.is_file(options.out) else manifest.NAME
    bad = console.skipped_samples(result["skipped_samples"])
    if line := console.skipped(listed, tar=result["skipped_tars"], sample=bad):
        print(line)
