"""Finds the sources that patterns name."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Sequence

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import pool_names, tars
from clipdata_jax.formats.sources import caption_tables, image_folders, tfds_datasets
from clipdata_jax.formats.sources.caption_tables import CaptionTable
from clipdata_jax.formats.sources.source import RowRange, Source, TarSource, spans
from clipdata_jax.formats.sources.tfds_datasets import TfdsSplit


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

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Path of each source -> its name in the pool."""
        return pool_names.pool_names(sorted({source.path for source in self.units.values()}))


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
    ways: list[tuple[str, str]] = []
    for path, pattern in _expand(patterns):
        done = len(found)
        if path.startswith(tfds_datasets.PREFIX):
            split = tfds_datasets.open_split(path, need_caption=not images_only)
            found.append((split.path, _cut(split)))
            facts.append(split.facts())
        elif (table := _table_of(path)) is not None:
            opened = caption_tables.open_table(table, *columns, need_caption=not images_only)
            found.append((table, _cut(opened)))
            facts.append(opened.facts())
        elif storage.is_folder(path) and not tars.in_folder(storage.Folder(path)):
            images, fact = image_folders.open_folder(path.rstrip("/"), images_only, passed_over)
            found.append((path.rstrip("/"), images))
            facts.append(fact)
        else:
            found += [(tar, [TarSource(tar)]) for tar in tars.find_tars([path])]
        ways += [(source, pattern) for source, _ in found[done:]]
    tars.check_repeats(ways)
    if not any(
        isinstance(unit, RowRange) and isinstance(unit.whole, CaptionTable) for _, units in found for unit in units
    ):
        for flag, column in (("image-column", image_column), ("caption-column", caption_column)):
            if column is not None:
                raise InputError(f"--{flag} is {column!r}, but none of the sources is a table; leave it out")
    return Sources(_named(found), facts, passed_over)


def _expand(patterns: Sequence[str]) -> list[tuple[str, str]]:
    """The paths that patterns match, each with its pattern."""
    expanded: list[tuple[str, str]] = []
    for pattern in storage.split_joined(patterns):
        paths = [pattern] if pattern.startswith(tfds_datasets.PREFIX) else storage.expand(pattern)
        expanded += [(path, pattern) for path in paths]
    return expanded


def _table_of(path: str) -> str | None:
    """The caption table at a path: the file, or the only one in a folder without tars; else None."""
    at = storage.Folder(path)
    if not at.is_folder():
        return path if path.lower().endswith(caption_tables.SUFFIXES) else None
    if tars.in_folder(at):
        return None
    storage.check_finished(at)
    tables = [name for name in at.files() if name.lower().endswith(caption_tables.SUFFIXES)]
    inside = [name for name in tables if not name.rpartition("/")[2].startswith(".")]
    if len(inside) > 1:
        raise InputError(
            f"{path}: holds {len(inside)} tables, {inside[0]} and {inside[1]} among them; name the one to embed"
        )
    return inside[0] if inside else None


def _cut(whole: CaptionTable | TfdsSplit) -> list[RowRange]:
    return [RowRange(whole, start, stop) for start, stop in spans(len(whole))]


def _named(found: Sequence[tuple[str, Sequence[Source]]]) -> dict[str, Source]:
    plain = [re.sub(r"\.(csv|tsv|parquet)$", "", path, flags=re.I) for path, _ in found]
    stems = pool_names.unit_names([path.removeprefix(tfds_datasets.PREFIX) for path in plain])
    units: dict[str, Source] = {}
    for stem, (_, several) in zip(stems, found, strict=True):
        for number, source in enumerate(several):
            name = stem if len(several) == 1 else f"{stem}_{number:05}"
            while name in units:  # a tar may have the name of a part of a folder
                name += "_"
            units[name] = source
    return units
