"""Files of uids in every form: `.npy` (DataComp's subset files), `.txt`, `.parquet`; read and written in blocks."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, parquet, uid_sets, uids

SUFFIXES = (".npy", ".txt", ".parquet")
_ROWS = 1 << 18
_GROUP = 1 << 20  # rows of a row group in parquet
_LINE = 33  # 32 hex digits and the end of the line
_HALVES = ("uid_hi", "uid_lo")


@dataclasses.dataclass(frozen=True)
class UidFile:
    """A file of uids, open and sorted.

    Attributes:
      path: the file.
      rows: shape (n,), u8,u8, sorted, repeats and all; a file in mapped memory.
      form: what is unusual about the form of a .npy file, "" for DataComp's own.
      order: how the file itself was ordered.
      repeats: rows beyond the first of their uid.
    """

    path: str
    rows: np.ndarray
    form: str
    order: uid_sets.Order
    repeats: int


def open_source(path: str, scratch: str) -> UidFile:
    """Opens a file of uids, or a folder of parquet files (a pool's metadata, a score table).

    A sorted .npy file on this machine is mapped as it is. Anything else becomes such a file first, in blocks.

    Args:
      path: a .npy, .txt or .parquet file, or a folder of .parquet files.
      scratch: a local folder for those files.

    Raises:
      InputError: it can't be read, or holds no uids.
    """
    local = path
    if path.endswith(".npy") and not storage.Folder(path).is_local:
        local = _scratch_name(scratch)
        with storage.open_read(path) as file, open(local, "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    if path.endswith(".npy"):
        rows, form = _map(path, local)
    else:
        spooled = _scratch_name(scratch)
        with open(spooled, "wb") as out:
            _write_npy(out, _blocks(path))
        rows, form = arrays.read_npy(spooled, "of uids"), ""
    if form:
        rows = _of_any_form(rows, _scratch_name(scratch))
    order = uid_sets.look_at_order(rows)
    if order.unsorted_at is None:
        return UidFile(path, rows, form, order, order.repeats)
    ordered = _new_npy(_scratch_name(scratch), len(rows))
    uid_sets.sort_to(rows, ordered)
    return UidFile(path, np.asarray(ordered), form, order, uid_sets.look_at_order(ordered).repeats)


def _scratch_name(scratch: str) -> str:
    return os.path.join(scratch, f"{len(os.listdir(scratch))}.npy")


def _map(path: str, local: str) -> tuple[np.ndarray, str]:
    """A .npy file in mapped memory, and what its form is if not DataComp's."""
    rows = arrays.read_npy(local, "of uids", named=path)
    if rows.dtype == uids.DTYPE and rows.ndim == 1:
        return rows, ""
    fields = [rows.dtype[name] for name in rows.dtype.names or ()]
    words = fields if rows.ndim == 1 else [rows.dtype] * (rows.shape[1] if rows.ndim == 2 else 0)
    found = f"{rows.dtype} of shape {rows.shape}"
    if len(words) != 2 or any((word.kind, word.itemsize) != ("u", 8) for word in words):
        raise InputError(f"{path}: holds {found}, expected uids of dtype u8,u8 in one dimension")
    return rows, found


def _new_npy(path: str, rows: int) -> np.memmap:
    """A .npy file of uids to fill, in mapped memory."""
    made = np.lib.format.open_memmap(path, "w+", uids.DTYPE, (rows,))
    storage.reserve(path)
    return made


def _of_any_form(rows: np.ndarray, path: str) -> np.ndarray:
    """Pairs of uint64 in another byte order, with other names or as two columns: copied into DataComp's form."""
    if not len(rows):
        return np.empty(0, uids.DTYPE)
    out = _new_npy(path, len(rows))
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        high, low = block.T if block.ndim == 2 else (block[name] for name in block.dtype.names or ())
        out[start : start + _ROWS] = uids.join_halves(high, low)
    return np.asarray(out)


def _blocks(path: str) -> Iterator[np.ndarray]:
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
    elif path.endswith(".txt"):
        yield from _text_blocks(path)
    else:
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, or a folder of .parquet files"
        )


def _text_blocks(path: str) -> Iterator[np.ndarray]:
    done, rest = 0, b""
    with storage.open_read(path) as file:
        while piece := file.read(_ROWS * _LINE):
            whole, newline, rest = (rest + piece).rpartition(b"\n")
            if len(rest) > _ROWS * _LINE:
                raise InputError(
                    f"{path}: {len(rest):,} bytes without an end of line; expected 32 hex digits a line"
                )
            rows = _of_lines(whole + newline, path, done)
            yield rows
            done += len(rows)
    yield _of_lines(rest, path, done)


def _of_lines(text: bytes, path: str, done: int) -> np.ndarray:
    """Lines as uids; blank lines and white space around uids don't count."""
    if not len(text) % _LINE and not text[_LINE - 1 :: _LINE].strip(b"\n"):
        packed = uids.packed_hex(text)
        if packed is not None and len(packed) == len(text) // _LINE * 16:
            return uids.from_bytes(packed)
    lines = [line for raw in text.decode("utf-8", "replace").split("\n") if (line := raw.strip())]
    return uids.from_hex(lines, path, done)


def _parquet_blocks(path: str) -> Iterator[np.ndarray]:
    done = 0
    names = parquet.rows_and_types(path)[1]
    columns = ["uid"] if "uid" in names else list(_HALVES)
    if not set(columns) <= set(names):
        raise InputError(f"{path}: no column 'uid', nor 'uid_hi' and 'uid_lo'; it has {', '.join(names)}")
    for table in parquet.iterate(path, columns, _ROWS):
        rows = _of_table(table, path, done)
        yield rows
        done += len(rows)


def _of_table(table: pa.Table, path: str, done: int) -> np.ndarray:
    if table.num_columns == 1:
        return uids.from_hex(table["uid"], path, done)
    parquet.check_halves(path, table)
    return uids.join_halves(*(table[name].to_numpy() for name in _HALVES))


def write(path: str, blocks: Iterable[np.ndarray], *, halves: bool = False) -> int:
    """Writes blocks of uids to a file that appears whole or not at all; its suffix says in which form.

    Args:
      path: where to; .npy as `np.save` writes it, .txt with 32 hex digits a line, or .parquet.
      blocks: arrays of dtype u8,u8.
      halves: parquet with columns uid_hi and uid_lo (uint64) instead of uid (32 hex digits).

    Returns:
      the number of uids.
    """
    with storage.open_write(path) as file:
        if path.endswith(".npy"):
            return _write_npy(file, blocks)
        if path.endswith(".txt"):
            return _write_text(file, blocks)
        return _write_parquet(file, blocks, halves)


def _write_npy(file: BinaryIO, blocks: Iterable[np.ndarray]) -> int:
    _write_header(file, 0)
    count = 0
    for block in blocks:
        file.write(np.ascontiguousarray(block).view(np.uint8).data)
        count += len(block)
    # NumPy leaves room in a header for the length to grow.
    file.seek(0)
    _write_header(file, count)
    file.seek(0, os.SEEK_END)
    return count


def _write_header(file: BinaryIO, rows: int) -> None:
    description = np.lib.format.dtype_to_descr(uids.DTYPE)
    np.lib.format.write_array_header_1_0(
        file, {"descr": description, "fortran_order": False, "shape": (rows,)}
    )


def _write_text(file: BinaryIO, blocks: Iterable[np.ndarray]) -> int:
    count = 0
    for block in blocks:
        if len(block):
            file.write(uids.to_bytes(block).hex("\n", 16).encode() + b"\n")
        count += len(block)
    return count


def _write_parquet(file: BinaryIO, blocks: Iterable[np.ndarray], halves: bool) -> int:
    schema = pa.schema([(name, pa.uint64()) for name in _HALVES] if halves else [("uid", pa.string())])
    count = 0
    options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for block in _of_at_least(_GROUP, blocks):
            columns = [block["f0"], block["f1"]] if halves else [_hex_column(block)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            count += len(block)
    return count


def _of_at_least(rows: int, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks put together to that many rows; the last may have fewer."""
    waiting: list[np.ndarray] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= rows:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _hex_column(block: np.ndarray) -> pa.Array:
    offsets = np.arange(0, 32 * len(block) + 1, 32, dtype=np.int32)
    text = uids.to_bytes(block).hex().encode()
    return pa.StringArray.from_buffers(len(block), pa.py_buffer(offsets), pa.py_buffer(text))


_STEP = 1 << 10  # of a run's uids every so many are looked at, to cut all runs into even ranges


class UidSorter:
    """Takes uids in any order, and writes them sorted, each once.

    Args:
      scratch: gives a folder for what doesn't fit in memory; asked only when there is such.
      memory: bytes of uids to hold.
    """

    def __init__(self, scratch: Callable[[], str], memory: int = 1 << 26) -> None:
        self._scratch, self._memory = scratch, memory
        self._held: list[np.ndarray] = []
        self._bytes = 0
        self._runs: list[str] = []

    def add(self, uid: np.ndarray) -> None:
        """Takes some uids."""
        self._held.append(uid)
        self._bytes += uid.nbytes
        if self._bytes > self._memory:
            self._spill()

    def write(self, path: str) -> int:
        """Writes a subset file, .npy, of all uids; returns how many they are, each counted once."""
        if not self._runs:
            return write(path, [self._sorted()])
        self._spill()
        return write(path, self._merge())

    def _sorted(self) -> np.ndarray:
        whole = np.concatenate([np.empty(0, uids.DTYPE), *self._held])
        self._held.clear()
        self._bytes = 0
        return uids.sort_unique(whole)

    def _spill(self) -> None:
        ordered = self._sorted()
        if len(ordered):
            self._runs.append(os.path.join(self._scratch(), f"run-{len(self._runs):05d}"))
            ordered.tofile(self._runs[-1])

    def _merge(self) -> Iterator[np.ndarray]:
        """All runs' uids, range after range: sorted, each once."""
        runs = [np.memmap(name, uids.DTYPE, "r") for name in self._runs]
        bounds = self._bounds(runs)
        cuts = [[0, *_positions(run, bounds), len(run)] for run in runs]
        for begins, ends in itertools.pairwise(zip(*cuts, strict=True)):
            pieces = [run[at:end] for run, at, end in zip(runs, begins, ends, strict=True)]
            yield uids.sort_unique(np.concatenate(pieces))

    def _bounds(self, runs: Sequence[np.ndarray]) -> np.ndarray:
        """First halves between which there are at most a quarter of the memory's uids, if hashes they are."""
        seen = np.sort(np.concatenate([run["f0"][::_STEP] for run in runs]))
        step = max(1, self._memory // 4 // uids.DTYPE.itemsize // _STEP)
        return np.unique(seen[step::step])


def _positions(run: np.ndarray, bounds: np.ndarray) -> list[int]:
    """Where in a sorted run the uids begin whose first halves are at or above each bound."""
    # searchsorted would copy every second word of the run.
    return [bisect.bisect_left(run, bound, key=lambda uid: int(uid["f0"])) for bound in bounds.tolist()]
