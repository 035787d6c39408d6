"""Folders of images, found by their content, and the captions beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import file_kinds, tars
from clipdata_jax.formats.sample_uids import TEXT_BYTES
from clipdata_jax.formats.sources.source import Source, spans
from clipdata_jax.runtime import console, threads

# Captions, and files that are never looked into for images: there may be as many as images.
_TEXTS = ("txt", "json")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Some images of a folder and the folders below it, with what lies beside them; the keys are their names.

    Attributes:
      path: the folder.
      names: of the images; a .txt without an image stands for the sample that lacks it.
      texts: of each image the .txt and the .json of the same stem, as far as they are there; () if captions aren't
        needed.
    """

    path: str
    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()

    def image_files(self) -> tuple[str, ...]:
        return tuple(storage.join(self.path, name) for name in self.names if _ending(name) not in _TEXTS)

    def samples(self) -> Iterator[tars.RawSample]:
        if not self.texts:
            for name, path in zip(self.names, self.image_files(), strict=True):
                yield tars.ImageFileSample(name, {}, {}, path)
            return
        at = storage.Folder(self.path)
        read = functools.partial(_sample, at)
        yield from threads.prefetch(read, zip(self.names, self.texts, strict=True), threads=at.threads)


def _sample(at: storage.Folder, files: tuple[str, tuple[str, ...]]) -> tars.RawSample:
    name, texts = files
    members = {}
    for text in texts:
        with contextlib.suppress(InputError), at.open_read(text) as file:
            members[_ending(text)] = file.read(TEXT_BYTES + 1)  # a longer one is refused by its length
    names = {_ending(one): one for one in (name, *texts)}
    if name in texts:
        return tars.RawSample(name, members, names)
    return tars.ImageFileSample(name, members, names, at.join(name))


def open_folder(
    at: storage.Folder,
    sizes: Mapping[str, int],
    hidden: Collection[str],
    images_only: bool,
    passed_over: Counter[str],
) -> tuple[list[Source], dict[str, str | int]]:
    """Finds a folder's images: its units, and the facts of all. Other files are counted in `passed_over`.

    Args:
      at: the folder.
      sizes: of all files in it and in the folders below it.
      hidden: those of them that are hidden.
      images_only: whether captions aren't needed.
      passed_over: ending -> number of files.

    Raises:
      InputError: there is no image, or captions are needed and no image has one.
    """
    names, others = _split_images(at, [name for name in sizes if name not in hidden])
    if not names:
        counts = console.passed_over(count_by_ending([*others, *hidden])).lower()
        raise InputError(f"{at}: the folder holds neither .tar files nor images{counts and f'; {counts}'}")
    found = len(names)
    texts: dict[str, tuple[str, ...]] = {}
    if not images_only:
        texts = _texts_of(names, others)
        if not any(texts[name] for name in names):
            raise InputError(
                f"{at}: the folder holds {console.counted(found, 'image')}, but no .txt or .json with a caption beside"
                " them; only embed does without, with --images-only"
            )
        names = sorted(texts)
        used = set(itertools.chain(*texts.values()))
        others = [name for name in others if name not in used]
    passed_over += count_by_ending([*others, *hidden])
    listed = sorted({*names, *itertools.chain(*texts.values())})
    digest = hashlib.sha256(json.dumps([(name, sizes[name]) for name in listed]).encode()).hexdigest()
    cut: list[Source] = [
        ImageFolder(at.path, tuple(some), tuple(texts[name] for name in some) if texts else ())
        for some in (names[start:stop] for start, stop in spans(len(names)))
    ]
    total = sum(sizes[name] for name in listed)
    return cut, {"name": at.path, "images": found, "bytes": total, "names_and_sizes": f"sha256:{digest}"}


def _texts_of(images: Sequence[str], others: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The texts of each image, and each .txt that lies among images but belongs to none."""
    texts: dict[str, list[str]] = {}
    for name in others:
        if _ending(name) in _TEXTS:
            texts.setdefault(name.rpartition(".")[0], []).append(name)
    found = {name: tuple(texts.get(name.rpartition(".")[0], ())) for name in images}
    used, folders = set(itertools.chain(*found.values())), {name.rpartition("/")[0] for name in images}
    for several in texts.values():
        lone = [name for name in several if _ending(name) == "txt" and name not in used]
        found |= {name: tuple(several) for name in lone if name.rpartition("/")[0] in folders}
    return found


def _ending(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def count_by_ending(names: Iterable[str]) -> Counter[str]:
    """Counts files by the ending of their names; those that are hidden by themselves."""
    found: Counter[str] = Counter()
    for name in names:
        _, dot, ending = name.rpartition("/")[2].rpartition(".")
        found[console.HIDDEN if storage.is_hidden(name) else f".{ending.lower()}" if dot else "no ending"] += 1
    return found


def _split_images(at: storage.Folder, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Splits the names of visible files of a folder into images, sorted, and others.

    A file that is named as an image counts as one, so that a broken one is an error; others are judged by their first
    bytes.
    """
    images: list[str] = []
    unknown: list[str] = []
    others: list[str] = []
    for name in names:
        if (ending := _ending(name)) in tars.IMAGE_EXTENSIONS:
            images.append(name)
        else:
            (others if ending in _TEXTS else unknown).append(name)

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
    return sorted(images), others
