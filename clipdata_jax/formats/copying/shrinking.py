"""Smaller images while samples are copied: decoding them limits training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars
from clipdata_jax.models import shrunk_image

_JPEG = ("jpg", "jpeg", "jpe", "jfif")


@dataclasses.dataclass
class Shrinker:
    """Scales images down as `models.shrunk_image` does, and counts them.

    Attributes:
      side: pixels of the shorter side.
      skip_bad: whether broken images are copied as they are; else they raise InputError.
      counts: "shrunk": images made smaller; "as_they_were": images copied, small enough or with transparency, a palette
        or CMYK colours; "broken": for each image that can't be decoded "tar", "key" and "reason".
    """

    side: int
    skip_bad: bool
    counts: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"shrunk": 0, "as_they_were": 0, "broken": []}, init=False
    )

    def members(self, path: str, key: str, members: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Yields the members of a sample, extension and bytes, the images among them smaller.

        Args:
          path: the sample's tar or other source.
          key: its key there.
          members: extension and bytes of each.

        Raises:
          InputError: an image is broken, and they aren't skipped.
        """
        given = list(members)
        taken = {extension for extension, _ in given}
        for extension, data in given:
            front, dot, last = extension.rpartition(".")
            if last.lower() not in tars.IMAGE_EXTENSIONS:
                yield extension, data
                continue
            small = self._shrink(path, key, data)
            as_jpeg = f"{front}{dot}jpg"
            changes_name = small is not data and last.lower() not in _JPEG and as_jpeg not in taken
            yield as_jpeg if changes_name else extension, small

    def _shrink(self, path: str, key: str, data: bytes) -> bytes:
        try:
            small = shrunk_image(data, self.side)
        except InputError as error:
            if not self.skip_bad:
                raise InputError(f"{path}: sample {key!r}: {error}; fix it, or pass --on-bad skip") from error
            self.counts["broken"].append({"tar": path, "key": key, "reason": str(error)})
            return data
        self.counts["as_they_were" if small is data else "shrunk"] += 1
        return small
