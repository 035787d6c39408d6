"""The order of pairs that can only be read source after source: from buckets, parquet files, TFDS.

The sources of an epoch stand in a permuted order and form one stream, cut into lanes of equal length. Each batch has
as many pairs from every lane, in its order but for a window in which they are mixed. So a process that has some of a
batch's rows reads some lanes, from their beginning to their end, and the order is a pure function of seed and step.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars
from clipdata_jax.formats.hashing import mix
from clipdata_jax.training.decoding import Encoded, LostSourceError
from clipdata_jax.training.order import epoch_of, permute
from clipdata_jax.training.pair_index import PairIndex

WINDOW = 2048
"""Pairs that are mixed, over all lanes, by default."""
_LANES = 64


class WindowPlace(NamedTuple):
    """Where a row of a batch is: the window, by its epoch, lane and number in the lane, and the place in there."""

    epoch: int
    lane: int
    window: int
    place: int


class BlockOrder:
    """The order of an index's rows, source after source.

    Args:
      counts: rows of each source, none empty; those of one source are neighbours in the index.
      batch_size: rows of a batch, at most all.
      window: pairs that are mixed, over all lanes.
      seed: of the order.

    Attributes:
      lanes: the largest power of two that divides a batch, at most 64 and half the number of sources.

    >>> order = BlockOrder(np.array([3, 2]), batch_size=5, window=4, seed=0)
    >>> sorted(order.rows(0).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, counts: np.ndarray, *, batch_size: int, window: int, seed: int) -> None:
        self._counts, self._batch_size, self._seed = counts, batch_size, seed
        most = max(1, min(_LANES, len(counts) // 2))
        self.lanes = max(n for n in (1 << i for i in range(most.bit_length())) if n <= most and batch_size % n == 0)
        self._pairs = int(counts.sum())
        self._each = batch_size // self.lanes
        self._length = self._pairs // batch_size * self._each
        self._width = max(1, window // self.lanes)
        self._mixed = functools.lru_cache(maxsize=self.lanes)(self._mix)
        self._streams = functools.lru_cache(maxsize=2)(self._stream)

    def rows(self, step: int) -> np.ndarray:
        """The index's rows of a step's batch, shape (batch_size,), int64."""
        places = [self.place(step, number) for number in range(self._batch_size)]
        return np.array([self.window_rows(at)[at.place] for at in places])

    def place(self, step: int, number: int) -> WindowPlace:
        """Where a row of a step's batch is."""
        epoch = epoch_of(step, pairs=self._pairs, batch_size=self._batch_size)
        lane, rest = divmod(number, self._each)
        at = (step - epoch * (self._pairs // self._batch_size)) * self._each + rest
        window, place = divmod(at, self._width)
        return WindowPlace(epoch, lane, window, int(self._mixed(epoch, lane, window)[place]))

    def window_rows(self, at: WindowPlace) -> np.ndarray:
        """The index's rows of a window, in the order of the stream."""
        order, ends = self._streams(at.epoch)
        start = at.lane * self._length + at.window * self._width
        stream = np.arange(start, min(start + self._width, (at.lane + 1) * self._length))
        block = np.searchsorted(ends, stream, side="right")
        first = np.cumsum(self._counts) - self._counts
        rows: np.ndarray = first[order[block]] + stream - (ends[block] - self._counts[order[block]])
        return rows

    def _mix(self, epoch: int, lane: int, window: int) -> np.ndarray:
        size = min(self._width, self._length - window * self._width)
        return permute(np.arange(size), size, seed=int(mix(self._seed, lane, window)), epoch=epoch)

    def _stream(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = permute(np.arange(len(self._counts)), len(self._counts), seed=self._seed, epoch=epoch)
        return order, np.cumsum(self._counts[order])


class BlockReader:
    """Reads stored pairs in the order of blocks; in memory is a window of each lane that is read.

    Args:
      index: of the pairs.
      batch_size: rows of a batch.
      window: pairs that are mixed, over all lanes.
      seed: of the order.
    """

    def __init__(self, index: PairIndex, *, batch_size: int, window: int, seed: int) -> None:
        self._index, self._rows = index, index.files.rows()
        counts = np.bincount(self._rows["source"])
        self.order = BlockOrder(counts[counts > 0], batch_size=batch_size, window=window, seed=seed)
        self._lanes: dict[int, _Lane] = {}

    def read(self, step: int, numbers: np.ndarray) -> tuple[np.ndarray, list[Encoded]]:
        """Reads some rows of a step's batch; those of the steps before should have been read.

        Returns:
          Rows of the index, shape (n,), int64, and the pairs; what is wrong with one is in place of its image.
        """
        rows, pairs = np.empty(len(numbers), np.int64), []
        for i, number in enumerate(numbers.tolist()):
            at = self.order.place(step, number)
            lane = self._lanes.setdefault(at.lane, _Lane(self._index))
            if lane.window != at[:3]:
                lane.fill(at[:3], self.order.window_rows(at), self._rows)
            rows[i] = lane.rows[at.place]
            pairs.append(lane.pairs[at.place])
        return rows, pairs


class _Lane:
    """A window of a lane, and the source that is being read."""

    def __init__(self, index: PairIndex) -> None:
        self._index = index
        self.window: tuple[int, ...] = ()
        self.rows = np.empty(0, np.int64)
        self.pairs: list[Encoded] = []
        self._source, self._place = -1, -1
        self._samples: Iterator[tars.RawSample] = iter(())
        self._last = Encoded(b"", b"", is_json=False)

    def fill(self, window: tuple[int, ...], rows: np.ndarray, table: np.ndarray) -> None:
        """Reads the window of these rows."""
        self.window, self.rows = window, rows
        self.pairs = []  # before the next ones are read
        sources, places = table["source"][rows].tolist(), table["place"][rows].tolist()
        self.pairs = [self._read(source, place) for source, place in zip(sources, places, strict=True)]

    def _read(self, source: int, place: int) -> Encoded:
        if source != self._source or place < self._place:
            self._source, self._place = source, -1
            self._samples = iter(self._index.sources[source].samples())
        if place > self._place:
            try:
                sample = next(itertools.islice(self._samples, place - self._place - 1, None), None)
                self._place = place
                if sample is None:
                    path = self._index.files.paths[source]
                    raise LostSourceError(f"{path}: has fewer samples than when training began; run the command again")
            except InputError as error:
                self._samples = iter(())
                self._last = Encoded(LostSourceError(str(error)), b"", is_json=False)
                return self._last
            self._last = Encoded.of(sample)
        return self._last
