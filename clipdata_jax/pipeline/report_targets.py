"""The target pictures that a report shows: the nearest to each pair, by the rows that `score --nearest` wrote."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats import score_tables, sources
from clipdata_jax.report import page, thumbnails
from clipdata_jax.runs import manifest
from clipdata_jax.runtime import console

_SIDE = 80  # pixels of a target's picture, half of those of a pair's


def row_columns(table: score_tables.ScoreTable) -> dict[str, str]:
    """Target -> the column with the number of its nearest row, which is no score."""
    found = (re.fullmatch(r"(norm_sim_inf_(\w+))_row", name) for name in sorted(table.columns))
    return {match[2]: match[0] for match in found if match and match[1] in table.columns}


def union_columns(table: score_tables.ScoreTable) -> set[str]:
    """The columns of NormSim-infinity to a union of targets, as the tables' manifests name it."""
    found = set()
    for folder in table.folders:
        match manifest.read(folder):
            case {"options": {"norm_sim": {"union": str(name)}}}:
                found |= (
                    {f"norm_sim_inf_{name}"} if table.columns.get(f"norm_sim_inf_{name}") == folder else set()
                )
    return found


def read(
    table: score_tables.ScoreTable, targets: Mapping[str, str], rows: Collection[int]
) -> dict[int, tuple[page.Nearest, ...]]:
    """The nearest picture of each target, for some rows of the table.

    Args:
      table: has the columns of `score --nearest`.
      targets: name -> its pictures, the same that were embedded.
      rows: of the whole table.

    Returns:
      row -> one picture of each target; fewer where the row has no score.

    Raises:
      InputError: a target without such a column, or with other pictures than were scored.
    """
    columns = row_columns(table)
    nearest: dict[int, list[page.Nearest]] = {row: [] for row in rows}
    for name, path in targets.items():
        if name not in columns:
            has = ", ".join(columns) or "none"
            raise InputError(
                f"--target {name}={path}: the score tables don't say which picture of it is nearest (targets with"
                f" such a column: {has}); score it with --nearest"
            )
        numbers = _numbers(table, columns[name], rows)
        pictures, count = _pictures(path, set(numbers.values()))
        told = manifest.read(table.columns[columns[name]]).get("targets")
        scored = told.get(name) if isinstance(told, dict) else None
        least = max(numbers.values(), default=-1) + 1
        if count != (scored or max(count, least)):
            raise InputError(
                f"--target {name}={path}: holds {console.counted(count, 'picture')}, but when it was scored it had"
                f" {scored or f'at least {least}'}; name the pictures that were embedded, none left out"
            )
        for row, number in numbers.items():
            nearest[row].append(page.Nearest(name, pictures[number]))
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


def _pictures(path: str, wanted: Collection[int]) -> tuple[dict[int, thumbnails.Thumbnail | str], int]:
    """Thumbnails of some pictures by their number, in the order in which `embed` takes them, and how many there are."""
    units = sources.find_sources([path], images_only=True).units.values()
    found: dict[int, thumbnails.Thumbnail | str] = {}
    start = 0
    with console.bar(total=len(units), unit="part", name="targets") as bar:
        for source in units:
            if isinstance(source, sources.Rows) and not any(
                start <= number < start + source.stop - source.start for number in wanted
            ):
                start += source.stop - source.start  # reading them would be all the work
            else:
                for sample in source.samples():
                    if start in wanted:
                        picture = sample.image()
                        found[start] = (
                            "no picture" if picture is None else thumbnails.make(picture, side=_SIDE)
                        )
                    start += 1
            bar.update(1)
    return found, start
