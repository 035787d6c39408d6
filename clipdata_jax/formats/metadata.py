"""Columns of a pool's metadata, DataComp's parquet files, one at a time; and the ids that its owner has."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from clipdata_jax import storage
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.formats import ids, parquet, score_tables
from clipdata_jax.runtime import threads

_Read = TypeVar("_Read")


@dataclasses.dataclass(frozen=True)
class Part:
    """One parquet file of metadata: its path, size, number of pairs, column types, and its column of ids."""

    path: str
    bytes: int
    rows: int
    types: dict[str, pa.DataType]
    uid_column: str = "uid"


_ID_ROWS = 1 << 16  # rows of ids in memory at a time
_TEXT_ROWS = 16  # rows of scores that take as much memory as one with a caption


class Skipped:
    """The files that can't be read: the first is an error, or all are skipped and listed.

    Attributes:
      reasons: file -> why it was skipped.
    """

    def __init__(self, on_bad: OnBad = "stop") -> None:
        self._on_bad = on_bad
        self.reasons: dict[str, str] = {}

    def attempt(self, path: str, read: Callable[[], _Read]) -> _Read | None:
        """Returns the result of `read`; None if the file is skipped.

        Raises:
          InputError: the file can't be read, and on_bad is "stop".
        """
        if path in self.reasons:
            return None
        try:
            return read()
        except InputError as error:
            if self._on_bad == "stop":
                raise InputError(f"{error} (or use --on-bad skip)") from error
            self.reasons[path] = str(error)
            return None


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of a part.

    Attributes:
      uid: shape (n,), u8,u8.
      values: name -> shape (n,): str objects, or numbers in the file's dtype; embeddings have shape (n, d).
      null: name -> shape (n,), bool: where the value is missing or not finite.
      hashed: how many of the uids are made of ids of another kind.
    """

    uid: np.ndarray
    values: dict[str, np.ndarray]
    null: dict[str, np.ndarray]
    hashed: int = 0

    def take(self, rows: np.ndarray) -> Columns:
        """Some of the rows."""
        values, null = ({name: array[rows] for name, array in held.items()} for held in (self.values, self.null))
        return Columns(self.uid[rows], values, null)


def list_parts(folder: str, skipped: Skipped, uid_column: str = "uid") -> tuple[Part, ...]:
    """Lists the metadata files of a folder, sorted by name; reads their footers.

    Args:
      folder: of the files.
      skipped: takes those that can't be read.
      uid_column: their column of ids.

    Raises:
      InputError: the folder is missing, holds no metadata or an unfinished run; or a file can't be read and isn't
        skipped.
    """
    folder = folder.rstrip("/") or folder
    at = storage.Folder(folder)
    if not at.is_folder():
        what = "is a file" if at.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; expected a folder of metadata (.parquet files)")
    storage.check_finished(at)
    paths = at.files(".parquet")
    if not paths:
        found = ", ".join(at.names()[:5]) or "nothing"
        raise InputError(f"{folder}: holds {found}; expected metadata, parquet files with uid, text, ...")

    def read(path: str) -> Part | None:
        return skipped.attempt(path, functools.partial(_read_footer, path, uid_column))

    parts = tuple(part for part in threads.prefetch(read, paths, threads=at.threads) if part is not None)
    if parts:
        score_tables.check_not_scores(folder, parts[0].types)
    return parts


def _read_footer(path: str, uid_column: str) -> Part:
    rows, types = parquet.rows_and_types(path)
    return Part(path, storage.size(path), rows, types, uid_column)


def check_columns(parts: Sequence[Part], *, texts: Sequence[str], numbers: Sequence[str], what: str) -> None:
    """Checks that files have the columns that are needed, of the right types.

    Args:
      parts: the files.
      texts: text columns that are needed, besides uid.
      numbers: numeric columns that are needed.
      what: what needs them, for the message.

    Raises:
      InputError: a file lacks a column, or its type is wrong.
    """
    for part in parts:
        ids.check_name(part.path, part.types, part.uid_column)
        needed = [part.uid_column, *texts, *numbers]
        for name in needed:
            if name not in part.types:
                raise InputError(
                    f"{part.path}: column {name!r} is missing; it has {', '.join(part.types)};"
                    f" {what} needs {', '.join(needed)}"
                )
        for name in texts:
            _check_type(part, name, ("string", "large_string", "null"), "text")
        for name in numbers:
            _check_type(part, name, ("int", "uint", "float", "halffloat", "double", "null"), "numbers")


def _check_type(part: Part, name: str, good: tuple[str, ...], expected: str) -> None:
    if str(part.types[name]).rstrip("0123456789") not in good:
        raise InputError(f"{part.path}: column {name!r} holds {part.types[name]}, expected {expected}")


def read_columns(part: Part, names: Sequence[str]) -> Columns:
    """Reads the uids and the named columns of a file.

    Raises:
      InputError: the file is damaged, or a uid is missing or of a wrong kind.
    """
    table = _read(part, [part.uid_column, *names])
    values = {name: table[name].to_numpy() for name in names}
    null = {name: table[name].is_null().to_numpy() for name in names}
    for name, column in values.items():
        if column.dtype.kind == "f":
            null[name] |= np.isnan(column)
    uid, hashed = ids.from_column(table[part.uid_column], part.path, name=part.uid_column)
    return Columns(uid, values, null, hashed)


def read_numbers(parts: Sequence[Part], name: str, skipped: Skipped, done: Callable[[int], object]) -> np.ndarray:
    """Reads one numeric column of all files, in the files' dtype; NaN where a value is missing.

    Args:
      parts: the files.
      name: the column.
      skipped: takes the files that can't be read; their values are missing.
      done: called with the number of rows of each file, once it is read.
    """
    rows = sum(part.rows for part in parts)
    kinds = {part.types[name] for part in parts} - {pa.null()}
    # Before version 26, pyarrow's `to_pandas_dtype` needs pandas.
    found = [pa.array([], kind).to_numpy(zero_copy_only=False).dtype for kind in kinds]
    kind = np.result_type(np.float32, *found)
    numbers, start = np.full(rows, np.nan, kind), 0
    with contextlib.closing(ahead(functools.partial(_read, names=[name]), parts)) as read:
        for number, part in enumerate(parts):
            table = skipped.attempt(part.path, functools.partial(read, number))
            if table is not None:
                numbers[start : start + part.rows] = table[name].to_numpy().astype(kind)
            start += part.rows
            done(part.rows)
    return numbers


def ahead(read: Callable[[Part], _Read], parts: Sequence[Part]) -> threads.PassPrefetcher[_Read]:
    """Reads parts by their number; of an object store's some ahead. To be closed."""
    rows = [_TEXT_ROWS * part.rows for part in parts]
    several = storage.Folder(parts[0].path).threads_for_rows(rows) if parts else 1
    return threads.PassPrefetcher(lambda number: read(parts[number]), len(parts), several)


def _read(part: Part, names: list[str]) -> pa.Table:
    table = parquet.read(part.path, names)
    if len(table) != part.rows:
        raise InputError(f"{part.path}: has {len(table)} rows, had {part.rows} when the run began; start a new run")
    return table


class OwnerIds(NamedTuple):
    """Some rows of a file of metadata.

    Attributes:
      path: the file.
      first_row: the number of the first of the rows in it.
      uid: shape (n,), u8,u8.
      texts: their ids as text: those in the column id, else those in the column uid.
    """

    path: str
    first_row: int
    uid: np.ndarray
    texts: list[str]


def files_of(path: str) -> list[str]:
    """The files of metadata at a path: a .parquet file, or those in a folder.

    Raises:
      InputError: there is none.
    """
    at = storage.Folder(path)
    if not at.is_folder():
        return [path]
    storage.check_finished(at)
    if not (found := at.files(".parquet")):
        raise InputError(f"{path}: the folder holds no .parquet file; expected a pool's metadata")
    return found


def iterate_ids(path: str, uid_column: str = "uid") -> Iterator[OwnerIds]:
    """Yields uids and ids of one file of metadata, some rows at a time.

    Args:
      path: the file.
      uid_column: its column of ids; where there is a column id, that has them as the owner wrote them.

    Raises:
      InputError: it can't be read or lacks the column, or an id is of a wrong kind.
    """
    names = parquet.rows_and_types(path)[1]
    ids.check_name(path, names, uid_column)
    done = 0
    for table in parquet.iterate(path, list(dict.fromkeys([uid_column, *(["id"] if "id" in names else [])])), _ID_ROWS):
        uid = ids.from_column(table[uid_column], path, done, uid_column).uid
        texts = _id_texts(table[uid_column], path, uid_column)
        if "id" in names:
            texts = [own or given for own, given in zip(_id_texts(table["id"], path, "id"), texts, strict=True)]
        yield OwnerIds(path, done, uid, [text or "" for text in texts])
        done += len(table)


def _id_texts(column: pa.ChunkedArray, path: str, name: str) -> list[str | None]:
    held = ids.as_text(column, path, name)
    if pa.types.is_fixed_size_binary(held.type):  # UUIDs in binary form
        return [None if one is None else one.hex() for one in held.to_pylist()]
    return list(held.cast(pa.large_string()).to_pylist())
