"""Tars made of other tars' samples: copied block by block, headers and all."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import BinaryIO

from clipdata_jax.data import tar_index, tars
from clipdata_jax.data.tar_index import PIECE, Bytes, Sample
from clipdata_jax.errors import InputError

_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_ZEROS = bytes(_BLOCK)


def write_samples(file: BinaryIO, chosen: Sequence[Sample]) -> None:
    """Writes samples in order as a tar: headers and bytes as they are, one run of neighbours after the other.

    A sample whose key was written before (a copy, or another tar's sample) gets the first free one of key-1, key-2
    and so on, since readers of webdataset would take the two for one. It and links get new headers.
    """
    keys = {sample.key for sample in chosen}
    written: set[str] = set()
    total = 0
    for path, group in groupby(chosen, key=lambda sample: sample.table.path):
        with tar_index.opened(path) as tar:
            total += _write_of_tar(file, tar, group, keys, written)
    total += file.write(2 * _ZEROS)
    file.write(bytes(-total % _RECORD))


def _write_of_tar(file: BinaryIO, tar: Bytes, group: Iterable[Sample], keys: set[str], done: set[str]) -> int:
    total = start = end = 0
    for table, old, numbers in group:
        key = old if old not in done else _free_key(old, keys)
        done.add(key)
        starts, data, sizes, links = table.starts, table.data, table.sizes, table.links
        for i in numbers:
            if key == old and i not in links:
                if starts[i] != end:
                    total += _copy(file, tar, start, end)
                    start = starts[i]
                end = data[i] + -(-sizes[i] // _BLOCK) * _BLOCK
            else:
                total += _copy(file, tar, start, end)
                start = end = 0
                total += _write_renamed(file, key + table.names[i][len(old) :], table.read(i, tar))
    return total + _copy(file, tar, start, end)


def _free_key(key: str, keys: set[str]) -> str:
    number = 1
    while f"{key}-{number}" in keys:
        number += 1
    keys.add(f"{key}-{number}")
    return f"{key}-{number}"


def _copy(file: BinaryIO, tar: Bytes, start: int, end: int) -> int:
    for at in range(start, end, PIECE):
        size = min(PIECE, end - at)
        piece = tar.into_room(at, size)
        if len(piece) < size:
            raise InputError(f"{tar.path}: became shorter while it was read; give the command again")
        file.write(piece)
    return end - start


def _write_renamed(file: BinaryIO, name: str, data: bytes) -> int:
    header = tars.header(name, len(data))
    file.write(header)
    file.write(data)
    padding = -len(data) % _BLOCK
    file.write(bytes(padding))
    return len(header) + len(data) + padding
