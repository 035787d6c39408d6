"""Batches put on the devices ahead of time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipdata_jax.runtime import parallel
from clipdata_jax.training.input import Batch, InputPipeline

if TYPE_CHECKING:
    from jax.sharding import Mesh


class DeviceBatches:
    """Iterates over a pipeline's batches as global arrays, put on the devices ahead of time by a thread; a context.

    Args:
      pipeline: entered already.
      mesh: the run's mesh, of the axis "data".
      ahead: batches on the devices that aren't asked for yet.

    Attributes:
      wait_seconds: seconds for which `next` waited so far.
    """

    def __init__(self, pipeline: InputPipeline, mesh: Mesh, *, ahead: int = 2) -> None:
        self._pipeline, self._mesh = pipeline, mesh
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue()
        self._room = threading.Semaphore(ahead)
        self._closed = False
        self._thread = threading.Thread(target=self._put, name="input", daemon=True)
        self.wait_seconds = 0.0

    def __enter__(self) -> DeviceBatches:
        self._thread.start()
        return self

    def __exit__(self, *stopped: object) -> None:
        self._closed = True
        self._room.release()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        begun = time.perf_counter()
        try:
            found = self._ready.get()
        finally:
            self.wait_seconds += time.perf_counter() - begun
        if isinstance(found, BaseException):
            self._ready.put(found)
            raise found
        self._room.release()
        return found

    def _put(self) -> None:
        try:
            while self._room.acquire() and not self._closed:
                self._ready.put(Batch(*(parallel.to_global(part, self._mesh) for part in next(self._pipeline))))
        except BaseException as error:
            self._ready.put(error)
