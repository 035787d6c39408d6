"""A source: one unit of work, with its samples in a fixed order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from clipdata_jax.formats import tars
from clipdata_jax.formats.sources.caption_tables import CaptionTable
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
    """A run of rows of a caption table or a TFDS split."""

    whole: CaptionTable | TfdsSplit
    start: int
    stop: int

    @property
    def path(self) -> str:
        return self.whole.path

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()

    def image_files(self) -> tuple[str, ...]:
        if isinstance(self.whole, TfdsSplit):
            return ()
        return tuple(sample.path for sample in self.samples() if isinstance(sample, tars.ImageFileSample))

    def samples(self) -> Iterator[tars.RawSample]:
        return self.whole.samples(self.start, self.stop)


def spans(rows: int) -> list[tuple[int, int]]:
    """Cuts rows into units: the first row of each, and the first after it."""
    return [(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS)]
