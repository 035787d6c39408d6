"""Columns joined to a pool by uid: scores from elsewhere, in parquet or .npy files, in any order."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config.base import as_identifier
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, parquet, uids
from clipdata_jax.runtime import threads


class ExternalColumns:
    """Columns by uid, in memory: 16 bytes a row, and 4 or 8 for each column.

    Attributes:
      path: the file.
      columns: name -> scores, float32 or float64, in the order of the sorted uids; NaN is null.
    """

    def __init__(self, path: str, uid: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        order = np.lexsort((uid["f1"], uid["f0"]))
        self.path, self._uid = path, uid[order]
        # float32 would round a double below 0.28 up to it, and merge row numbers above 2^24.
        kinds = {name: np.result_type(values.dtype, np.float32) for name, values in columns.items()}
        self.columns = {name: values.astype(kinds[name])[order] for name, values in columns.items()}
        twice = np.flatnonzero(self._uid[1:] == self._uid[:-1])
        if len(twice):
            text, row = uids.to_hex(self._uid[twice[:1]])[0], order[twice[0] + 1]
            raise InputError(f"{path}: row {row}: uid {text} occurs before; each uid may occur once")
        self._found = np.zeros(len(uid), bool)

    def of(self, uid: np.ndarray, name: str) -> np.ndarray:
        """Looks up the scores of some pairs; NaN where the file has no row for one."""
        # Sorted lookups touch neighbouring memory: several times faster than random ones.
        order = np.argsort(uid["f0"])
        at = uids.find(self._uid, uid[order])
        there = at >= 0
        self._found[at[there]] = True
        scores = np.full(len(uid), np.nan, self.columns[name].dtype)
        scores[order[there]] = self.columns[name][at[there]]
        return scores

    def facts(self) -> dict[str, int]:
        """Counts the file's rows, and those of no pair that was looked up."""
        return {"rows": len(self._found), "not_in_the_pool": int((~self._found).sum())}


@dataclasses.dataclass(frozen=True)
class ColumnFile:
    """A file of columns, of which only the names are in memory.

    Attributes:
      path: a parquet file, a folder of them, or a .npy file.
      parts: the files.
      names: the numeric columns of a parquet file, as identifiers; the single column of a .npy file is named after it.
      renamed: the name in the file of each column that is named otherwise here.
    """

    path: str
    parts: tuple[str, ...]
    names: tuple[str, ...]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, names: Sequence[str]) -> ExternalColumns:
        """Reads some of the columns.

        Raises:
          InputError: the file can't be read, or a uid is invalid or occurs twice.
        """
        read = _read_npy if self.path.endswith(".npy") else _read_parquet
        each = functools.partial(read, names={name: self.renamed.get(name, name) for name in names})
        found = list(threads.prefetch(each, self.parts, threads=storage.Folder(self.path).threads))
        uid = np.concatenate([part[0] for part in found])
        return ExternalColumns(
            self.path, uid, {name: np.concatenate([part[1][name] for part in found]) for name in names}
        )


def open_columns(paths: Sequence[str]) -> tuple[ColumnFile, ...]:
    """Opens files of columns; reads their columns' names.

    A parquet file has a column `uid` of 32 hex digits, or `uid_hi` and `uid_lo`, and numeric columns; a .npy file is
    structured: two uint64 fields, the uid's halves, and a numeric one.

    Args:
      paths: parquet files, folders of them, .npy files.

    Raises:
      InputError: a file is missing or of another form, or holds no numeric column.
    """
    sources = []
    for path in paths:
        at = storage.Folder(path)
        parts = tuple(at.files(".parquet")) if at.is_folder() else (path,)
        if not parts:
            raise InputError(f"{path}: holds no .parquet file; expected columns to join, with a column uid")
        given = _npy_names(path) if path.endswith(".npy") else _parquet_names(parts)
        names = _as_identifiers(path, given)
        renamed = {name: before for name, before in names.items() if name != before}
        sources.append(ColumnFile(path, parts, tuple(names), renamed))
    return tuple(sources)


def check_shared_names(sources: Sequence[ColumnFile], taken: Collection[str], names: Sequence[str]) -> None:
    """Checks that each name refers to one column only.

    Args:
      sources: files of columns.
      taken: the columns of the score tables.
      names: the columns to check.

    Raises:
      InputError: a name is ambiguous.
    """
    for name in names:
        holders = ["the score tables"] if name in taken else []
        holders += [source.path for source in sources if name in source.names]
        if len(holders) > 1:
            raise InputError(f"column {name!r} is in {' and in '.join(holders)}; rename it in all but one")


def _as_identifiers(path: str, given: Sequence[str]) -> dict[str, str]:
    """Names columns as rules can: identifier -> name in the file, "vit_b_32" -> "vit-b-32"."""
    names: dict[str, str] = {}
    for before in given:
        name = before if before.isidentifier() else as_identifier(before)
        if name in names:
            raise InputError(f"{path}: columns {names[name]!r} and {before!r} would both be named {name}; rename one")
        names[name] = before
    return names


def _parquet_names(parts: Sequence[str]) -> tuple[str, ...]:
    names: tuple[str, ...] = ()
    footer = functools.partial(parquet.rows_and_types, advice="--columns takes parquet and npy")
    footers = threads.prefetch(footer, parts, threads=storage.Folder(parts[0]).threads)
    for path, (_, types) in zip(parts, footers, strict=True):
        if "uid" not in types and not set(uids.HALVES) <= set(types):
            raise InputError(
                f"{path}: has no column uid, nor uid_hi and uid_lo, to join its rows by; it has {', '.join(types)}"
            )
        here = tuple(name for name, kind in types.items() if parquet.is_number(kind) and name not in uids.HALVES)
        if not here:
            raise InputError(f"{path}: has no numeric column; it has {', '.join(types)}")
        if names and here != names:
            raise InputError(
                f"{path}: its numeric columns are {', '.join(here)}, those of the files before it {', '.join(names)}"
            )
        names = here
    return names


def _read_parquet(path: str, names: Mapping[str, str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    there = parquet.rows_and_types(path)[1]
    uid_columns = uids.HALVES if set(uids.HALVES) <= set(there) else ("uid",)
    table = parquet.read(path, [*uid_columns, *names.values()])
    parquet.check_numbers(path, table, list(names.values()))
    return uids.from_table(table, path), {name: table[before].to_numpy() for name, before in names.items()}


def _npy_names(path: str) -> tuple[str, ...]:
    stem = os.path.basename(path).removesuffix(".npy")
    _load_npy(path)
    return (stem,)


def _read_npy(path: str, names: Mapping[str, str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    array = _load_npy(path)
    high, low, score = array.dtype.names or ()
    return uids.join_halves(array[high], array[low]), dict.fromkeys(names, array[score])


def _load_npy(path: str) -> np.ndarray:
    array = arrays.read_npy(path, "of uids and scores")
    kinds = [array.dtype[name] for name in array.dtype.names or ()]
    if array.ndim != 1 or len(kinds) != 3 or kinds[:2] != [np.uint64] * 2 or kinds[2].kind not in "fiu":
        raise InputError(f"{path}: holds {array.dtype}, expected uids and scores of dtype u8,u8,f4 in one dimension")
    return array
