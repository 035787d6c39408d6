"""Sorting more uids than fit in memory: in sorted runs on disk, which are merged range by range."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clipdata_jax.data import uid_files, uids

_STEP = 1 << 10  # of a run's uids every so many are looked at, to cut all runs into even ranges


class UidSorter:
    """Takes uids in any order, and writes them sorted, each once.

    Args:
      scratch: gives a folder for what doesn't fit in memory; asked only when there is such.
      memory: bytes of uids to hold.
    """

    def __init__(self, scratch: Callable[[], str], memory: int = 1 << 26) -> None:
        self._scratch, self._memory = scratch, memory
        self._held: list[np.ndarray] = []
        self._bytes = 0
        self._runs: list[str] = []

    def add(self, uid: np.ndarray) -> None:
        """Takes some uids."""
        self._held.append(uid)
        self._bytes += uid.nbytes
        if self._bytes > self._memory:
            self._spill()

    def write(self, path: str) -> int:
        """Writes a subset file, .npy, of all uids; returns how many they are, each counted once."""
        if not self._runs:
            return uid_files.write(path, [self._sorted()])
        self._spill()
        return uid_files.write(path, self._merge())

    def _sorted(self) -> np.ndarray:
        whole = np.concatenate([np.empty(0, uids.DTYPE), *self._held])
        self._held.clear()
        self._bytes = 0
        return uids.sort_unique(whole)

    def _spill(self) -> None:
        ordered = self._sorted()
        if len(ordered):
            self._runs.append(os.path.join(self._scratch(), f"run-{len(self._runs):05d}"))
            ordered.tofile(self._runs[-1])

    def _merge(self) -> Iterator[np.ndarray]:
        """All runs' uids, range after range: sorted, each once."""
        runs = [np.memmap(name, uids.DTYPE, "r") for name in self._runs]
        bounds = self._bounds(runs)
        cuts = [[0, *_positions(run, bounds), len(run)] for run in runs]
        for begins, ends in itertools.pairwise(zip(*cuts, strict=True)):
            pieces = [run[at:end] for run, at, end in zip(runs, begins, ends, strict=True)]
            yield uids.sort_unique(np.concatenate(pieces))

    def _bounds(self, runs: Sequence[np.ndarray]) -> np.ndarray:
        """First halves between which there are at most a quarter of the memory's uids, if hashes they are."""
        seen = np.sort(np.concatenate([run["f0"][::_STEP] for run in runs]))
        step = max(1, self._memory // 4 // uids.DTYPE.itemsize // _STEP)
        return np.unique(seen[step::step])


def _positions(run: np.ndarray, bounds: np.ndarray) -> list[int]:
    """Where in a sorted run the uids begin whose first halves are at or above each bound."""
    # searchsorted would copy every second word of the run.
    return [bisect.bisect_left(run, bound, key=lambda uid: int(uid["f0"])) for bound in bounds.tolist()]
