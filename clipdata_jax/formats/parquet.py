"""Reading of parquet files that may be damaged or hostile: those raise an `InputError` of one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import file_kinds

# Real uids take 16 bytes a row; a run of equal values takes next to none, however many rows it claims.
_ROWS, _ROWS_PER_BYTE = 1 << 24, 16
# Text may repeat one long value in every row: it is read in small steps, with its total checked.
_STEP, _TEXT_BYTES, _TIMES = 512, 1 << 28, 64
_BUFFER = 1 << 16  # for each column


@contextlib.contextmanager
def _opened(path: str, advice: str, *, at_once: bool = False) -> Iterator[pq.ParquetFile]:
    with storage.open_read(path, at_once=at_once) as file, _wrap_errors(path, advice):
        found = pq.ParquetFile(file, page_checksum_verification=True)
        _check_rows(path, found)
        yield found


@contextlib.contextmanager
def _wrap_errors(path: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's fault
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            file_kinds.mistaken(path, "a parquet file", advice)
            or f"{path}: damaged or not a parquet file ({reason}); {advice}"
        ) from error


def _check_rows(path: str, found: pq.ParquetFile) -> None:
    rows, groups = found.metadata.num_rows, found.metadata.num_row_groups
    held = sum(found.metadata.row_group(i).num_rows for i in range(groups))
    if rows < 0 or rows != held:
        raise ValueError(f"its footer says {rows:,} rows, its row groups {held:,}")
    if rows > _ROWS and rows > _ROWS_PER_BYTE * (size := storage.size(path)):
        raise ValueError(f"its footer says {rows:,} rows, which {size:,} bytes can't hold")


def rows_and_types(path: str, advice: str = "write it again") -> tuple[int, dict[str, pa.DataType]]:
    """Reads the number of rows and the columns' types, by name, from the footer.

    Categories (pandas) count as their values, views (Polars) as text or bytes; `read` and `iterate` convert them.

    Args:
      path: the file.
      advice: the end of error messages: what to do.

    Raises:
      InputError: it can't be opened, is damaged or not a parquet file, or two columns have the same name.
    """
    groups, types = groups_and_types(path, advice)
    return sum(groups), types


def groups_and_types(path: str, advice: str = "write it again") -> tuple[list[int], dict[str, pa.DataType]]:
    """Reads the number of rows of each row group and the columns' types, by name, from the footer.

    Raises:
      InputError: as `rows_and_types`.
    """
    with _opened(path, advice) as file:
        types = {field.name: _plain(field.type) for field in file.schema_arrow}
        if len(types) < len(file.schema_arrow):
            raise ValueError("two columns have the same name")
        return [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)], types


def stream(path: str, names: Sequence[str], groups: Sequence[int], rows: int) -> Iterator[pa.RecordBatch]:
    """Yields some columns of some row groups, at most `rows` rows at a time; for large values, such as images.

    In memory are those rows, and of each column a page: not a row group.

    Args:
      path: the file.
      names: of columns, or of fields of columns: "image.bytes".
      groups: numbers of the row groups.
      rows: how many at a time.

    Raises:
      InputError: the file can't be opened, or is damaged.
    """
    with storage.open_read(path) as file, _wrap_errors(path, "download or write it again"):
        # Else the whole column chunks are read ahead.
        options = {"pre_buffer": False, "buffer_size": _BUFFER}
        found = pq.ParquetFile(file, page_checksum_verification=True, **options)
        _check_rows(path, found)
        for batch in found.iter_batches(rows, row_groups=list(groups), columns=list(names), use_threads=False):
            batch.validate(full=True)
            yield batch


def read(path: str, names: Sequence[str], advice: str = "write it again") -> pa.Table:
    """Reads some columns of a file, and verifies page checksums where there are any.

    Raises:
      InputError: as `rows_and_types`; or a column is missing, its text isn't UTF-8, or is implausibly large.
    """
    tables = list(iterate(path, names, 1 << 62, advice))
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)


def iterate(path: str, names: Sequence[str], rows: int, advice: str = "write it again") -> Iterator[pa.Table]:
    """Yields some columns of a file, about `rows` rows at a time; at least one table.

    Raises:
      InputError: as `read`.
    """
    with _opened(path, advice, at_once=True) as file:
        schema = _schema(path, file, names)
        numbers = all(map(pa.types.is_primitive, schema.types))
        if numbers and rows >= file.metadata.num_rows:
            yield file.read(columns=list(names)).select(list(names))
            return
        total, done = 0, 0
        batches: list[pa.RecordBatch] = []
        step = rows if numbers else min(_STEP, rows)
        # Before version 19, pyarrow fails at a file without row groups.
        for batch in file.iter_batches(step, columns=list(names)) if file.num_row_groups else ():
            batch.validate(full=True)
            total += batch.nbytes
            if total > _TEXT_BYTES and total > _TIMES * storage.size(path):
                raise ValueError(f"its text takes more than {total:,} bytes when decompressed: it may be an attack")
            batches.append(batch)
            if len(batches) * _STEP >= rows or numbers:
                yield _decoded(pa.Table.from_batches(batches).select(list(names)))
                done, batches = done + sum(map(len, batches)), []
        if batches or not done:
            yield _decoded(pa.Table.from_batches(batches, None if batches else schema).select(list(names)))
            done += sum(map(len, batches))
        if done != file.metadata.num_rows:
            raise ValueError(f"holds {done:,} rows where its footer says {file.metadata.num_rows:,}")


def _schema(path: str, file: pq.ParquetFile, names: Sequence[str]) -> pa.Schema:
    there = file.schema_arrow.names
    for name in names:
        if there.count(name) != 1:
            shown = ", ".join(other[:60] for other in there[:20]) or "none"
            raise InputError(f"{path}: has {there.count(name) or 'no'} columns {name!r}; it has {shown}")
    return pa.schema([file.schema_arrow.field(name) for name in names])


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: of categories that of their values, of views that of text or bytes."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return views.get(kind, kind)


def _decoded(table: pa.Table) -> pa.Table:
    plain = [_plain(kind) for kind in table.schema.types]
    return table if plain == table.schema.types else table.cast(pa.schema(zip(table.column_names, plain, strict=True)))


def check_numbers(path: str, table: pa.Table, names: Sequence[str]) -> None:
    """Checks that columns are numeric.

    Raises:
      InputError: one holds something else.
    """
    for name in names:
        kind = table[name].type
        if not is_number(kind):
            raise InputError(f"{path}: column {name!r} holds {str(kind)[:60]}, expected numbers")


def is_number(kind: pa.DataType) -> bool:
    """Whether a column type is floating or integer."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
