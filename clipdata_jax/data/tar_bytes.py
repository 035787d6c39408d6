"""A tar as slices of bytes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from clipdata_jax import storage

_PIECE = 1 << 20


class Bytes:
    """A file as slices of bytes.

    Attributes:
      path: of the file.
      jsons: where the bytes of a `.json` begin -> these, of those that the look through the headers came across.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        """Takes a file that is open for reading."""
        self.path, self._file = path, file
        self._number = file.fileno() if storage.is_local(path) and hasattr(os, "preadv") else None
        self.jsons: dict[int, bytes] = {}

    def __getitem__(self, where: slice) -> bytes:
        if self._number is not None:
            return os.pread(self._number, where.stop - where.start, where.start)
        self._file.seek(where.start)
        return self._file.read(where.stop - where.start)

    def into(self, room: memoryview, start: int) -> int:
        """Fills memory with the bytes from a place on; how many there were."""
        if self._number is not None:
            return os.preadv(self._number, [room], start)
        self._file.seek(start)
        return self._file.readinto(room)  # type: ignore[attr-defined]

    def pieces(self, start: int) -> Iterator[bytes]:
        """What is there from a place on."""
        while piece := self[start : start + _PIECE]:
            yield piece
            start += len(piece)


@contextlib.contextmanager
def opened(path: str) -> Iterator[Bytes]:
    """A file as slices of bytes.

    Raises:
      InputError: it can't be opened.
    """
    with storage.open_read(path) as file:
        yield Bytes(path, file)
