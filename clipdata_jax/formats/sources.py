"""Sources of samples: webdataset tars, folders of images, tables of images and captions, TFDS datasets.

A source is one unit of work: a tar, or up to 10,000 images of anything else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import caption_tables, file_kinds, tars, tfds_datasets
from clipdata_jax.formats.caption_tables import CaptionTable
from clipdata_jax.formats.tfds_datasets import TfdsSplit
from clipdata_jax.runtime import console, threads

ROWS = 10_000
"""Images in a unit that isn't a tar."""
# Files and folders that systems and file managers leave, besides those that begin with a dot; in lower case.
_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
_SYSTEM |= {"system volume information"}


class Source(Protocol):
    """One unit of work: samples in a fixed order.

    Attributes:
      path: its name in messages; its last component is hashed into the uids of samples that have none.
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
class ImageFolder:
    """Some images of a folder and its subfolders, without captions; the keys are their names."""

    path: str
    names: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()

    def image_files(self) -> tuple[str, ...]:
        return tuple(storage.join(self.path, name) for name in self.names)

    def samples(self) -> Iterator[tars.RawSample]:
        for name, path in zip(self.names, self.image_files(), strict=True):
            yield tars.ImageFileSample(name, {}, {}, path)


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


@dataclasses.dataclass(frozen=True)
class Sources:
    """The sources that a command reads.

    Attributes:
      units: unit name -> source, in order.
      facts: names, sizes and digests of everything but tars, which the units' receipts list; JSON-able.
      passed_over: number of files in folders of images that are not images, by the ending of their names.
    """

    units: dict[str, Source]
    facts: list[dict[str, str | int]]
    passed_over: Counter[str] = dataclasses.field(default_factory=Counter)

    def shared_names(self) -> frozenset[str]:
        """The file names that several sources share, where a uid made of name and key would be ambiguous."""
        return tars.shared_names(sorted({source.path for source in self.units.values()}))


@storage.stat_cache()
def find_sources(
    patterns: Sequence[str], *, images_only: bool, image_column: str | None = None, caption_column: str | None = None
) -> Sources:
    """Finds the sources that patterns match.

    Args:
      patterns: tars, `{000..099}.tar`, `*.tar`, folders of tars, `.csv`, `.tsv` or `.parquet` tables of images
        and captions or a folder with one of them, `tfds:name/split`; folders of images if `images_only`.
      images_only: whether captions aren't needed.
      image_column: the table's column of image paths; None finds it by its usual names.
      caption_column: the table's column of captions; None finds it by its usual names.

    Raises:
      InputError: a source is missing, empty, ambiguous or named twice.
    """
    found: list[tuple[str, Sequence[Source]]] = []
    facts: list[dict[str, str | int]] = []
    passed_over: Counter[str] = Counter()
    columns = (image_column, None if images_only else caption_column)
    for path in _expand(patterns):
        if path.startswith(tfds_datasets.PREFIX):
            split = tfds_datasets.open_split(path, need_caption=not images_only)
            found.append((split.path, _cut(split)))
            facts.append(split.facts())
            continue
        table = _table_of(path)
        if table is not None:
            opened = caption_tables.open_table(table, *columns, need_caption=not images_only)
            found.append((table, _cut(opened)))
            facts.append(opened.facts())
        elif storage.is_folder(path) and not storage.Folder(path).files(".tar"):
            images, fact = _images(path.rstrip("/"), images_only, passed_over)
            found.append((path.rstrip("/"), images))
            facts.append(fact)
        else:
            found += [(tar, [TarSource(tar)]) for tar in tars.find_tars([path])]
    tars.check_repeats([path for path, _ in found])
    if not any(
        isinstance(unit, RowRange) and isinstance(unit.whole, CaptionTable) for _, units in found for unit in units
    ):
        for flag, column in (("image-column", image_column), ("caption-column", caption_column)):
            if column is not None:
                raise InputError(f"--{flag} is {column!r}, but none of the sources is a table; leave it out")
    return Sources(_named(found), facts, passed_over)


def _expand(patterns: Sequence[str]) -> list[str]:
    expanded: list[str] = []
    for pattern in storage.split_joined(patterns):
        expanded += [pattern] if pattern.startswith(tfds_datasets.PREFIX) else storage.expand(pattern)
    return expanded


def _table_of(path: str) -> str | None:
    """The caption table at a path: the file, or the only one in a folder without tars; else None."""
    at = storage.Folder(path)
    if not at.is_folder():
        return path if path.lower().endswith(caption_tables.SUFFIXES) else None
    if at.files(".tar"):
        return None
    storage.check_finished(at)
    tables = [name for name in at.files() if name.lower().endswith(caption_tables.SUFFIXES)]
    inside = [name for name in tables if not name.rpartition("/")[2].startswith(".")]
    if len(inside) > 1:
        raise InputError(
            f"{path}: holds {len(inside)} tables, {inside[0]} and {inside[1]} among them; name the one to embed"
        )
    return inside[0] if inside else None


def _images(folder: str, images_only: bool, passed_over: Counter[str]) -> tuple[list[Source], dict[str, str | int]]:
    at = storage.Folder(folder)
    storage.check_finished(at)
    sizes = at.sizes()
    names, others = _split_images(at, sizes)
    if not images_only:
        hint = "; --images-only embeds the images in it, without captions" if names else ""
        raise InputError(f"{folder}: the folder holds no .tar file; expected webdataset tars{hint}")
    if not names:
        held = f"; {console.passed_over(others).lower()}" if others else ""
        raise InputError(f"{folder}: the folder holds neither .tar files nor images{held}")
    passed_over += others
    digest = hashlib.sha256(json.dumps([(name, sizes[name]) for name in names]).encode()).hexdigest()
    cut: list[Source] = [
        ImageFolder(folder, tuple(names[start : start + ROWS])) for start in range(0, len(names), ROWS)
    ]
    total = sum(sizes[name] for name in names)
    return cut, {"name": folder, "images": len(names), "bytes": total, "names_and_sizes": f"sha256:{digest}"}


def _split_images(at: storage.Folder, names: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """The names of a folder's images, sorted, and the number of its other files by ending.

    A file that is named as an image counts as one, so that a broken one is an error; others are judged by their first
    bytes.
    """
    images, unknown = [], []
    others: Counter[str] = Counter()
    for name in names:
        if any(part.startswith(".") or part in _SYSTEM for part in name.lower().split("/")):
            others[console.HIDDEN] += 1
        elif name.rpartition(".")[2].lower() in tars.IMAGE_EXTENSIONS:
            images.append(name)
        else:
            unknown.append(name)

    def head(name: str) -> bytes:
        try:
            with at.open_read(name) as file:
                return file.read(file_kinds.HEAD)
        except InputError:
            return b""

    for name, start in zip(unknown, threads.prefetch(head, unknown, threads=at.threads), strict=True):
        if file_kinds.is_image(start):
            images.append(name)
        else:
            _, dot, ending = name.rpartition("/")[2].rpartition(".")
            others[f".{ending.lower()}" if dot else "no ending"] += 1
    return sorted(images), others


def _cut(whole: CaptionTable | TfdsSplit) -> list[RowRange]:
    return [RowRange(whole, start, min(start + ROWS, len(whole))) for start in range(0, len(whole), ROWS)]


def _named(found: Sequence[tuple[str, Sequence[Source]]]) -> dict[str, Source]:
    plain = [re.sub(r"\.(csv|tsv|parquet)$", "", path, flags=re.I) for path, _ in found]
    stems = tars.unit_names([path.removeprefix(tfds_datasets.PREFIX) for path in plain])
    units: dict[str, Source] = {}
    for stem, (_, several) in zip(stems, found, strict=True):
        for number, source in enumerate(several):
            name = stem if len(several) == 1 else f"{stem}_{number:05}"
            while name in units:  # a tar may have the name of a part of a folder
                name += "_"
            units[name] = source
    return units
