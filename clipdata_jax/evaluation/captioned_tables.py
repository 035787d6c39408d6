"""Tables of the hub as sources of images: with lists of captions for retrieval, with candidates for WinoGAViL."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import NamedTuple

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars
from clipdata_jax.formats.sources.hub_tables import HubTable, texts_of

_IMAGES = ("image", "img", "filename", "file_name", "image_path", "filepath")
_CAPTIONS = ("caption", "captions", "raw", "sentences", "text")
_CANDIDATES, _ASSOCIATIONS, _CUES = ("candidates",), ("associations",), ("cue",)


@dataclasses.dataclass(frozen=True)
class _TableSource:
    """What sources that are a table have in common.

    Attributes:
      table: of the data set.
    """

    table: HubTable

    @property
    def path(self) -> str:
        return self.table.paths[0]

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.table.inputs

    def image_files(self) -> tuple[str, ...]:
        return self.inputs


@dataclasses.dataclass(frozen=True)
class CaptionedTable(_TableSource):
    """A row an image, with one caption or a list of them; the key is the row's number."""

    def samples(self) -> Iterator[tars.RawSample]:
        image = self.table.column(_IMAGES, "images")
        caption = self.table.column(_CAPTIONS, "captions")
        with self.table.images() as read:
            for number, row in enumerate(self.table.rows([image, caption])):
                where = f"{self.path}: row {number}"
                texts = texts_of(row[caption], f"{where}: column {caption!r}")
                yield _sample(f"{number:07}", where, read(row[image]), captions=texts)


class Instance(NamedTuple):
    """An instance of WinoGAViL: a cue, images to choose from, and those that people associate with it.

    Attributes:
      cue: a word or two.
      candidates: keys of images.
      associations: of which these are right.
    """

    cue: str
    candidates: tuple[str, ...]
    associations: frozenset[str]


@dataclasses.dataclass(frozen=True)
class CandidateImages(_TableSource):
    """The images of WinoGAViL, each once, whose key is the candidate's name; reading them fills `instances`.

    Attributes:
      instances: all that were read, in order.
    """

    instances: list[Instance] = dataclasses.field(default_factory=list, compare=False)

    def samples(self) -> Iterator[tars.RawSample]:
        self.instances.clear()
        candidates, associations, cue = (
            self.table.column(usual, usual[0]) for usual in (_CANDIDATES, _ASSOCIATIONS, _CUES)
        )
        inside = [name for name in self.table.columns if name in ("candidate_images", "candidates_images")][:1]
        seen: set[str] = set()
        with self.table.images() as read:
            for number, row in enumerate(self.table.rows([candidates, associations, cue, *inside])):
                where = f"{self.path}: row {number}"
                names = texts_of(row[candidates], f"{where}: column {candidates!r}")
                right = frozenset(texts_of(row[associations], f"{where}: column {associations!r}"))
                values = row[inside[0]] if inside else names
                if not right & {*names} or len({*names}) < len(names) or len(values) != len(names):
                    raise InputError(
                        f"{where}: expected candidates that differ, an image of each, and some of them right"
                    )
                if not isinstance(row[cue], str) or not row[cue].strip():
                    raise InputError(f"{where}: column {cue!r} is {row[cue]!r:.40}, expected a word")
                self.instances.append(Instance(row[cue].strip(), tuple(names), right))
                for name, value in zip(names, values, strict=True):
                    if name not in seen:
                        seen.add(name)
                        yield _sample(name, where, read(value))


def _sample(key: str, where: str, image: bytes, **fields: object) -> tars.RawSample:
    """A sample, which decoding finds an image in whatever its kind is."""
    if not image:
        raise InputError(f"{where}: its image is empty")
    return tars.RawSample(key, {"jpg": image, "json": json.dumps(fields).encode()}, {})
