"""Files of uids: `.npy` (DataComp's subset files), `.txt`, `.csv` and `.parquet`, read and written in blocks.

All but `.npy` may hold other ids instead, which are turned into uids (`ids`).
"""

from __future__ import annotations

import codecs
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, file_kinds, ids, parquet, uid_sets, uids
from clipdata_jax.formats.ids import ParsedIds
from clipdata_jax.formats.sources.delimited_text import read_delimited

SUFFIXES = (".npy", ".txt", ".csv", ".tsv", ".parquet")
_ROWS = 1 << 18
_COLUMNS = ("uid", "id")
_GROUP = 1 << 20  # rows of a row group in parquet
_LINE = 33  # 32 hex digits and the end of the line


@dataclasses.dataclass(frozen=True)
class UidFile:
    """The uids of a file, sorted.

    Attributes:
      path: the file.
      rows: shape (n,), u8,u8, sorted, repeats included; memory-mapped.
      form: the dtype and shape of a .npy file that differs from DataComp's u8,u8, else "".
      order: the order of the rows in the file itself.
      repeats: rows beyond the first of each uid.
      hashed: rows that held another id.
    """

    path: str
    rows: np.ndarray
    form: str
    order: uid_sets.Order
    repeats: int
    hashed: int = 0


def open_uids(path: str, scratch: str) -> UidFile:
    """Opens a file of uids or other ids, or a folder of parquet files (a pool's metadata, a score table).

    A sorted local .npy file is mapped as it is; anything else is first written as one, in bounded memory.

    Args:
      path: a .npy, .txt, .csv, .tsv or .parquet file, or a folder of .parquet files.
      scratch: a local folder for temporary files.

    Raises:
      InputError: it can't be read, or holds no uids.
    """
    form, hashed = "", [0]
    if path.endswith(".npy"):
        rows, form = _map(path, scratch)
    else:
        rows = _spooled(_uids_of(read_blocks(path), hashed), scratch)
    if form:
        rows = _spooled(_joined(rows), scratch)
    order = uid_sets.check_order(rows)
    if order.unsorted_at is None:
        return UidFile(path, rows, form, order, order.repeats, hashed[0])
    sorter = uid_sets.UidSorter(lambda: scratch, multiset=True)
    for start in range(0, len(rows), _ROWS):
        sorter.add(rows[start : start + _ROWS])
    rows = _spooled(sorter.blocks(), scratch)
    return UidFile(path, rows, form, order, uid_sets.check_order(rows).repeats, hashed[0])


def read_subset(path: str) -> np.ndarray:
    """Reads a subset file into memory; sorts it and removes repeats.

    Args:
      path: as of `open_uids`.

    Raises:
      InputError: it can't be read, or a .npy file isn't of dtype u8,u8.
    """
    return uids.sort_unique(_read(path))


def read_multiset(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a subset file as a multiset: the uids, sorted and unique, and how often each occurs.

    Raises:
      InputError: as `read_subset`.
    """
    ordered = uids.sort(_read(path))
    starts = np.flatnonzero(uids.first_of_each(ordered))
    return ordered[starts], np.diff(np.append(starts, len(ordered)))


def _read(path: str) -> np.ndarray:
    if not path.endswith(".npy"):
        return np.concatenate([np.empty(0, uids.DTYPE), *(block.uid for block in read_blocks(path))])
    rows = arrays.read_npy(path, "of uids")
    if rows.ndim != 1 or rows.dtype != uids.DTYPE:
        raise InputError(f"{path}: holds {rows.dtype}, expected uids of dtype u8,u8 in one dimension")
    return rows


def _uids_of(blocks: Iterable[ParsedIds], hashed: list[int]) -> Iterator[np.ndarray]:
    """The uids of blocks; adds to `hashed` how many of them were."""
    for block in blocks:
        hashed[0] += block.hashed
        yield block.uid


def _spooled(blocks: Iterable[np.ndarray], scratch: str) -> np.ndarray:
    """Writes blocks to a temporary file, and maps it."""
    with tempfile.NamedTemporaryFile(dir=scratch, suffix=".npy", delete=False) as file:
        _write_npy(file, blocks)
    return arrays.read_npy(file.name, "of uids")


def _map(path: str, scratch: str) -> tuple[np.ndarray, str]:
    """Maps a .npy file; returns its rows, and their dtype and shape if those aren't DataComp's."""
    local = path
    if not storage.Folder(path).is_local:
        with (
            storage.open_read(path) as file,
            tempfile.NamedTemporaryFile(dir=scratch, suffix=".npy", delete=False) as copy,
        ):
            shutil.copyfileobj(file, copy, 1 << 20)
        local = copy.name
    rows = arrays.read_npy(local, "of uids", named=path)
    if rows.dtype == uids.DTYPE and rows.ndim == 1:
        return rows, ""
    fields = [rows.dtype[name] for name in rows.dtype.names or ()]
    words = fields if rows.ndim == 1 else [rows.dtype] * (rows.shape[1] if rows.ndim == 2 else 0)
    found = f"{rows.dtype} of shape {rows.shape}"
    if len(words) != 2 or any((word.kind, word.itemsize) != ("u", 8) for word in words):
        raise InputError(f"{path}: holds {found}, expected uids of dtype u8,u8 in one dimension")
    return rows, found


def _joined(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of uint64 in another byte order, with other field names or as two columns, as u8,u8."""
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        high, low = block.T if block.ndim == 2 else (block[name] for name in block.dtype.names or ())
        yield uids.join_halves(high, low)


def read_blocks(path: str) -> Iterator[ParsedIds]:
    """Yields the uids of a file or folder as `open_uids` takes, but .npy, in their order.

    Raises:
      InputError: it can't be read, or holds neither uids nor other ids.
    """
    at = storage.Folder(path)
    if at.is_folder():
        storage.check_finished(at)
        inside = at.files(".parquet")
        if not inside:
            raise InputError(f"{path}: the folder holds no .parquet file with uids")
        for one in inside:
            yield from _parquet_blocks(one)
    elif path.endswith(".parquet"):
        yield from _parquet_blocks(path)
    elif path.endswith((".csv", ".tsv")):
        table = read_delimited(path)
        name = _id_column(path, table.column_names)
        yield ids.from_column(table[name], path, name=name)
    elif path.endswith(".txt"):
        yield from _text_blocks(path)
    else:
        raise InputError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, or a folder of .parquet files")


def _id_column(path: str, names: Sequence[str]) -> str:
    """The column of ids: uid, else id, else the only one."""
    found = [name for name in _COLUMNS if name in names] or list(names)
    if not found or (found[0] not in _COLUMNS and len(names) > 1):
        raise InputError(f"{path}: no column is called {' or '.join(_COLUMNS)}; it has {', '.join(names)}")
    return found[0]


def _text_blocks(path: str) -> Iterator[ParsedIds]:
    done, rest = 0, b""
    with storage.open_read(path) as file:
        while piece := file.read(_ROWS * _LINE):
            piece = piece.removeprefix(codecs.BOM_UTF8) if not done and not rest else piece
            whole, newline, rest = (rest + piece).rpartition(b"\n")
            if len(rest) > _ROWS * _LINE:
                raise InputError(
                    f"{path}: {len(rest):,} bytes without an end of line; expected a uid or other id a line"
                )
            rows = _parse_lines(whole + newline, path, done)
            yield rows
            done += len(rows.uid)
    yield _parse_lines(rest, path, done)


def _parse_lines(text: bytes, path: str, done: int) -> ParsedIds:
    """Parses lines of an id each; blank lines, and white space around an id, are ignored."""
    if not len(text) % _LINE and not text[_LINE - 1 :: _LINE].strip(b"\n"):
        packed = uids.packed_hex(text)
        if packed is not None and len(packed) == len(text) // _LINE * 16:
            return ParsedIds(uids.from_bytes(packed), 0)
    try:
        lines = [line for raw in text.decode().split("\n") if (line := raw.strip())]
    except UnicodeDecodeError as error:
        raise InputError(
            file_kinds.mistaken(path, "a text file", "name it by its kind")
            or f"{path}: is not UTF-8 text; expected a uid or other id a line"
        ) from error
    return ids.from_column(lines, path, done)


def _parquet_blocks(path: str) -> Iterator[ParsedIds]:
    done = 0
    names = parquet.rows_and_types(path)[1]
    has_halves = "uid" not in names and set(uids.HALVES) <= set(names)
    columns = list(uids.HALVES) if has_halves else [_id_column(path, list(names))]
    for table in parquet.iterate(path, columns, _ROWS):
        yield ids.from_table(table, path, done) if has_halves else ids.from_column(table[0], path, done, columns[0])
        done += len(table)


def write(path: str, blocks: Iterable[np.ndarray], *, halves: bool = False) -> int:
    """Writes blocks of uids to a file, atomically.

    Args:
      path: the file; .npy as `np.save` writes it, .txt with 32 hex digits a line, .csv with these in a column uid, or
        else .parquet.
      blocks: arrays of dtype u8,u8.
      halves: parquet with columns uid_hi and uid_lo (uint64) instead of uid (32 hex digits).

    Returns:
      The number of uids.
    """
    with storage.open_write(path) as file:
        if path.endswith(".npy"):
            return _write_npy(file, blocks)
        if path.endswith((".txt", ".csv")):
            file.write(b"uid\n" if path.endswith(".csv") else b"")
            return _write_text(file, blocks)
        return _write_parquet(file, blocks, halves)


def _write_npy(file: IO[bytes], blocks: Iterable[np.ndarray]) -> int:
    _write_header(file, 0)
    count = 0
    for block in blocks:
        file.write(np.ascontiguousarray(block).view(np.uint8).data)
        count += len(block)
    # NumPy pads headers so that the length fits in any number of digits.
    file.seek(0)
    _write_header(file, count)
    file.seek(0, os.SEEK_END)
    return count


def _write_header(file: IO[bytes], rows: int) -> None:
    description = np.lib.format.dtype_to_descr(uids.DTYPE)
    np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": (rows,)})


def _write_text(file: BinaryIO, blocks: Iterable[np.ndarray]) -> int:
    count = 0
    for block in blocks:
        if len(block):
            file.write(uids.to_bytes(block).hex("\n", 16).encode() + b"\n")
        count += len(block)
    return count


def _write_parquet(file: BinaryIO, blocks: Iterable[np.ndarray], halves: bool) -> int:
    schema = pa.schema([(name, pa.uint64()) for name in uids.HALVES] if halves else [("uid", pa.string())])
    count = 0
    options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for block in _grouped(blocks):
            columns = [block["f0"], block["f1"]] if halves else [_hex_column(block)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            count += len(block)
    return count


def _grouped(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Joins blocks to row groups of at least `_GROUP` rows; the last may have fewer."""
    waiting: list[np.ndarray] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= _GROUP:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _hex_column(block: np.ndarray) -> pa.Array:
    offsets = np.arange(0, 32 * len(block) + 1, 32, dtype=np.int32)
    text = uids.to_bytes(block).hex().encode()
    return pa.StringArray.from_buffers(len(block), pa.py_buffer(offsets), pa.py_buffer(text))
