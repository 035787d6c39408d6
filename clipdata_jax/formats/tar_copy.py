"""Tars made of other tars' samples: copied block by block, headers and all."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import BinaryIO

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tar_index, tars
from clipdata_jax.formats.tar_index import IndexedSample, TarReader

_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_ZEROS = bytes(_BLOCK)
_ROOM = 1 << 19  # more than an open file keeps back, or it would copy what it is given


def write_samples(file: BinaryIO, chosen: Sequence[IndexedSample]) -> None:
    """Writes samples in order as a tar: headers and bytes as they are, one run of neighbours after the other.

    A sample whose key was written before (a copy, or another tar's sample) gets the first free one of key-1, key-2
    and so on, since readers of webdataset would take the two for one. It and links get new headers.
    """
    keys = {sample.key for sample in chosen}
    written: set[str] = set()
    out = CopyBuffer(file)
    for path, group in groupby(chosen, key=lambda sample: sample.table.path):
        with tar_index.opened(path) as tar:
            _write_of_tar(out, tar, group, keys, written)
    out.write(2 * _ZEROS)
    out.write(bytes(-out.total % _RECORD))
    out.flush()


class CopyBuffer:
    """What goes to a file, by the piece: bytes are read where they are written from, and nothing is copied between.

    Attributes:
      total: bytes so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.total = 0
        self._file, self._room, self._used = file, memoryview(bytearray(_ROOM)), 0

    def copy(self, tar: TarReader, start: int, end: int) -> None:
        """Takes bytes of a tar."""
        self.total += end - start
        while start < end:
            place = self._room[self._used : self._used + end - start]
            size = tar.into(place, start)
            if not size:
                raise InputError(f"{tar.path}: became shorter while it was read; give the command again")
            start += size
            self._take(size)

    def write(self, data: bytes) -> None:
        """Takes bytes."""
        self.total += len(data)
        rest = memoryview(data)
        while rest:
            size = min(len(rest), _ROOM - self._used)
            self._room[self._used : self._used + size] = rest[:size]
            rest = rest[size:]
            self._take(size)

    def _take(self, size: int) -> None:
        self._used += size
        if self._used == _ROOM:
            self.flush()

    def flush(self) -> None:
        """Writes what is there."""
        self._file.write(self._room[: self._used])
        self._used = 0


def _write_of_tar(
    out: CopyBuffer, tar: TarReader, group: Iterable[IndexedSample], keys: set[str], done: set[str]
) -> None:
    start = end = 0
    for table, old, numbers in group:
        key = old if old not in done else _free_key(old, keys)
        done.add(key)
        starts, data, sizes, links = table.starts, table.data, table.sizes, table.links
        for i in numbers:
            if key == old and i not in links:
                if starts[i] != end:
                    out.copy(tar, start, end)
                    start = starts[i]
                end = data[i] + -(-sizes[i] // _BLOCK) * _BLOCK
            else:
                out.copy(tar, start, end)
                start = end = 0
                _write_renamed(out, key + table.name(i)[len(old) :], table.read(i, tar))
    out.copy(tar, start, end)


def _free_key(key: str, keys: set[str]) -> str:
    number = 1
    while f"{key}-{number}" in keys:
        number += 1
    keys.add(f"{key}-{number}")
    return f"{key}-{number}"


def _write_renamed(out: CopyBuffer, name: str, data: bytes) -> None:
    out.write(tars.header(name, len(data)))
    out.write(data)
    out.write(bytes(-len(data) % _BLOCK))
