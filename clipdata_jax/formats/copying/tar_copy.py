"""Copying of samples from tars into a new tar, block by block, headers included."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, BinaryIO

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tar_index, tars
from clipdata_jax.formats.copying.shrinking import Shrinker
from clipdata_jax.formats.copying.source_samples import SampleReader, SourceSample
from clipdata_jax.formats.tar_index import IndexedSample, TarReader

_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_ZEROS = bytes(_BLOCK)
_BUFFER = 1 << 19  # bytes: larger than a file object's own buffer, which would copy them once more


def write_samples(
    file: BinaryIO,
    chosen: Sequence[IndexedSample | SourceSample],
    keys: Sequence[str],
    reader: SampleReader,
    shrinker: Shrinker | None = None,
) -> None:
    """Writes samples in order as a tar; of a tar each run of consecutive ones is copied at once with its headers.

    Args:
      file: takes the tar.
      chosen: the samples.
      keys: their keys in the new tar; samples with another key than before, and links, get new headers.
      reader: of samples that are not from tars; the next tar's may go on with it.
      shrinker: makes the images smaller; all members then get new headers.
    """
    out = CopyBuffer(file)
    for path, group in groupby(zip(chosen, keys, strict=True), key=_tar_of):
        if path is None:
            _write_samples(out, reader, shrinker, group)
            continue
        with tar_index.open_tar(path) as tar:
            if shrinker is None:
                _copy_samples(out, tar, group)
            else:
                _shrink_samples(out, tar, shrinker, group)
    out.write(2 * _ZEROS)
    out.write(bytes(-out.total % _RECORD))
    out.flush()


def _tar_of(pair: tuple[IndexedSample | SourceSample, str]) -> str | None:
    return None if isinstance(pair[0], SourceSample) else pair[0].tar.path


class CopyBuffer:
    """A write buffer that reads from tars directly into itself, without intermediate copies.

    Attributes:
      total: bytes taken so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.total = 0
        self._file, self._buffer, self._used = file, memoryview(bytearray(_BUFFER)), 0

    def copy(self, tar: TarReader, start: int, end: int) -> None:
        """Takes the bytes of a tar between two offsets.

        Raises:
          InputError: the tar ends before.
        """
        self.total += end - start
        while start < end:
            size = tar.into(self._buffer[self._used : self._used + end - start], start)
            if not size:
                raise InputError(f"{tar.path}: became shorter while it was read; run the command again")
            start += size
            self._take(size)

    def write(self, data: bytes) -> None:
        """Takes bytes."""
        self.total += len(data)
        rest = memoryview(data)
        while rest:
            size = min(len(rest), _BUFFER - self._used)
            self._buffer[self._used : self._used + size] = rest[:size]
            rest = rest[size:]
            self._take(size)

    def _take(self, size: int) -> None:
        self._used += size
        if self._used == _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered bytes."""
        self._file.write(self._buffer[: self._used])
        self._used = 0


def _copy_samples(out: CopyBuffer, tar: TarReader, group: Iterable[tuple[Any, str]]) -> None:
    start = end = 0
    for (index, old, members), key in group:
        starts, data, sizes, links = index.starts, index.data, index.sizes, index.links
        for i in members:
            if key == old and i not in links:
                if starts[i] != end:
                    out.copy(tar, start, end)
                    start = starts[i]
                end = data[i] + -(-sizes[i] // _BLOCK) * _BLOCK
            else:
                out.copy(tar, start, end)
                start = end = 0
                _write_member(out, key + index.name(i)[len(old) :], index.read(i, tar))
    out.copy(tar, start, end)


def _shrink_samples(out: CopyBuffer, tar: TarReader, shrinker: Shrinker, group: Iterable[tuple[Any, str]]) -> None:
    for (index, old, members), key in group:
        given = ((index.name(i)[len(old) + 1 :], index.read(i, tar)) for i in members)
        for extension, data in shrinker.members(tar.path, old, given):
            _write_member(out, f"{key}.{extension}", data)


def _write_samples(
    out: CopyBuffer, reader: SampleReader, shrinker: Shrinker | None, group: Iterable[tuple[Any, str]]
) -> None:
    for sample, key in group:
        members = reader.members(sample)
        if shrinker is not None:
            members = shrinker.members(sample.source.path, sample.key, members)
        for extension, data in members:
            _write_member(out, f"{key}.{extension}", data)


def _write_member(out: CopyBuffer, name: str, data: bytes) -> None:
    out.write(tars.header(name, len(data)))
    out.write(data)
    out.write(bytes(-len(data) % _BLOCK))
