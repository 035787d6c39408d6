"""Columns joined to a pool by uid or another id: scores from elsewhere, in parquet or .npy files, in any order."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipdata_jax import storage
from clipdata_jax.config.base import as_identifier
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, parquet, uids
from clipdata_jax.formats.ids import as_text, from_column, from_table
from clipdata_jax.runtime import threads

_EXACT = 2**53
"""From here on, neighbouring integers are the same float64."""
_NO_ID = np.zeros(1, uids.DTYPE)[0]


class _Rows(NamedTuple):
    """Rows of a file: their ids, u8,u8, and their columns; `without_id` of them are left out."""

    ids: np.ndarray
    columns: dict[str, np.ndarray]
    without_id: int = 0


class ExternalColumns:
    """Columns by id, in memory: 16 bytes a row, and 2 to 8 for each column.

    Attributes:
      path: the file.
      columns: name -> scores, float16, float32 or float64, in the order of the sorted ids; NaN is null.
    """

    def __init__(self, path: str, on: str, rows: _Rows) -> None:
        order = np.lexsort((rows.ids["f1"], rows.ids["f0"]))
        self.path, self._ids, self._without_id = path, rows.ids[order], rows.without_id
        self.columns = {name: values[order] for name, values in rows.columns.items()}
        twice = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(twice):
            text, row = uids.to_hex(self._ids[twice[:1]])[0], order[twice[0] + 1]
            named = f"uid {text}" if on == "uid" else f"its {on}"
            raise InputError(f"{path}: row {row}: {named} occurs before; each {on} may occur once")
        self._used = np.zeros(len(rows.ids), bool)
        self._found: dict[int, int] = {}

    def of(self, ids: np.ndarray, name: str, block: int = 0) -> np.ndarray:
        """Looks up the scores of the pairs of a block of the pool; NaN where the file has no row for one.

        Args:
          ids: shape (n,), u8,u8.
          name: the column.
          block: the block's number, by which `facts` counts its pairs once, however often they are looked up.
        """
        # Sorted lookups touch neighbouring memory: several times faster than random ones.
        order = np.argsort(ids["f0"])
        at = uids.find(self._ids, ids[order])
        there = at >= 0
        self._used[at[there]] = True
        self._found[block] = int(np.count_nonzero(there))
        scores = np.full(len(ids), np.nan, self.columns[name].dtype)
        scores[order[there]] = self.columns[name][at[there]]
        return scores

    def facts(self) -> dict[str, int]:
        """Counts the file's rows, those of no pair that was looked up, and the pairs that have a row."""
        rows, used = len(self._used) + self._without_id, int(self._used.sum())
        return {"rows": rows, "not_in_the_pool": rows - used, "pairs_found": sum(self._found.values())}


@dataclasses.dataclass(frozen=True)
class ColumnFile:
    """A file of columns, of which only the names are in memory.

    Attributes:
      path: a parquet file, a folder of them, or a .npy file.
      parts: the files.
      on: the column whose values are the rows' ids.
      names: the numeric columns that all parts have, as identifiers; that of a .npy file is named after the file.
      renamed: the name in the file of each column that is named otherwise here.
      unusable: what is wrong with each of the columns that aren't numbers.
      texts: columns of text that all parts have, likewise; they can name groups.
    """

    path: str
    parts: tuple[str, ...]
    on: str
    names: tuple[str, ...]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unusable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()

    def read(self, names: Sequence[str]) -> ExternalColumns:
        """Reads some of the columns; equal texts become equal numbers, float64, from 0 on.

        Raises:
          InputError: the file can't be read, an id is invalid or occurs twice, or an integer is too large for float64.
        """
        given = {name: self.renamed.get(name, name) for name in names}
        read = _read_npy if self.path.endswith(".npy") else functools.partial(_read_parquet, on=self.on)
        each = functools.partial(read, names=given)
        found = list(threads.prefetch(each, self.parts, threads=storage.Folder(self.path).threads))
        columns = {name: np.concatenate([part.columns[name] for part in found]) for name in names}
        columns |= {name: _numbered(columns[name]) for name in names if name in self.texts}
        ids = np.concatenate([part.ids for part in found])
        return ExternalColumns(self.path, self.on, _Rows(ids, columns, sum(part.without_id for part in found)))


@dataclasses.dataclass(frozen=True)
class PoolIds:
    """The ids that a pool's pairs have in a column of its metadata, to join columns by.

    Attributes:
      folder: the metadata, parquet files of the names and rows of the score table's parts.
      on: the column.
      uid_column: the column that the pairs' uids are from.
    """

    folder: str
    on: str
    uid_column: str = "uid"

    def file(self, part: str) -> str:
        """The metadata of a part of the score table."""
        return storage.join(self.folder, f"{part}.parquet")

    def read(self, part: str, uid: np.ndarray) -> np.ndarray:
        """Reads the ids of a part of the score table, u8,u8; (0, 0) where there is none.

        Args:
          part: its name.
          uid: its uids.

        Raises:
          InputError: the file can't be read, lacks the column, or has other rows than the part.
        """
        path = self.file(part)
        names = parquet.rows_and_types(path)[1]
        known = [self.uid_column] if self.uid_column in names else []
        table = parquet.read(path, list(dict.fromkeys([self.on, *known])))[: len(uid)]  # score has a --limit
        same = len(table) == len(uid)
        if same and known:
            same = np.array_equal(from_column(table[self.uid_column], path, name=self.uid_column).uid, uid)
        if not same:
            raise InputError(f"{path}: its rows are not those of the score table; name the metadata that was scored")
        return _hashed(path, self.on, table[self.on])


def open_columns(paths: Sequence[str], on: str = "uid") -> tuple[ColumnFile, ...]:
    """Opens files of columns; reads their columns' names.

    A parquet file has a column `uid` of 32 hex digits, or `uid_hi` and `uid_lo`, and columns of numbers or booleans; a
    .npy file is structured: two uint64 fields, the uid's halves, and a numeric one.

    Args:
      paths: parquet files, folders of them, .npy files; as NAME=PATH, each column is called NAME_column.
      on: the column of the parquet files that holds the ids, if not the uid.

    Raises:
      InputError: a file is missing or of another form, or holds no column of numbers or text.
    """
    sources = []
    for given_path in paths:
        prefix, path = _split_prefix(given_path)
        at = storage.Folder(path)
        parts = tuple(at.files(".parquet")) if at.is_folder() else (path,)
        if not parts:
            raise InputError(f"{path}: holds no .parquet file; expected columns to join, with a column {on}")
        if path.endswith(".npy") and on != "uid":
            raise InputError(f"{path}: a .npy file holds uids; --on {on} takes parquet files")
        given, texts, other = _npy_names(path) if path.endswith(".npy") else _parquet_names(parts, on)
        names = {prefix + name: before for name, before in _as_identifiers(path, given).items()}
        words = {prefix + as_identifier(before): before for before in texts}
        words = {name: before for name, before in words.items() if name not in names}
        renamed = {name: before for name, before in {**names, **words}.items() if name != before}
        wrong = {prefix + name: reason for name, reason in other.items()}
        sources.append(ColumnFile(path, parts, on, tuple(names), renamed, wrong, tuple(words)))
    return tuple(sources)


def _split_prefix(given: str) -> tuple[str, str]:
    """Splits NAME=PATH to what its columns' names begin with, and the path."""
    name, sign, path = given.partition("=")
    # An equals sign after a slash belongs to a path, as in runs/lr=1/scores.
    if not sign or "/" in name:
        return "", given
    if not name.isidentifier() or not path:
        raise InputError(f"--columns is {given!r}, expected a file, or NAME=FILE with a plain word as the name")
    return f"{name}_", path


def first_id(path: str, on: str) -> str:
    """The first id in a parquet file, for messages."""
    table = next(parquet.iterate(path, [on], 1))
    return repr(table[on][0].as_py())[:60] if len(table) else "none"


def check_usable(
    sources: Sequence[ColumnFile], taken: Collection[str], names: Sequence[str], *, texts: bool = False
) -> None:
    """Checks that each name refers to one column, and to numbers.

    Args:
      sources: files of columns.
      taken: the columns of the score tables.
      names: the columns to check.
      texts: whether they may also be text.

    Raises:
      InputError: a name is ambiguous, or its column can't be used.
    """
    for name in names:
        holders = ["the score tables"] if name in taken else []
        holders += [one.path for one in sources if name in one.names or (texts and name in one.texts)]
        if len(holders) > 1:
            raise InputError(
                f"column {name!r} is in {' and in '.join(holders)}; rename it in all but one, or call it"
                f" NAME_{name} by --columns NAME=FILE"
            )
        for source in sources:
            if not holders and name in source.unusable:
                raise InputError(source.unusable[name])


def _as_identifiers(path: str, given: Sequence[str]) -> dict[str, str]:
    """Names columns as rules can: identifier -> name in the file, "vit_b_32" -> "vit-b-32"."""
    names: dict[str, str] = {}
    for before in given:
        name = before if before.isidentifier() else as_identifier(before)
        if name in names:
            raise InputError(f"{path}: columns {names[name]!r} and {before!r} would both be named {name}; rename one")
        names[name] = before
    return names


def _parquet_names(parts: Sequence[str], on: str) -> tuple[list[str], list[str], dict[str, str]]:
    """The columns of numbers and those of text that all parts have, and why each of the others isn't numbers."""
    footer = functools.partial(parquet.rows_and_types, advice="--columns takes parquet and npy")
    footers = threads.prefetch(footer, parts, threads=storage.Folder(parts[0]).threads)
    tables = {path: types for path, (_, types) in zip(parts, footers, strict=True)}
    for path, types in tables.items():
        if on not in types and not (on == "uid" and set(uids.HALVES) <= set(types)):
            halves = ", nor uid_hi and uid_lo," if on == "uid" else ""
            raise InputError(
                f"{path}: has no column {on}{halves} to join its rows by; it has {', '.join(types)}; --on NAME joins by"
                " a column that it has in common with the pool's metadata"
            )
    names: list[str] = []
    texts: list[str] = []
    wrong: dict[str, str] = {}
    for name in dict.fromkeys(name for types in tables.values() for name in types):
        if name == on or name in uids.HALVES:
            continue
        odd = [path for path in parts if not _is_number(tables[path].get(name))]
        if not odd:
            names.append(name)
            continue
        if all(_is_text(types.get(name)) for types in tables.values()):
            texts.append(name)
        if name in tables[odd[0]]:
            wrong[name] = f"{odd[0]}: column {name!r} holds {str(tables[odd[0]][name])[:60]}, expected numbers"
        else:
            wrong[name] = f"{odd[0]}: has no column {name!r}, which other files beside it have"
    if not names and not texts:
        every = "" if len(parts) == 1 else " that all files beside it have"
        raise InputError(f"{parts[0]}: has no numeric column{every}; it has {', '.join(tables[parts[0]])}")
    return names, texts, wrong


def _is_number(kind: pa.DataType | None) -> bool:
    return kind is not None and (parquet.is_number(kind) or pa.types.is_boolean(kind))


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _read_parquet(path: str, names: Mapping[str, str], on: str) -> _Rows:
    there = parquet.rows_and_types(path)[1]
    by = [on] if on != "uid" else list(uids.HALVES) if set(uids.HALVES) <= set(there) else ["uid"]
    table = parquet.read(path, list(dict.fromkeys([*by, *names.values()])))
    columns = {
        name: (_hashed if _is_text(there[before]) else _numbers)(path, before, table[before])
        for name, before in names.items()
    }
    if on == "uid":
        return _Rows(from_table(table, path).uid, columns)
    ids = _hashed(path, on, table[on])
    has_id = ids != _NO_ID
    return _Rows(ids[has_id], {name: values[has_id] for name, values in columns.items()}, int((~has_id).sum()))


def _numbers(path: str, name: str, column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    return _as_floats(path, name, column.to_numpy(), integers=pa.types.is_integer(column.type))


def _as_floats(path: str, name: str, values: np.ndarray, *, integers: bool) -> np.ndarray:
    """Scores in the file's own precision, to which a rule's numbers are rounded; integers as float64.

    float32 would round a double below 0.28 up to it, and merge row numbers above 2^24.
    """
    if not integers:
        return values.astype(values.dtype.newbyteorder("="))
    exact = values.astype(np.float64)
    if (np.abs(exact) >= _EXACT).any():
        raise InputError(
            f"{path}: column {name!r} holds integers beyond 2^53, which a rule can't tell from their neighbours;"
            " leave it out, or store it divided"
        )
    return exact


def _hashed(path: str, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """The ids of rows as 128 bits each, u8,u8; (0, 0) where there is none."""
    texts = as_text(column, path, name)
    has_id = pc.fill_null(pc.greater(pc.binary_length(texts), 0), False)
    found = np.full(len(texts), _NO_ID)
    found[has_id.to_numpy(zero_copy_only=False)] = from_column(texts.filter(has_id), path, name=name).uid
    return found


def _numbered(ids: np.ndarray) -> np.ndarray:
    """The number of each id among all different ones, from 0 on, float64; NaN where there is none."""
    order = np.lexsort((ids["f1"], ids["f0"]))
    numbers = np.empty(len(ids))
    numbers[order] = np.cumsum(uids.first_of_each(ids[order])) - 1
    numbers[ids == _NO_ID] = np.nan
    return numbers


def _npy_names(path: str) -> tuple[list[str], list[str], dict[str, str]]:
    _load_npy(path)
    return [os.path.basename(path).removesuffix(".npy")], [], {}


def _read_npy(path: str, names: Mapping[str, str]) -> _Rows:
    array = _load_npy(path)
    high, low, score = array.dtype.names or ()
    values = _as_floats(path, score, array[score], integers=array.dtype[score].kind in "iu")
    return _Rows(uids.join_halves(array[high], array[low]), dict.fromkeys(names, values))


def _load_npy(path: str) -> np.ndarray:
    array = arrays.read_npy(path, "of uids and scores")
    kinds = [array.dtype[name] for name in array.dtype.names or ()]
    if array.ndim != 1 or len(kinds) != 3 or kinds[:2] != [np.uint64] * 2 or kinds[2].kind not in "fiu":
        raise InputError(f"{path}: holds {array.dtype}, expected uids and scores of dtype u8,u8,f4 in one dimension")
    return array
