"""Inputs of `clipdata report` from the pool: images and captions of pairs, caption statistics, targets."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipdata_jax.config import Reading
from clipdata_jax.errors import InputError
from clipdata_jax.filters.languages import Languages
from clipdata_jax.formats import parquet, score_tables, tars, uids
from clipdata_jax.formats.sample_uids import BYTE_ORDER_MARK, json_fields, sample_uid
from clipdata_jax.formats.sources import discovery
from clipdata_jax.formats.sources.source import RowRange, Source
from clipdata_jax.report import page, thumbnails
from clipdata_jax.report.caption_statistics import Caption
from clipdata_jax.report.duplicates import DuplicateRows
from clipdata_jax.runs import manifest
from clipdata_jax.runtime import console


def find_pool(patterns: Sequence[str], reading: Reading) -> discovery.Sources:
    """Finds the sources of a pool; those of images without captions, too.

    Raises:
      InputError: as `discovery.find_sources`.
    """
    try:
        return discovery.find_sources(patterns, images_only=False, reading=reading)
    except InputError:
        with contextlib.suppress(InputError):
            return discovery.find_sources(patterns, images_only=True, reading=reading)
        raise


def read_pairs(
    table: score_tables.ScoreTable,
    pool: discovery.Sources,
    *,
    shown: Collection[int],
    described: Collection[int],
    skipped: list[str] | None = None,
) -> tuple[dict[int, page.Pair], dict[int, Caption]]:
    """Reads the pool once, to the end or until all rows are found.

    Args:
      table: names the rows' uids.
      pool: the sources.
      shown: rows whose images and captions are wanted.
      described: rows whose caption length and language are wanted; rows may be in both.
      skipped: takes the reasons why sources could not be read; None: the first such is an error.

    Returns:
      row -> its pair, and row -> its caption's length and language, for rows that the pool holds.

    Raises:
      InputError: a source is damaged.
    """
    wanted: dict[str, list[int]] = {}
    rows = sorted({*shown, *described})
    for row, uid in uids_of(table, rows).items():
        wanted.setdefault(uid, []).append(row)
    pairs: dict[int, page.Pair] = {}
    captions: dict[int, Caption] = {}
    languages = _languages()
    names = pool.names
    with console.bar(total=len(pool.units), unit="unit", name="images") as bar:
        for source in pool.units.values():
            if not wanted:
                break
            name = names[source.path]
            for sample in _samples(source, skipped):
                found = wanted.pop(_uid(name, sample), ())
                here = [row for row in found if row in shown]
                if here:
                    pairs.update(dict.fromkeys(here, _pair(name, sample)))
                if there := [row for row in found if row in described]:
                    captions.update(dict.fromkeys(there, _described(_caption(sample), languages)))
            bar.update(1)
    return pairs, captions


def _languages() -> Languages | None:
    """The small model of fastText; None if its extra isn't installed."""
    try:
        return Languages()
    except InputError:
        return None


def _described(caption: str, languages: Languages | None) -> Caption:
    return Caption(len(caption.split()), None if languages is None else languages.of(caption))


def _samples(source: Source, skipped: list[str] | None) -> Iterator[tars.RawSample]:
    try:
        yield from source.samples()
    except InputError as error:
        if skipped is None:
            raise InputError(f"{error} (or use --on-bad skip)") from error
        skipped.append(str(error))


def uids_of(table: score_tables.ScoreTable, rows: Iterable[int]) -> dict[int, str]:
    """The uids of some rows of the whole table, as 32 hex digits; reads only the parts that hold them."""
    ends = np.cumsum(table.rows)
    order = np.array(sorted(rows), np.int64)
    part_of = np.searchsorted(ends, order, side="right")
    found = np.empty(len(order), uids.DTYPE)
    several = np.unique(part_of).tolist()
    read = table.ahead(table.read_uids, [table.parts[part] for part in several])
    for part, uid in zip(several, read, strict=True):
        here = part_of == part
        found[here] = uid[order[here] - (ends[part] - table.rows[part])]
    return dict(zip(order.tolist(), uids.to_hex(found), strict=True))


def _uid(source: str, sample: tars.RawSample) -> str:
    try:
        return sample_uid(source, sample.key, json_fields(sample.members))
    except InputError:  # `embed` stops at such a sample or leaves it out, so it has no score
        return ""


def _pair(source: str, sample: tars.RawSample) -> page.Pair:
    try:
        image = sample.image()
        shown = "no image" if image is None else thumbnails.make(image)
    except InputError:  # a file that a table names
        shown = "image missing"
    return page.Pair(_caption(sample), shown, key=sample.key, source=source)


def _caption(sample: tars.RawSample) -> str:
    """The caption that `embed` uses, valid or not."""
    if "txt" in sample.members:
        return sample.members["txt"].decode("utf-8", "replace").lstrip(BYTE_ORDER_MARK)
    fields = object_of(sample.members.get("json", b""))
    several = fields.get("captions")
    caption = fields.get("caption")
    if caption is None and isinstance(several, list) and several:
        caption = several[0]
    return caption if isinstance(caption, str) else ""


def object_of(data: bytes) -> dict[str, Any]:
    """Parses untrusted bytes as a JSON object; {} if they are anything else."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_duplicates(path: str, table: score_tables.ScoreTable) -> DuplicateRows:
    """Reads a table of near-duplicates: its rows that the score tables have, in the order of the table.

    Raises:
      InputError: it is damaged or no such table, or of another pool.
    """
    names = ["uid", "group", "cosine", "kept", "against", "against_row"]
    read = parquet.read(path, names, "name the table that `clipdata dedup` wrote beside its subset")
    parquet.check_numbers(path, read, ["group", "cosine", "against_row"])
    uid = uids.from_hex(read["uid"], path)
    order = np.lexsort((uid["f1"], uid["f0"]))
    index, row, start = uids.UidIndex(uid[order]), np.full(len(uid), -1), 0
    for part in table.ahead(table.read_uids, table.parts):
        at = index.find(part)
        row[order[at[at >= 0]]] = start + np.flatnonzero(at >= 0)
        start += len(part)
    there = np.flatnonzero(row >= 0)
    if len(uid) and not len(there):
        raise InputError(f"{path}: none of its {len(uid):,} uids is in {table.folders[0]}; is it of another pool?")
    group, near_row = (pc.fill_null(read[name], -1).to_numpy().astype(np.int64) for name in ("group", "against_row"))
    near = np.array(read["against"].to_pylist(), object)
    cosine = read["cosine"].to_numpy().astype(np.float32)
    is_head = pc.fill_null(read["kept"].cast(pa.bool_()), False).to_numpy().astype(bool)
    if group.max(initial=-1) >= len(uid):
        raise InputError(f"{path}: names group {group.max()}, more than it has rows; it was not written by `dedup`")
    return DuplicateRows(row[there], group[there], cosine[there], is_head[there], near[there], near_row[there])


_MOST_BINS = 201  # of cosines, a hundredth wide


def read_nearest_others(path: str) -> list[tuple[float, int]]:
    """The (cosine, pairs) in the manifest of a table of near-duplicates; [] if it has none, or something else."""
    bins = manifest.read_facts(path).get("nearest")
    found = []
    for one in bins[:_MOST_BINS] if isinstance(bins, list) else ():
        match one:
            case [float(cosine), int(pairs)] if -1 <= cosine <= 1 and pairs >= 0:
                found.append((cosine, pairs))
            case _:
                return []
    return sorted(found)


def read_near(
    found: DuplicateRows, sets: Mapping[str, str], rows: Collection[int]
) -> dict[int, tuple[page.Nearest, ...]]:
    """The images of other sets that some rows are too near to.

    Args:
      found: the table.
      sets: name -> its images, the same that were embedded.
      rows: of the pool.

    Raises:
      InputError: the table has no set of that name, or it holds fewer images.
    """
    nearest: dict[int, tuple[page.Nearest, ...]] = {}
    known = sorted({name for name in found.near if name is not None})
    for name, path in sets.items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"--against {name}={path}: no pair is too near to a set of that name; there are {listed}")
        own = np.flatnonzero((found.near == name) & np.isin(found.row, list(rows)))
        images, count = _images(path, set(found.near_row[own].tolist()))
        for at in own.tolist():
            number = int(found.near_row[at])
            if number not in images:
                raise InputError(
                    f"--against {name}={path}: holds {console.counted(count, 'image')}, but a pair is near number"
                    f" {number}; pass exactly the images that were embedded"
                )
            nearest[int(found.row[at])] = (page.Nearest(name, images[number]),)
    return nearest


_SIDE = 80  # pixels of a target's image, half of those of a pair's


def row_columns(table: score_tables.ScoreTable) -> dict[str, str]:
    """Target -> the column of its nearest rows, which is not a score."""
    found = (re.fullmatch(r"(norm_sim_inf_(\w+))_row", name) for name in sorted(table.columns))
    return {match[2]: match[0] for match in found if match and match[1] in table.columns}


def union_columns(table: score_tables.ScoreTable) -> set[str]:
    """The columns of NormSim-infinity to a union of targets, as the tables' manifests name it."""
    found = set()
    for folder in table.folders:
        match manifest.read_facts(folder):
            case {"options": {"norm_sim": {"union": str(name)}}}:
                found |= {f"norm_sim_inf_{name}"} if table.columns.get(f"norm_sim_inf_{name}") == folder else set()
    return found


def read_targets(
    table: score_tables.ScoreTable, targets: Mapping[str, str], rows: Collection[int]
) -> dict[int, tuple[page.Nearest, ...]]:
    """The nearest image of each target, for some rows of the table.

    Args:
      table: has the columns of `score --nearest`.
      targets: name -> its images, the same that were embedded.
      rows: of the whole table.

    Returns:
      row -> one image of each target; fewer where the row has no score.

    Raises:
      InputError: a target without such a column, or with other images than were scored.
    """
    columns = row_columns(table)
    nearest: dict[int, list[page.Nearest]] = {row: [] for row in rows}
    for name, path in targets.items():
        if name not in columns:
            has = ", ".join(columns) or "none"
            raise InputError(
                f"--target {name}={path}: the score tables have no nearest images of it (targets that have:"
                f" {has}); score it with --nearest"
            )
        numbers = _numbers(table, columns[name], rows)
        images, count = _images(path, set(numbers.values()))
        recorded = manifest.read_facts(table.columns[columns[name]]).get("targets")
        scored = recorded.get(name) if isinstance(recorded, dict) else None
        least = max(numbers.values(), default=-1) + 1
        if count != (scored or max(count, least)):
            raise InputError(
                f"--target {name}={path}: holds {console.counted(count, 'image')}, but it was scored with"
                f" {scored or f'at least {least}'}; pass exactly the images that were embedded"
            )
        for row, number in numbers.items():
            nearest[row].append(page.Nearest(name, images[number]))
    return {row: tuple(found) for row, found in nearest.items()}


def _numbers(table: score_tables.ScoreTable, column: str, rows: Collection[int]) -> dict[int, int]:
    """The column's values in some rows of the whole table; without those that are null."""
    found: dict[int, int] = {}
    start = 0
    order = np.array(sorted(rows), np.int64)
    for part, length in zip(table.parts, table.rows, strict=True):
        here = order[(order >= start) & (order < start + length)]
        if len(here):
            values = table.read_column(part, column)[here - start]
            found |= {int(row): int(at) for row, at in zip(here, values, strict=True) if np.isfinite(at)}
        start += length
    return found


def _images(path: str, wanted: Collection[int]) -> tuple[dict[int, thumbnails.Thumbnail | str], int]:
    """Thumbnails of some images by their number, in the order of `embed`, and the number of all images."""
    units = discovery.find_sources([path], images_only=True).units.values()
    found: dict[int, thumbnails.Thumbnail | str] = {}
    start = 0
    with console.bar(total=len(units), unit="part", name="targets") as bar:
        for source in units:
            if isinstance(source, RowRange) and not any(
                start <= number < start + source.stop - source.start for number in wanted
            ):
                start += source.stop - source.start  # reading them would be all the work
            else:
                for sample in source.samples():
                    if start in wanted:
                        image = sample.image()
                        found[start] = "no image" if image is None else thumbnails.make(image, side=_SIDE)
                    start += 1
            bar.update(1)
    return found, start
