"""Workers that fill rows of batches, in threads or in processes that share the pixels' memory."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clipdata_jax.training import pair_index
from clipdata_jax.training.decoding import DecodedRows, Encoded, PairDecoder, PairReader
from clipdata_jax.training.pair_index import PairFiles


class Chunk(NamedTuple):
    """Neighbouring rows of a batch, to be decoded by one worker.

    Attributes:
      slot: the place of the batch among those in work.
      start: its first row there.
      sources: the number of the index that each row is from, shape (n,).
      rows: their rows there.
      epochs: their epochs.
      stored: pairs that were read already, by their place in the chunk.
    """

    slot: int
    start: int
    sources: np.ndarray
    rows: np.ndarray
    epochs: np.ndarray
    stored: dict[int, Encoded]


class BatchWorker:
    """Fills rows of the batches in work; threads may share one.

    Args:
      files: of the indexes.
      decoder: of their pairs.
      pixels: of the batches in work, shape (ahead, b, size, size, 3), uint8.
    """

    def __init__(self, files: Sequence[PairFiles], decoder: PairDecoder, pixels: np.ndarray) -> None:
        self._readers = [PairReader(one) for one in files]
        self._decoder, self._pixels = decoder, pixels

    def fill(self, chunk: Chunk) -> DecodedRows:
        """Reads and decodes the pairs of a chunk."""
        rows = np.empty(len(chunk.rows), pair_index.ROW)
        for number, reader in enumerate(self._readers):
            rows[chunk.sources == number] = reader.rows(chunk.rows[chunk.sources == number])
        pairs = [
            chunk.stored[i] if i in chunk.stored else self._readers[source].read(rows[i])
            for i, source in enumerate(chunk.sources.tolist())
        ]
        pixels = self._pixels[chunk.slot, chunk.start : chunk.start + len(rows)]
        return self._decoder.decode(pairs, rows, chunk.epochs, pixels)


_here: BatchWorker
# Of glibc's mallopt. Memory above these is given back when it is freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 28  # bytes


def open_worker(files: Sequence[PairFiles], decoder: PairDecoder, path: str, shape: tuple[int, ...]) -> None:
    """Prepares a worker process."""
    global _here
    # A process for each core: none needs threads of its own.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # An image's memory, given back and taken again each time, costs a sixth of the time in page faults.
    with contextlib.suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_MMAP_THRESHOLD, _KEPT // 2)
    _here = BatchWorker(files, decoder, map_pixels(os.open(path, os.O_RDWR), shape))


def fill_here(chunk: Chunk) -> DecodedRows:
    """Fills a chunk in a worker process."""
    return _here.fill(chunk)


def map_pixels(file: int, shape: tuple[int, ...]) -> np.ndarray:
    """Maps an open file, and closes it."""
    pixels = np.frombuffer(mmap.mmap(file, int(np.prod(shape))), np.uint8).reshape(shape)
    os.close(file)
    return pixels


def open_shared(folder: str, size: int) -> tuple[int, str]:
    """Opens a file to share memory by: its descriptor, and a path by which other processes open it too.

    On Linux it has no name that a kill could leave behind.
    """
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("clipdata-batches")
        path = f"/proc/{os.getpid()}/fd/{file}"
    else:
        path = f"{folder}/batches.bin"
        file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, size)
    return file, path
