"""Folders of images, found by their content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import file_kinds, tars
from clipdata_jax.formats.sources.source import Source, spans
from clipdata_jax.runtime import console, threads


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


def open_folder(
    at: storage.Folder, sizes: Mapping[str, int], images_only: bool, passed_over: Counter[str]
) -> tuple[list[Source], dict[str, str | int]]:
    """Finds a folder's images: its units, and the facts of all. Other files are counted in `passed_over`.

    Args:
      at: the folder.
      sizes: of all files in it and in the folders below it.
      images_only: whether captions aren't needed.
      passed_over: ending -> number of files.

    Raises:
      InputError: captions are needed, or there is no image.
    """
    names, others = _split_images(at, sizes)
    if not images_only:
        hint = "; --images-only embeds the images in it, without captions" if names else ""
        raise InputError(f"{at}: the folder holds no .tar file; expected webdataset tars{hint}")
    if not names:
        held = f"; {console.passed_over(others).lower()}" if others else ""
        raise InputError(f"{at}: the folder holds neither .tar files nor images{held}")
    passed_over += others
    digest = hashlib.sha256(json.dumps([(name, sizes[name]) for name in names]).encode()).hexdigest()
    cut: list[Source] = [ImageFolder(at.path, tuple(names[start:stop])) for start, stop in spans(len(names))]
    total = sum(sizes[name] for name in names)
    return cut, {"name": at.path, "images": len(names), "bytes": total, "names_and_sizes": f"sha256:{digest}"}


def count_by_ending(names: Iterable[str]) -> Counter[str]:
    """Counts files by the ending of their names; those that are hidden by themselves."""
    found: Counter[str] = Counter()
    for name in names:
        _, dot, ending = name.rpartition("/")[2].rpartition(".")
        found[console.HIDDEN if storage.is_hidden(name) else f".{ending.lower()}" if dot else "no ending"] += 1
    return found


def _split_images(at: storage.Folder, names: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """The names of a folder's images, sorted, and the number of its other files by ending.

    A file that is named as an image counts as one, so that a broken one is an error; others are judged by their first
    bytes.
    """
    images, unknown, others = [], [], []
    for name in names:
        if storage.is_hidden(name):
            others.append(name)
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
            others.append(name)
    return sorted(images), count_by_ending(others)
