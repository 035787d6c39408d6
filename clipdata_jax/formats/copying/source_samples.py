"""Samples of sources that aren't tars: chosen by their uids, then read again to be written to a tar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import file_kinds, sample_uids, tars, uids
from clipdata_jax.formats.copying.tar_selection import SelectedSamples, Subset
from clipdata_jax.formats.sources.source import Source


class SourceSample(NamedTuple):
    """A selected sample of a source.

    Attributes:
      source: the source.
      place: its place among the source's samples, from 0.
      key: the key that it has in a tar.
      uid: its uid.
    """

    source: Source
    place: int
    key: str
    uid: str


def select_rows(source: Source, subset: Subset, *, unit: str, name: str, skip_bad: bool) -> SelectedSamples:
    """Finds the selected samples of a source; images that are files are looked for, not read.

    Args:
      source: the source.
      subset: the selected uids.
      unit: its name, which keys begin with; the rest is the sample's place.
      name: its name in the pool, from `pool_names`.
      skip_bad: whether to skip samples without a valid uid and selected ones without an image.

    Raises:
      InputError: the source can't be read, or a sample is bad and `skip_bad` is False.
    """
    found: list[SourceSample] = []
    at: list[int] = []
    skipped: list[dict[str, str]] = []
    seen = 0
    for place, sample in enumerate(source.samples()):
        seen += 1
        try:
            uid = sample_uids.sample_uid(name, sample.key, sample_uids.json_fields(sample.members))
            row = int(subset.index.find(uids.from_hex([uid]))[0])
            if row >= 0:
                _check_image(sample)
        except InputError as error:
            if not skip_bad:
                raise InputError(f"{source.path}: sample {sample.key!r}: {error}") from error
            skipped.append({"tar": source.path, "key": sample.key, "reason": str(error)})
            continue
        if row >= 0:
            # A dot would end the key.
            chosen = SourceSample(source, place, f"{unit.replace('.', '_')}_{place:05d}", uid)
            found += [chosen] * int(subset.times[row])
            at += [row] * int(subset.times[row])
    return SelectedSamples(found, np.array(at, np.int64), seen, skipped)


def _check_image(sample: tars.RawSample) -> None:
    if isinstance(sample, tars.ImageFileSample):
        storage.size(sample.path)
    elif sample.image() is None:
        raise InputError("it has no image")


class SampleReader:
    """Reads selected samples again; those of one source in order, in one pass."""

    def __init__(self) -> None:
        self._source: Source | None = None
        self._samples: Iterator[tuple[int, tars.RawSample]] = iter(())
        self._last: tuple[int, tars.RawSample] | None = None

    def members(self, chosen: SourceSample) -> Iterator[tuple[str, bytes]]:
        """Yields extension and bytes of a sample's members in a tar: image, caption, `.json` and what else it has.

        The `.json` has the uid, as "id" the owner's id that it was made of, the key in the source, and the fields that
        the source gave.

        Raises:
          InputError: the sample can't be read, or the source is not what it was.
        """
        sample = self._read(chosen)
        image = sample.image()
        if image is None:
            raise InputError(f"{chosen.source.path}: sample {sample.key!r} has no image any more")
        yield file_kinds.extension(image[: file_kinds.HEAD]), image
        if "txt" in sample.members:
            yield "txt", sample.members["txt"]
        fields = sample_uids.json_fields(sample.members)
        given = fields.pop("uid", None)
        owner = {} if given is None or uids.is_uid(given) else {"id": given}
        fields = {"uid": chosen.uid, "key": sample.key, **owner, **fields}
        yield "json", json.dumps(fields, ensure_ascii=False).encode(errors="surrogatepass")
        for extension, data in sample.members.items():
            if extension not in (*tars.IMAGE_EXTENSIONS, "txt", "json"):
                yield extension, data

    def _read(self, chosen: SourceSample) -> tars.RawSample:
        if self._source is not chosen.source or (self._last is not None and self._last[0] > chosen.place):
            self._source, self._samples, self._last = chosen.source, enumerate(chosen.source.samples()), None
        while self._last is None or self._last[0] < chosen.place:
            self._last = next(self._samples, None)
            if self._last is None:
                raise InputError(f"{chosen.source.path}: changed while it was read; run the command again")
        return self._last[1]
