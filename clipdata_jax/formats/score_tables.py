"""Score tables: folders with one parquet part per metadata shard, one row per pair, in the shard's row order."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import ids, parquet, uids
from clipdata_jax.runtime import threads

T = TypeVar("T")
ENTRIES = "entries"
"""The column of the entries that captions hold, lists of their numbers."""
ENTRY_COUNTS = "entry_counts.csv"
_ADVICE = "delete that file and run `clipdata score` again"


def part_bytes(uid: np.ndarray, columns: Mapping[str, np.ndarray], null: np.ndarray | None = None) -> bytes:
    """Encodes one part of a score table as parquet; the same values give the same bytes.

    Args:
      uid: shape (n,), u8,u8.
      columns: name -> n scores; stored as float32 (integer columns as int32).
      null: shape (n,), bool: rows whose scores are null (masked pairs). NaN is null in any row.
    """
    table = {"uid_hi": pa.array(uid["f0"], pa.uint64()), "uid_lo": pa.array(uid["f1"], pa.uint64())}
    for name, values in columns.items():
        kind = np.int32 if np.issubdtype(values.dtype, np.integer) else np.float32
        missing = np.isnan(values) if null is None else np.isnan(values) | null
        table[name] = pa.array(np.asarray(values).astype(kind), mask=missing)
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return buffer.getvalue()


def entries_part_bytes(uid: np.ndarray, found: Sequence[np.ndarray]) -> bytes:
    """Encodes one part: the uids (u8,u8) and the numbers of each caption's entries; the same values, the same bytes."""
    ends = np.cumsum([0, *map(len, found)]).astype(np.int32)
    numbers = np.concatenate([np.empty(0, np.int32), *found])
    table = {
        "uid_hi": pa.array(uid["f0"], pa.uint64()),
        "uid_lo": pa.array(uid["f1"], pa.uint64()),
        ENTRIES: pa.ListArray.from_arrays(pa.array(ends), pa.array(numbers)),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Score tables of one pool, joined by part name and position.

    Attributes:
      folders: the joined tables, in the order given.
      parts: part names (without .parquet), sorted.
      rows: row count of each part.
      columns: column name -> the first folder that holds it.
      shared: column name -> the folders that hold it, for columns that several tables have.
    """

    folders: tuple[str, ...]
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    columns: Mapping[str, str]
    shared: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return sum(self.rows)

    def check_shared_names(self, names: Sequence[str]) -> None:
        """Checks that each name is a column of one table only.

        Raises:
          InputError: a name is ambiguous.
        """
        for name in names:
            if name in self.shared:
                raise InputError(
                    f"column {name!r} is in {' and in '.join(self.shared[name])}; leave out all but one of them"
                )

    def read_part(self, part: str, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reads one part: its uids (u8,u8) and the named columns as `read_column` returns them.

        Raises:
          InputError: an unknown column, or tables that disagree on the part's uids.
        """
        for name in names:
            if name not in self.columns:
                raise InputError(f"unknown column {name!r}; the score table has {', '.join(sorted(self.columns))}")
        self.check_uids(part, names)
        return self.read_uids(part), {name: self.read_column(part, name) for name in names}

    def read_uids(self, part: str) -> np.ndarray:
        """Reads one part's uids (u8,u8)."""
        return self._uids(part, self.folders[0])

    def read_column(self, part: str, name: str) -> np.ndarray:
        """Reads one column of a part, null as NaN, without `check_uids`.

        Scores are float32; integers (rows of targets) float64, which represents all of them exactly.
        """
        folder = self.columns[name]
        table = self._read(part, folder, [name])
        parquet.check_numbers(storage.join(folder, f"{part}.parquet"), table, [name])
        kind = np.float64 if pa.types.is_integer(table[name].type) else np.float32
        # A copy: a view would keep all of Arrow's memory.
        column: np.ndarray = table[name].to_numpy().astype(kind)
        return column

    def read_lists(self, part: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads one column of lists of a part: all numbers, int64, and how many of them each row has, int64."""
        path = storage.join(self.columns[name], f"{part}.parquet")
        return read_lists(path, name)

    def check_uids(self, part: str, names: Sequence[str]) -> None:
        """Checks that the tables that hold some columns have the uids of the first table.

        Raises:
          InputError: the uids differ.
        """
        others = {self.columns[name] for name in names} - {self.folders[0]}
        for folder in sorted(others):
            if not np.array_equal(self.read_uids(part), self._uids(part, folder)):
                path = storage.join(folder, f"{part}.parquet")
                raise InputError(f"{path}: its uids differ from those of {self.folders[0]}: not scores of one pool")

    def _uids(self, part: str, folder: str) -> np.ndarray:
        table = self._read(part, folder, list(uids.HALVES))
        return ids.from_table(table, storage.join(folder, f"{part}.parquet")).uid

    def _read(self, part: str, folder: str, names: list[str]) -> pa.Table:
        return parquet.read(storage.join(folder, f"{part}.parquet"), names, _ADVICE)

    def read(self, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reads the whole table in part order: uids (n,) and the named columns (n,), null as NaN."""
        parts = list(self.ahead(functools.partial(self.read_part, names=names), self.parts))
        uid = np.concatenate([part[0] for part in parts])
        return uid, {name: np.concatenate([part[1][name] for part in parts]) for name in names}

    def iterate(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
        """Yields the name, uids and columns of each part."""
        found = self.ahead(functools.partial(self.read_part, names=names), self.parts)
        for part, (uid, columns) in zip(self.parts, found, strict=True):
            yield part, uid, columns

    def ahead(self, read: Callable[[str], T], parts: Sequence[str]) -> Iterator[T]:
        """Applies a reader to parts in order; reads ahead from an object store."""
        if self.threads == 1:
            return map(read, parts)
        return threads.prefetch(read, parts, threads=self.threads, ahead=self.threads)

    @property
    def threads(self) -> int:
        """How many parts to read at a time."""
        return storage.Folder(self.folders[0]).threads_for_rows(self.rows)


def open_tables(folders: Sequence[str]) -> ScoreTable:
    """Opens one or several score tables of a pool; reads footers only.

    Raises:
      InputError: a folder is missing, empty or unfinished, or the tables are of different pools.
    """
    parts: dict[str, int] = {}
    holders: dict[str, list[str]] = {}
    for index, folder in enumerate(folders):
        here, names = _footers(folder)
        if index and here != parts:
            odd = sorted(set(here.items()) ^ set(parts.items()))[0][0]
            raise InputError(
                f"{folder}: its parts differ from those of {folders[0]} (see {odd}): not scores of one pool"
            )
        parts = here
        for name in names:
            holders.setdefault(name, []).append(folder)
    return ScoreTable(
        tuple(folders),
        tuple(parts),
        tuple(parts.values()),
        {name: held_by[0] for name, held_by in holders.items()},
        {name: tuple(held_by) for name, held_by in holders.items() if len(held_by) > 1},
    )


def check_not_scores(folder: str, names: Collection[str]) -> None:
    """Checks that a folder given as metadata, whose files have these columns, is not a score table.

    Raises:
      InputError: it is one.
    """
    if set(uids.HALVES) <= set(names) and "uid" not in names:
        raise InputError(
            f"{folder}: this is a score table, not metadata; name the folder of embeddings that it was scored from"
        )


def _footers(folder: str) -> tuple[dict[str, int], list[str]]:
    at = storage.Folder(folder)
    paths = at.files(".parquet")
    if not paths:
        missing = "not a folder" if at.exists() else "no such folder"
        found = "is empty" if at.is_folder() else missing
        raise InputError(f"{folder}: {found}; expected a score table, a folder that `clipdata score` wrote")
    if at.exists(storage.PLAN) and not at.exists(storage.MANIFEST):
        raise InputError(f"{folder}: the scoring isn't finished; run the same `clipdata score` again to finish it")
    _check_sizes(at)
    parts: dict[str, int] = {}
    names: list[str] = []
    footers = threads.prefetch(_footer, paths, threads=at.threads)
    for path, (rows, here) in zip(paths, footers, strict=True):
        odd = set(here) ^ set(names)
        if parts and odd:
            raise InputError(
                f"{path}: its columns differ from those of {os.path.basename(paths[0])} (see {min(odd)!r}): not parts"
                " of one table"
            )
        parts[os.path.basename(path).removesuffix(".parquet")] = rows
        names = here
    return parts, names


def _check_sizes(folder: storage.Folder) -> None:
    """Checks that the parts are those that the manifest lists: a missing one isn't an empty one."""
    found = {name: size for name, size in folder.sizes().items() if "/" not in name}
    for name, size in storage.recorded_sizes(folder).items():
        if name.endswith(".parquet") and found.get(name) != size:
            there = f"has {found[name]:,} bytes" if name in found else "is missing"
            advice = _ADVICE if name in found else _ADVICE.removeprefix("delete that file and ")
            raise InputError(f"{folder.join(name)}: {there}, {storage.MANIFEST} says {size:,} bytes; {advice}")


def _footer(path: str) -> tuple[int, list[str]]:
    """The number of rows and the names of the score columns."""
    rows, names = parquet.rows_and_types(path, _ADVICE)
    for name in uids.HALVES:
        if name not in names:
            raise InputError(f"{path}: column {name!r} is missing: not a score table; run `clipdata score` first")
    return rows, [name for name in names if name not in uids.HALVES]


def read_lists(path: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a column of lists of a part: all numbers, int64, and how many of them each row has, int64; null is none.

    Raises:
      InputError: the file can't be read, or holds something else than lists of integers from 0 on.
    """
    column = parquet.read(path, [name], _ADVICE)[name]
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_integer(kind.value_type):
        raise InputError(
            f"{path}: column {name!r} holds {kind}, expected lists of entries, as `clipdata entries` writes"
        )
    whole = column.combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    lengths = pc.fill_null(whole.value_lengths(), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    numbers = whole.flatten()
    if numbers.null_count or (len(numbers) and pc.min(numbers).as_py() < 0):
        raise InputError(f"{path}: column {name!r} holds a null or negative entry, expected numbers from 0 on")
    return numbers.to_numpy(zero_copy_only=False).astype(np.int64), lengths


def write_entry_counts(file: BinaryIO, entries: Sequence[str], counts: np.ndarray) -> None:
    """Writes number, text and count of each entry as csv."""
    table = pa.table({"number": np.arange(len(entries)), "entry": list(entries), "captions": counts})
    csv.write_csv(table, file)
