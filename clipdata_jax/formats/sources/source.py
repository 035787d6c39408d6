"""A source: one unit of work, with its samples in a fixed order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars
from clipdata_jax.formats.sources.caption_tables import CaptionTable
from clipdata_jax.formats.sources.image_parquet import ImageParquet
from clipdata_jax.formats.sources.tfds_datasets import TfdsSplit

ROWS = 10_000
"""Images in a unit that isn't a tar."""


class Source(Protocol):
    """One unit of work: samples in a fixed order.

    Attributes:
      path: its name in messages. Its name in the pool (`pool_names`) is hashed into the uids of samples that have
        none.
      inputs: files whose change makes the unit's result stale; digested when the unit is done.
    """

    @property
    def path(self) -> str: ...

    @property
    def inputs(self) -> tuple[str, ...]: ...

    def image_files(self) -> tuple[str, ...]:
        """The files that hold the images, in order; none if they have no paths."""

    def samples(self) -> Iterator[tars.RawSample]:
        """Yields the samples, in order, one in memory at a time."""


@dataclasses.dataclass(frozen=True)
class TarSource:
    """A webdataset tar."""

    path: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.path,)

    def image_files(self) -> tuple[str, ...]:
        return (self.path,)

    def samples(self) -> Iterator[tars.RawSample]:
        return tars.read_tar(self.path)


@dataclasses.dataclass(frozen=True)
class RowRange:
    """A run of rows of a caption table, a parquet file with the images inside, or a TFDS split."""

    whole: CaptionTable | ImageParquet | TfdsSplit
    start: int
    stop: int

    @property
    def path(self) -> str:
        return self.whole.path

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.whole, ImageParquet) else ()

    def image_files(self) -> tuple[str, ...]:
        if not isinstance(self.whole, CaptionTable):
            return self.inputs
        return tuple(sample.path for sample in self.samples() if isinstance(sample, tars.ImageFileSample))

    def samples(self) -> Iterator[tars.RawSample]:
        return self.whole.samples(self.start, self.stop)


@dataclasses.dataclass(frozen=True)
class BrokenSource:
    """A file that can't be opened.

    Attributes:
      path: the file.
      error: what reading its samples raises.
    """

    path: str
    error: InputError

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.path,)

    def image_files(self) -> tuple[str, ...]:
        return (self.path,)

    def samples(self) -> Iterator[tars.RawSample]:
        raise self.error


def spans(rows: int, groups: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Cuts rows into units of at most `ROWS`: the first row of each, and the first after it.

    Args:
      rows: their number.
      groups: numbers of rows that add up to it; they are cut only where one has more than `ROWS`.

    >>> spans(25_000)
    [(0, 10000), (10000, 20000), (20000, 25000)]
    >>> spans(25_000, [4_000, 4_000, 4_000, 13_000])
    [(0, 8000), (8000, 12000), (12000, 22000), (22000, 25000)]
    """
    found = []
    start = stop = 0
    for group in groups or [rows]:
        if stop > start and stop + group - start > ROWS:
            found.append((start, stop))
            start = stop
        stop += group
        while stop - start > ROWS:
            found.append((start, start + ROWS))
            start += ROWS
    return [*found, (start, stop)] if stop > start else found
