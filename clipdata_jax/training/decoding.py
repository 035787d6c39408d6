"""Pairs read, decoded and tokenised into rows of a batch: the same in threads and in processes, without jax."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import file_kinds, tars
from clipdata_jax.formats.sample_captions import sample_captions
from clipdata_jax.formats.sample_uids import json_fields
from clipdata_jax.models.image_transform import ImageTransform, open_image
from clipdata_jax.training import pair_index
from clipdata_jax.training.crops import crop_box, crop_uniforms
from clipdata_jax.training.pair_index import PairFiles

_OPEN_FILES = 128


class Encoded(NamedTuple):
    """A pair as stored.

    Attributes:
      image: the bytes of its image; or why there are none.
      text: the bytes of its caption, or of the `.json` that holds it.
      is_json: whether it is such a `.json`.
      key: of the sample; "" where only its tar knows.
    """

    image: bytes | InputError
    text: bytes
    is_json: bool
    key: str = ""

    @classmethod
    def of(cls, sample: tars.RawSample) -> Encoded:
        """The pair of a sample."""
        text = sample.members.get("txt")
        try:
            image = sample.image()
        except InputError as error:
            return cls(error, b"", False, sample.key)
        found = InputError("no image is given") if image is None else image
        return cls(found, sample.members.get("json", b"{}") if text is None else text, text is None, sample.key)


class DecodedRows(NamedTuple):
    """Some rows of a batch but their pixels.

    Attributes:
      ids: tokens, shape (n, context length), int32; zeros for broken pairs.
      broken: row -> its key, as in `Encoded`, and what is wrong with it.
      lost: rows among those because their whole source is unreadable.
    """

    ids: np.ndarray
    broken: dict[int, tuple[str, str]]
    lost: set[int]


class LostSourceError(InputError):
    """A tar can't be read any more, or isn't the one that was indexed."""


class _OpenFile:
    """A file that is closed once nothing uses it any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class PairReader:
    """Reads stored pairs of an index by random access; threads may share one."""

    def __init__(self, files: PairFiles) -> None:
        self._files = files
        self._rows = files.rows()
        self._extra = _OpenFile(files.extra)
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(lambda path: _OpenFile(storage.Folder(path).inner))

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of some pairs, dtype `pair_index.ROW`."""
        return self._rows[numbers]

    def read(self, row: np.void) -> Encoded:
        """Reads a pair; what is wrong with it stands in place of the image's bytes."""
        form, key = int(row["form"]), ""
        try:
            tar = self._extra if form & pair_index.IMAGE_IS_PATH else self._tar(int(row["source"]))
            image = _bytes(self._extra if form & pair_index.IMAGE_IS_EXTRA else tar, row["image"], row["image_size"])
            text = _bytes(self._extra if form & pair_index.TEXT_IS_EXTRA else tar, row["text"], row["text_size"])
            if form & pair_index.IMAGE_IS_PATH:
                key = os.fsdecode(image)
                image = storage.read_bytes(key)
        except InputError as error:
            return Encoded(error, b"", False, key)
        return Encoded(image, text, bool(form & pair_index.TEXT_IS_JSON), key)

    def _tar(self, source: int) -> _OpenFile:
        path, state = self._files.paths[source], self._files.states[source]
        try:
            file = self._open(path)
        except OSError as error:
            raise LostSourceError(f"{path}: can't be read any more ({error.strerror})") from error
        found = pair_index.file_state(os.fstat(file.number))
        if found != state:
            raise LostSourceError(
                f"{path}: has changed since training began ({found[0]:,} bytes, {state[0]:,} before); run the command"
                " again, and leave the pool alone meanwhile"
            )
        return file


def _bytes(file: _OpenFile, start: np.int64, size: np.uint32) -> bytes:
    data = os.pread(file.number, int(size), int(start))
    if len(data) < size:
        raise InputError(f"{size:,} bytes expected at {start:,}, found {len(data):,}: the file was cut short")
    return data


class PairDecoder:
    """Makes a batch's rows of stored pairs.

    Args:
      tokenizer: captions -> int32 (n, context length).
      image_size: side of the square, in pixels.
      seed: of the crops.
      min_crop: the smallest share of an image's area that a crop has; 1 takes the centre, as `ImageTransform` does.
    """

    def __init__(
        self, tokenizer: Callable[[Sequence[str]], np.ndarray], *, image_size: int, seed: int, min_crop: float
    ) -> None:
        self._tokenizer, self._seed, self._min_crop = tokenizer, seed, min_crop
        self._transform = ImageTransform(size=image_size)

    def decode(self, pairs: Sequence[Encoded], rows: np.ndarray, epochs: np.ndarray, pixels: np.ndarray) -> DecodedRows:
        """Decodes some pairs.

        Args:
          pairs: n stored pairs.
          rows: their rows of the index, shape (n,), dtype `pair_index.ROW`.
          epochs: the epoch of each, shape (n,), int64.
          pixels: takes their images, shape (n, image_size, image_size, 3), uint8; zeros for broken ones.
        """
        uniforms = crop_uniforms(seed=self._seed, epoch=epochs, uid_hi=rows["uid_hi"], uid_lo=rows["uid_lo"])
        captions, broken, lost = [""] * len(pairs), {}, set()
        for i, pair in enumerate(pairs):
            try:
                captions[i] = _caption(pair)
                pixels[i] = self._image(pair.image, uniforms[i])
            except InputError as error:
                captions[i], pixels[i], broken[i] = "", 0, (pair.key, str(error))
                if isinstance(error, LostSourceError):
                    lost.add(i)
        ids = np.array(self._tokenizer(captions), np.int32)
        ids[list(broken)] = 0
        return DecodedRows(ids, broken, lost)

    def _image(self, data: bytes | InputError, uniforms: np.ndarray) -> np.ndarray:
        if isinstance(data, InputError):
            raise data
        kind, advice = file_kinds.recognise(data[: file_kinds.HEAD])
        if advice:
            raise InputError(f"not an image but {kind}; {advice}")
        with open_image(data) as image:
            if self._min_crop == 1:
                return self._transform(image)
            return self._transform.part(image, crop_box(*image.size, uniforms, min_area=self._min_crop))


def _caption(pair: Encoded) -> str:
    if isinstance(pair.image, InputError):
        raise pair.image
    members = {"json" if pair.is_json else "txt": pair.text}
    sample = tars.RawSample("", members, {})
    return sample_captions(sample, json_fields(members))[0]
