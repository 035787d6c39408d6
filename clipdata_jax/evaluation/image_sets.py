"""Images of a data set, embedded while the next ones are decoded, with a fact of each."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from clipdata_jax.embedding.encoder import Encoder
from clipdata_jax.embedding.samples import Bad, Decoded, decoded_samples
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.formats.sources.source import Source
from clipdata_jax.runs import telemetry
from clipdata_jax.runtime import console, threads

_Fact = TypeVar("_Fact")
# Batches of pixels that wait for the devices.
_AHEAD = 1


@dataclasses.dataclass(frozen=True)
class ImageSet(Generic[_Fact]):
    """An embedded data set.

    Attributes:
      emb: unit rows, shape (n, d).
      facts: of each image, in order.
      skipped: what was left out, and why.
      seconds: in which the devices computed, and waited for images.
    """

    emb: Float32[np.ndarray, "n d"]
    facts: list[_Fact]
    skipped: list[str]
    seconds: Mapping[str, float]


def embed(
    sources: Iterable[Source],
    encoder: Encoder,
    transform: Callable[[Image.Image], np.ndarray],
    fact_of: Callable[[Decoded], _Fact],
    *,
    on_bad: OnBad,
    need_caption: bool,
    name: str,
) -> ImageSet[_Fact]:
    """Embeds all images of a data set, in order. Memory holds their embeddings and a few batches of pixels.

    Args:
      sources: where the samples are.
      encoder: embeds pixels.
      transform: an image -> its pixels.
      fact_of: what to keep of a sample besides its embedding; one for which it raises InputError is bad.
      on_bad: "stop" raises; "skip" leaves out bad samples, and all of a source that can't be read to its end.
      need_caption: whether samples must have a caption.
      name: of the work, for the progress bar.

    Raises:
      InputError: something is bad and `on_bad` is "stop", or no image is left.
    """
    start, seconds = time.monotonic(), telemetry.Seconds()
    reader = _Reader(transform, fact_of, on_bad, need_caption)
    with console.bar(total=None, unit=" images", name=name) as bar, ThreadPoolExecutor(1) as device:

        def encoded(batch: UInt8[np.ndarray, "b size size 3"]) -> Float32[np.ndarray, "b d"]:
            with seconds.on("compute"):
                emb = encoder.images(batch)
            bar.update(len(batch))
            return emb

        pixels = itertools.chain.from_iterable(map(reader.read, sources))
        begun = (device.submit(encoded, batch) for batch in _batches(pixels, encoder.rows))
        rows = [done.result() for done in threads.in_flight(begun, _AHEAD)]
    kept = np.array(reader.kept, bool)
    if not kept.any():
        first = f"; the first that was left out: {reader.skipped[0]}" if reader.skipped else ""
        raise InputError(f"{', '.join(reader.paths[:3])}: no image that can be used{first}")
    seconds["wait"] = time.monotonic() - start - seconds["compute"]
    emb = np.concatenate(rows)
    return ImageSet(emb if kept.all() else emb[kept], reader.facts, reader.skipped, seconds)


class _Reader(Generic[_Fact]):
    """Decodes samples; `kept` says of each image that it yielded whether it counts, `facts` what is known of those."""

    def __init__(
        self,
        transform: Callable[[Image.Image], np.ndarray],
        fact_of: Callable[[Decoded], _Fact],
        on_bad: OnBad,
        need_caption: bool,
    ) -> None:
        self._transform, self._fact_of, self._on_bad, self._need_caption = transform, fact_of, on_bad, need_caption
        self.paths: list[str] = []
        self.kept: list[bool] = []
        self.facts: list[_Fact] = []
        self.skipped: list[str] = []

    def read(self, source: Source) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """Yields the pixels of a source's good samples; if it is broken, none of them counts."""
        self.paths.append(source.path)
        images, facts = len(self.kept), len(self.facts)
        try:
            samples = decoded_samples(
                source.samples(),
                [self._transform],
                path=source.path,
                on_bad=self._on_bad,
                need_caption=self._need_caption,
            )
            for sample in samples:
                try:
                    if isinstance(sample, Bad):
                        raise InputError(sample.reason)
                    self.facts.append(self._fact_of(sample))
                except InputError as error:
                    self._skip(f"{sample.tar}: sample {sample.key!r}: {error}")
                    continue
                self.kept.append(True)
                yield sample.pixels[0]
        except InputError as error:
            self._skip(str(error))
            self.kept[images:] = [False] * (len(self.kept) - images)
            del self.facts[facts:]

    def _skip(self, reason: str) -> None:
        if self._on_bad == "stop":
            raise InputError(reason)
        self.skipped.append(reason)


def _batches(rows: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Rows stacked by `size`; the last batch may be smaller."""
    batch: list[np.ndarray] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
