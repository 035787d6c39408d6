"""The input of training: batches of decoded pairs, in a fixed order, made ahead of time by threads or processes.

The order is a pure function of seed and step, so the state of the input is the step alone: batches from step k on are
the same whether or not the run was stopped there, for any number of workers and any depth of reading ahead.

Memory: the batches in work, `InputPipeline.ahead` of them; the stored pairs of a shuffle window, where sources are read
in blocks; of the index nothing but the pages that the system keeps. None of it grows with the pool.
"""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from clipdata_jax.config.recipes import Sampling
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.formats.hashing import mix
from clipdata_jax.runtime import parallel, threads
from clipdata_jax.runtime.worker_pool import SpawnPool
from clipdata_jax.training import block_order, order
from clipdata_jax.training.batch_workers import BatchWorker, Chunk, fill_here, map_pixels, open_shared, open_worker
from clipdata_jax.training.block_order import BlockReader
from clipdata_jax.training.decoding import DecodedRows, Encoded, PairDecoder
from clipdata_jax.training.pair_index import PairIndex, SkippedSample, broken_sentence

_CHUNK = 32  # pairs that a worker decodes at a time


class Batch(NamedTuple):
    """A batch: on the host a process's rows of it, NumPy arrays; on devices global arrays.

    Attributes:
      pixels: shape (b, size, size, 3), uint8.
      ids: tokens, shape (b, context length), int32.
      mask: shape (b,), bool; False for pairs that are broken: their pixels and tokens are zeros.
    """

    pixels: Any
    ids: Any
    mask: Any


class InputPipeline:
    """Iterates over the batches of a run, decoded ahead of time; a context that starts and ends the workers.

    Every process of a run makes one of the same arguments but `share`, and gets its own, contiguous rows of each batch.

    Args:
      indexes: of the sources, one for each weight. One whose pairs can be read at random is shuffled as a whole; of
        another sources are read one after the other, in the order of `block_order`.
      tokenizer: captions -> int32 (n, context length). With `workers` it must be picklable.
      batch_size: pairs of a batch, over all processes.
      image_size: side of the square images, in pixels.
      seed: of order and crops.
      steps: number of steps of the run.
      start: the step to begin with.
      weights: the share of the batches that comes from each index, any positive numbers: every batch has as many of
        each, rounded to whole pairs. () if there is one index.
      sampling: "epochs" draws no pair twice in an epoch; "replacement" draws each pair from all.
      shuffle_window: pairs that are mixed where sources are read in blocks; None means 2,048.
      min_crop: the smallest share of an image's area that a random crop has; 1 takes the centre.
      workers: processes that decode; 0 decodes in threads of this one.
      on_bad: "stop" raises at a broken pair, "skip" masks its row and lists it in `skipped`.
      share: this process's share of the run.

    Attributes:
      ahead: number of batches in work.
      wait_seconds: seconds for which `next` waited so far.
      skipped: broken pairs so far, each once.
      skipped_tars: tars that became unreadable so far, a sentence each.

    Raises:
      InputError: fewer pairs than a batch, or weights or a way of sampling that the sources don't allow; while
        iterating, a broken pair with "stop".
    """

    def __init__(
        self,
        indexes: Sequence[PairIndex],
        tokenizer: Callable[[Sequence[str]], np.ndarray],
        *,
        batch_size: int,
        image_size: int,
        seed: int,
        steps: int,
        start: int = 0,
        weights: Sequence[float] = (),
        sampling: Sampling = "epochs",
        shuffle_window: int | None = None,
        min_crop: float = 0.9,
        workers: int = 0,
        on_bad: OnBad = "stop",
        share: parallel.Share = parallel.ALONE,
    ) -> None:
        counts = order.share_out(weights or [1.0], batch_size)
        _check(indexes, weights, counts, batch_size, sampling)
        window = block_order.WINDOW if shuffle_window is None else shuffle_window
        local = batch_size // share.count
        source, number = (part[share.index * local :][:local] for part in order.interleave(counts))
        self._parts = [
            _Part(index, np.flatnonzero(source == i), number[source == i], counts[i], _seed(seed, i), sampling, window)
            for i, index in enumerate(indexes)
        ]
        self._indexes, self._steps, self._next, self._submitted = indexes, steps, start, start
        self._on_bad, self._workers = on_bad, workers
        self._chunk = max(1, min(_CHUNK, -(-local // (2 * (workers or threads.cores())))))
        busy = 4 * (workers or threads.cores()) * self._chunk  # pairs that keep all workers busy
        self.ahead = max(2, 1 + -(-busy // local))
        self._shape = (self.ahead, local, image_size, image_size, 3)
        self._decoder = PairDecoder(tokenizer, image_size=image_size, seed=seed, min_crop=min_crop)
        self._pending: collections.deque[list[tuple[Chunk, Future[DecodedRows]]]] = collections.deque()
        self.wait_seconds = 0.0
        self.skipped: list[SkippedSample] = []
        self.skipped_tars: list[str] = []
        self._named: set[tuple[int, int, int]] = set()

    def __enter__(self) -> InputPipeline:
        files = [index.files for index in self._indexes]
        if not self._workers:
            self._pixels = np.empty(self._shape, np.uint8)
            self._pool: SpawnPool | ThreadPoolExecutor = ThreadPoolExecutor(threads.cores(), "decode")
            self._fill = BatchWorker(files, self._decoder, self._pixels).fill
            return self
        file, path = open_shared(files[0].folder, int(np.prod(self._shape)))
        # The workers open what this process holds open.
        self._file = file
        self._pixels = map_pixels(os.dup(file), self._shape)
        self._pool = SpawnPool(self._workers, open_worker, files, self._decoder, path, self._shape)
        self._fill = fill_here
        return self

    def __exit__(self, *stopped: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._pending.clear()
        if self._workers:
            os.close(self._file)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            self._submit()
            if not self._pending:
                raise StopIteration
            batch = self._finish(self._pending.popleft())
            self._next += 1
            self._submit()
        except BrokenProcessPool as error:
            raise InputError(
                "a process that decoded images was killed, perhaps for lack of memory; run the command again with fewer"
                " --input-workers"
            ) from error
        return batch

    def _submit(self) -> None:
        """Begins as many batches as there is room for."""
        while self._submitted < min(self._steps, self._next + self.ahead):
            self._pending.append(self._begin(self._submitted))
            self._submitted += 1

    def _begin(self, step: int) -> list[tuple[Chunk, Future[DecodedRows]]]:
        slot, local = step % self.ahead, self._shape[1]
        sources, rows, epochs = (np.empty(local, np.int64) for _ in range(3))
        stored: dict[int, Encoded] = {}
        for i, part in enumerate(self._parts):
            sources[part.at] = i
            epochs[part.at] = part.epoch(step)
            rows[part.at], pairs = part.read(step)
            stored |= dict(zip(part.at.tolist(), pairs, strict=False))
        chunks = []
        for start in range(0, local, self._chunk):
            span = slice(start, min(start + self._chunk, local))
            held = {at - start: stored[at] for at in range(span.start, span.stop) if at in stored}
            chunk = Chunk(slot, start, sources[span], rows[span], epochs[span], held)
            chunks.append((chunk._replace(stored={}), self._pool.submit(self._fill, chunk)))
        return chunks

    def _finish(self, chunks: list[tuple[Chunk, Future[DecodedRows]]]) -> Batch:
        """Waits for a batch."""
        begun = time.perf_counter()
        try:
            done = [future.result() for _, future in chunks]
        finally:
            self.wait_seconds += time.perf_counter() - begun
        mask = np.ones(self._shape[1], bool)
        for (chunk, _), found in zip(chunks, done, strict=True):
            for i in found.broken:
                mask[chunk.start + i] = False
                self._note(chunk, i, found)
        pixels = self._pixels[chunks[0][0].slot].copy()  # the slot is filled again
        return Batch(pixels, np.concatenate([found.ids for found in done]), mask)

    def _note(self, chunk: Chunk, i: int, found: DecodedRows) -> None:
        """Raises, or notes, that a pair is broken."""
        number, (key, reason) = int(chunk.sources[i]), found.broken[i]
        index = self._indexes[number]
        row = index.files.rows()[chunk.rows[i]]
        where = number, int(row["source"]), -1 if i in found.lost else int(row["place"])
        if where in self._named:
            return
        self._named.add(where)
        if i in found.lost:
            if self._on_bad == "stop":
                raise InputError(reason)
            self.skipped_tars.append(reason)
            return
        sample = SkippedSample(index.files.paths[where[1]], key or index.key_of(*where[1:]), reason)
        if self._on_bad == "stop":
            raise InputError(broken_sentence(sample))
        self.skipped.append(sample)


class _Part:
    """What a process takes of an index: the places of its rows in the batch, and their numbers among the index's."""

    def __init__(
        self,
        index: PairIndex,
        at: np.ndarray,
        numbers: np.ndarray,
        count: int,
        seed: int,
        sampling: Sampling,
        window: int,
    ) -> None:
        self.at, self._numbers, self._count = at, numbers, count
        self._pairs, self._seed, self._sampling = len(index), seed, sampling
        self._blocks = None if index.random_access else BlockReader(index, batch_size=count, window=window, seed=seed)

    def epoch(self, step: int) -> int:
        return order.epoch_of(step, pairs=self._pairs, batch_size=self._count, sampling=self._sampling)

    def read(self, step: int) -> tuple[np.ndarray, list[Encoded]]:
        """The rows of a step's batch, and the pairs, of those that are not read at random."""
        if self._blocks is not None:
            return self._blocks.read(step, self._numbers)
        setting = {"seed": self._seed, "step": step, "pairs": self._pairs, "batch_size": self._count}
        return order.batch_rows(**setting, sampling=self._sampling, numbers=self._numbers), []


def _seed(seed: int, number: int) -> int:
    """Sources of equal size shouldn't be in the same order."""
    return int(mix(seed, number)) if number else seed


def _check(
    indexes: Sequence[PairIndex], weights: Sequence[float], counts: Sequence[int], batch_size: int, sampling: Sampling
) -> None:
    if len(counts) != len(indexes):
        given = f"--weights has {len(weights)} numbers" if weights else "--weights is missing"
        raise InputError(f"{given}, expected one for each of the {len(indexes)} sources")
    for i, (index, count) in enumerate(zip(indexes, counts, strict=True)):
        if sampling == "replacement" and not index.random_access:
            raise InputError(
                "--sampling is replacement, but some sources can't be read at random (only local tars, image folders"
                " and tables of local files can); give --sampling epochs"
            )
        which = f"source {i + 1} of {len(indexes)}: " if len(indexes) > 1 else ""
        if not count:
            raise InputError(
                f"--weights gives {which}no pair in a batch of {batch_size}; give it more, or a larger --batch-size"
            )
        if len(index) < (count if sampling == "epochs" else 1):
            of = f"of {count}, its share of" if len(indexes) > 1 else "of"
            raise InputError(
                f"{which}found {len(index)} pairs to train on, expected at least a batch {of} {batch_size}; give more"
                " pairs, or a smaller --batch-size"
            )
