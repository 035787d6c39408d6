"""A source: one unit of work, with its samples in a fixed order."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars
from clipdata_jax.formats.sources.caption_tables import CaptionTable
from clipdata_jax.formats.sources.image_parquet import ImageParquet
from clipdata_jax.formats.sources.tfds_datasets import TfdsSplit

ROWS = 10_000
"""Images in a unit that isn't a tar."""


@runtime_checkable
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
    """A webdataset tar.

    Attributes:
      path: the tar.
      image_ext: the extension of images, in lower case; None means the usual ones.
      caption_ext: likewise of captions.
      passed_over: the number of hidden members that have been left out, once its samples were read.
    """

    path: str
    image_ext: str | None = None
    caption_ext: str | None = None
    passed_over: Counter[str] = dataclasses.field(default_factory=Counter, compare=False, repr=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.path,)

    def image_files(self) -> tuple[str, ...]:
        return (self.path,)

    def samples(self) -> Iterator[tars.RawSample]:
        self.passed_over.clear()
        samples = tars.read_tar(self.path, self.passed_over)
        return samples if (self.image_ext, self.caption_ext) == (None, None) else map(self._with_usual_names, samples)

    def _with_usual_names(self, sample: tars.RawSample) -> tars.RawSample:
        """The sample with its image as .jpg and its caption as .txt, and no others, where extensions are given."""
        members = dict(sample.members)
        for given, usual in ((self.image_ext, tars.IMAGE_EXTENSIONS), (self.caption_ext, ("txt",))):
            if given is not None:
                chosen = members.pop(given, None)
                members = {name: data for name, data in members.items() if name not in usual}
                members |= {} if chosen is None else {usual[0]: chosen}
        return dataclasses.replace(sample, members=members)


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
class FirstSamples:
    """The first samples of a source.

    Attributes:
      whole: the source.
      count: how many.
    """

    whole: Source
    count: int

    @property
    def path(self) -> str:
        return self.whole.path

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.whole.inputs

    def image_files(self) -> tuple[str, ...]:
        return self.whole.image_files()

    def samples(self) -> Iterator[tars.RawSample]:
        return itertools.islice(self.whole.samples(), self.count)


def first_samples(units: Mapping[str, Source], count: int) -> dict[str, Source]:
    """Takes as many units as hold the first `count` samples, the last one cut."""
    found: dict[str, Source] = {}
    for name, source in units.items():
        if not count:
            break
        held = 0
        with contextlib.suppress(InputError):  # an error where it is read
            for _ in itertools.islice(source.samples(), count):
                held += 1
        found[name] = FirstSamples(source, count) if held == count else source
        count -= held
    return found


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
