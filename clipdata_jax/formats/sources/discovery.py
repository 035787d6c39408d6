"""Finds the sources that patterns name."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import pyarrow as pa

from clipdata_jax import storage
from clipdata_jax.config import Reading
from clipdata_jax.errors import InputError
from clipdata_jax.formats import file_kinds, parquet, pool_names, tars
from clipdata_jax.formats.sources import caption_tables, image_folders, image_parquet, json_tables, tfds_datasets
from clipdata_jax.formats.sources.caption_tables import CaptionTable
from clipdata_jax.formats.sources.source import BrokenSource, RowRange, Source, TarSource, spans
from clipdata_jax.formats.sources.table_columns import NoColumnError
from clipdata_jax.formats.sources.tfds_datasets import TfdsSplit
from clipdata_jax.runtime import console, threads

_USUAL = Reading()
# Endings of tables in folders; a .json there belongs to an image, or says something about the data set.
_LISTED = tuple(ending for ending in caption_tables.SUFFIXES if ending != ".json")


@dataclasses.dataclass(frozen=True)
class Sources:
    """The sources that a command reads.

    Attributes:
      units: unit name -> source, in order.
      facts: names, sizes and digests of everything that the units' receipts don't list as inputs; JSON-able.
      passed_over: number of files in folders that are neither images nor tables of them, by the ending of their names;
        of folders of tars the hidden tars only.
    """

    units: dict[str, Source]
    facts: list[dict[str, str | int]]
    passed_over: Counter[str] = dataclasses.field(default_factory=Counter)

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Path of each source -> its name in the pool."""
        return pool_names.pool_names(sorted({source.path for source in self.units.values()}))


@storage.stat_cache()
def find_sources(patterns: Sequence[str], *, images_only: bool, reading: Reading = _USUAL) -> Sources:
    """Finds the sources that patterns match.

    Args:
      patterns: tars, `{000..099}.tar`, `*.tar`, folders of tars; parquet files with the images inside, or folders
        of them; `.csv`, `.tsv` or `.parquet` tables of images and captions, or a folder with one of them;
        `tfds:name/split`; folders of images, with captions beside them unless `images_only`.
      images_only: whether captions aren't needed.
      reading: which columns hold images, captions and ids.

    Raises:
      InputError: a source is missing, empty, ambiguous or named twice.
    """
    expanded = _expand(patterns)
    finder = _Finder(reading, images_only, _read_footers(path for path, _ in expanded if _is_parquet(path)))
    ways: list[tuple[str, str]] = []
    for path, pattern in expanded:
        done = len(finder.found)
        finder.add(path)
        ways += [(source, pattern) for source, _ in finder.found[done:]]
    tars.check_repeats(ways)
    finder.check()
    return Sources(_named(finder.found), finder.facts, finder.passed_over)


def _expand(patterns: Sequence[str]) -> list[tuple[str, str]]:
    """The paths that patterns match, each with its pattern."""
    expanded: list[tuple[str, str]] = []
    for pattern in storage.split_joined(patterns):
        paths = [pattern] if pattern.startswith(tfds_datasets.PREFIX) else storage.expand(pattern)
        expanded += [(path, pattern) for path in paths]
    return expanded


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


class _Finder:
    """Collects the sources at paths.

    Args:
      reading: which columns to read.
      images_only: whether captions aren't needed.
      footers: of the parquet files among the paths.

    Attributes:
      found: the path of each source, and its units.
      facts: as in `Sources`.
      passed_over: likewise.
    """

    def __init__(self, reading: Reading, images_only: bool, footers: _Footers) -> None:
        self._reading, self._images_only, self._footers = reading, images_only, footers
        self.found: list[tuple[str, Sequence[Source]]] = []
        self.facts: list[dict[str, str | int]] = []
        self.passed_over: Counter[str] = Counter()
        self._has_tables = False

    def add(self, path: str) -> None:
        """Adds what is at a path."""
        if path.startswith(tfds_datasets.PREFIX):
            self._add_rows(tfds_datasets.open_split(path, need_caption=not self._images_only))
        elif storage.is_folder(path):
            self._add_folder(storage.Folder(path.rstrip("/") or path))
        elif path.lower().endswith(caption_tables.SUFFIXES) or self._is_table(path):
            self._add_table(path)
        else:
            self._add_tars(tars.find_tars([path]))

    def _add_tars(self, paths: Sequence[str]) -> None:
        image, caption = (
            None if one is None else one.lower().lstrip(".")
            for one in (self._reading.image_ext, self._reading.caption_ext)
        )
        self.found += [(path, [TarSource(path, image, caption)]) for path in paths]

    def _is_table(self, path: str) -> bool:
        """Whether a file that isn't named as one is a table, by its first bytes."""
        if path.endswith(".tar"):
            return False
        kind = file_kinds.kind_of_file(path)
        if kind == "a parquet file":
            self._footers |= _read_footers([path])
        return kind in ("a text file", "a JSON file", "a parquet file")

    def check(self) -> None:
        """Checks that options for tables and tars have some, and that not all sources are broken.

        Raises:
          InputError: otherwise.
        """
        broken = [unit for _, units in self.found for unit in units if isinstance(unit, BrokenSource)]
        if broken and len(broken) == len(self.found):
            raise broken[0].error
        has_tars = any(isinstance(unit, TarSource) for _, units in self.found for unit in units)
        for name, value in vars(self._reading).items():
            noun, there = ("tar", has_tars) if name.endswith("_ext") else ("table", self._has_tables)
            if value is not None and not there:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is {value!r}, but none of the sources is a {noun}; leave it out")

    def _add_rows(self, whole: CaptionTable | TfdsSplit) -> None:
        self.found.append((whole.path, [RowRange(whole, *span) for span in spans(len(whole))]))
        self.facts.append(whole.facts())

    def _add_table(self, path: str) -> None:
        """Adds a table, or a parquet file with the images inside."""
        footer = self._footers.get(path)
        if isinstance(footer, InputError):
            self.found.append((path, [BrokenSource(path, footer)]))
        elif footer is not None and self._has_images(path):
            whole = image_parquet.open_parquet(path, *footer, self._reading, need_caption=not self._images_only)
            self.found.append((path, [RowRange(whole, *span) for span in spans(len(whole), whole.groups)]))
        else:
            types = None if footer is None else footer[1]
            is_json = path.lower().endswith(json_tables.SUFFIXES) or file_kinds.kind_of_file(path) == "a JSON file"
            needs = {"is_json": types is None and is_json, "need_caption": not self._images_only}
            self._add_rows(caption_tables.open_table(path, types, self._reading, **needs))
        self._has_tables = True

    def _add_folder(self, at: storage.Folder) -> None:
        sizes = dict(sorted(at.sizes().items()))
        hidden = {name for name in sizes if storage.is_hidden(name)}
        names = [name for name in sizes if name not in hidden]
        if inside := tars.in_folder(at, names):
            self._add_tars(inside)
            self.passed_over += Counter({console.HIDDEN: sum(name.endswith(".tar") for name in hidden)})
            return
        storage.check_finished(at)
        footers = _read_footers(at.join(name) for name in names if _is_parquet(name))
        self._footers |= footers
        if any(self._has_images(path) for path in footers):
            self._add_parquets(at, sizes, footers)
            return
        tables = [at.join(name) for name in names if "/" not in name and name.lower().endswith(_LISTED)]
        usable = [path for path in tables if not _is_parquet(path) or self._has_paths(path)]
        if len(usable) > 1:
            raise InputError(
                f"{at}: holds {len(usable)} tables, {usable[0]} and {usable[1]} among them; name the one to embed"
            )
        try:
            if not tables:
                self._add_images(at, sizes, hidden)
            else:
                self._add_table((usable or tables)[0])
        except NoColumnError as error:  # a downloader's log, or another list beside images
            try:
                self._add_images(at, sizes, hidden)
            except InputError:
                raise error from None

    def _add_parquets(self, at: storage.Folder, sizes: Mapping[str, int], footers: _Footers) -> None:
        """Adds the parquet files in a folder that have images inside; others are passed over."""
        chosen = {path for path, footer in footers.items() if isinstance(footer, InputError) or self._has_images(path)}
        for path in sorted(chosen):
            self._add_table(path)
        self.passed_over += image_folders.count_by_ending(name for name in sizes if at.join(name) not in chosen)

    def _add_images(self, at: storage.Folder, sizes: Mapping[str, int], hidden: Collection[str]) -> None:
        images, facts = image_folders.open_folder(at, sizes, hidden, self._images_only, self.passed_over)
        self.found.append((at.path, images))
        self.facts.append(facts)

    def _has_images(self, path: str) -> bool:
        footer = self._footers[path]
        given = self._reading.image_column
        return not isinstance(footer, InputError) and image_parquet.image_column(path, footer[1], given) is not None

    def _has_paths(self, path: str) -> bool:
        footer = self._footers[path]
        return isinstance(footer, InputError) or caption_tables.has_paths(path, footer[1], self._reading.image_column)


# Path -> the rows of each row group and the types of the columns, or why they can't be read.
_Footers = dict[str, tuple[list[int], dict[str, pa.DataType]] | InputError]


def _read_footers(paths: Iterable[str]) -> _Footers:
    """Reads the footers of parquet files."""
    chosen = list(paths)

    def read(path: str) -> tuple[list[int], dict[str, pa.DataType]] | InputError:
        try:
            return parquet.groups_and_types(path)
        except InputError as error:
            return error

    at_a_time = storage.Folder(chosen[0]).threads if chosen else 1
    return dict(zip(chosen, threads.prefetch(read, chosen, threads=at_a_time), strict=True))


def _named(found: Sequence[tuple[str, Sequence[Source]]]) -> dict[str, Source]:
    plain = [re.sub(r"\.(csv|tsv|jsonl|ndjson|json|parquet)$", "", path, flags=re.I) for path, _ in found]
    stems = pool_names.unit_names([path.removeprefix(tfds_datasets.PREFIX) for path in plain])
    units: dict[str, Source] = {}
    for stem, (_, several) in zip(stems, found, strict=True):
        for number, source in enumerate(several):
            name = stem if len(several) == 1 else f"{stem}_{number:05}"
            while name in units:  # a tar may have the name of a part of a folder
                name += "_"
            units[name] = source
    return units
