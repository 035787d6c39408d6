"""Sorting more uids than fit in memory: dealt to files by their first halves, then sorted file by file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np

from clipdata_jax.data import files, uids

_FILES = 256


class UidSorter:
    """Takes uids in any order, and writes them sorted, each once.

    Args:
      scratch: gives a folder for what doesn't fit in memory; asked only when there is such.
      memory: bytes of uids to hold.
    """

    def __init__(self, scratch: Callable[[], str], memory: int = 1 << 26) -> None:
        self._scratch, self._memory = scratch, memory
        self._held: list[np.ndarray] = []
        self._bounds: np.ndarray | None = None

    def add(self, uid: np.ndarray) -> None:
        """Takes some uids."""
        self._held.append(uid)
        if sum(held.nbytes for held in self._held) > self._memory:
            self._spill()

    def write(self, path: str) -> int:
        """Writes a subset file of all uids; returns how many they are, each counted once."""
        if self._bounds is None:
            whole = uids.sort_unique(self._whole())
            with files.open_write(path) as file:
                np.save(file, whole, allow_pickle=False)
            return len(whole)
        self._spill()
        # The header says how many there are, so each file is sorted before the first is written.
        rows = sum(self._sort(name) for name in self._files())
        with files.open_write(path) as file:
            shape = {
                "descr": np.lib.format.dtype_to_descr(uids.DTYPE),
                "fortran_order": False,
                "shape": (rows,),
            }
            np.lib.format.write_array_header_1_0(file, shape)
            for name in self._files():
                file.write(np.fromfile(name, uids.DTYPE).tobytes())
        return rows

    def _whole(self) -> np.ndarray:
        whole = np.concatenate([np.empty(0, uids.DTYPE), *self._held])
        self._held.clear()
        return whole

    def _spill(self) -> None:
        whole = self._whole()
        if not len(whole):
            return
        if self._bounds is None:
            # The first uids say how the others lie: any will do, but even files need the least memory.
            ordered = np.sort(whole["f0"])
            self._bounds = np.unique(ordered[len(ordered) // _FILES :: max(len(ordered) // _FILES, 1)])
        at = np.searchsorted(self._bounds, whole["f0"], "right").astype(np.uint16)
        order = np.argsort(at, kind="stable")
        ends = np.cumsum(np.bincount(at, minlength=len(self._bounds) + 1))
        for name, rows in zip(self._files(), np.split(order, ends[:-1]), strict=True):
            with open(name, "ab") as file:
                file.write(whole[rows].view(np.uint8).data)

    def _files(self) -> Iterator[str]:
        count = 0 if self._bounds is None else len(self._bounds) + 1
        return (os.path.join(self._scratch(), f"uids-{index:03d}") for index in range(count))

    def _sort(self, name: str) -> int:
        ordered = uids.sort_unique(np.fromfile(name, uids.DTYPE))
        with open(name, "wb") as file:
            file.write(ordered.view(np.uint8).data)
        return len(ordered)
