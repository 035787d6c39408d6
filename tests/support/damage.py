"""Bytes that are broken or hostile: what disks, networks and strangers make of good files."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Damage = Callable[[bytes], bytes]
Made = bytes | Callable[[], bytes]  # what is large is made when it is asked for


def plain_damages(seed: int) -> dict[str, Damage]:
    """What befalls any file: bits flipped, ends cut, blocks lost, bytes of others in it."""
    random = np.random.default_rng(seed)
    places = random.random(3)

    def flip(place: float) -> Damage:
        def damage(data: bytes) -> bytes:
            at = int(place * len(data))
            return data[:at] + bytes([data[at] ^ 1 << int(8 * place) % 8]) + data[at + 1 :]

        return damage

    return {
        "flip-first": flip(0.0),
        **{f"flip-{i}": flip(place) for i, place in enumerate(places)},
        "flip-late": lambda data: flip((len(data) - 6) / len(data))(data),
        "empty": lambda data: b"",
        "one-byte": lambda data: data[:1],
        "half": lambda data: data[: len(data) // 2],
        "without-last": lambda data: data[:-1],
        "without-end": lambda data: data[:-60],
        "zeros": lambda data: data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * len(data) // 3 :],
        "noise": lambda data: random.bytes(len(data)),
        "gap": lambda data: data[: len(data) // 3] + data[len(data) // 2 :],
    }


def npy_bytes(array: np.ndarray, **options: bool) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npy_header(text: str, version: int = 1, length: int | None = None) -> bytes:
    """A .npy header that says whatever it likes, and is as long as it likes."""
    data = text.encode("latin-1") + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(data) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + data


def npy_damages(array: np.ndarray) -> dict[str, bytes]:
    """.npy files that stand for an array and are something else."""
    descr, data = np.lib.format.dtype_to_descr(array.dtype), array.tobytes()

    def shaped(shape: str, **changes: str) -> bytes:
        kind = changes.get("descr", repr(descr))
        return npy_header(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}") + data

    return {
        "rows-1e12": shaped(f"({10**12}, {array.shape[-1]})" if array.ndim > 1 else f"({10**12},)"),
        "rows-2e64": shaped(f"({2**64},)"),
        "rows-negative": shaped("(-1,)"),
        "rows-one-more": shaped(str((len(array) + 1, *array.shape[1:]))),
        "rows-one-fewer": shaped(str((len(array) - 1, *array.shape[1:]))),
        "dims-many": shaped(str((1,) * 99)),
        "shape-text": shaped("'many'"),
        "dtype-object": shaped(str(array.shape), descr="'|O'"),
        "dtype-void": shaped(str(array.shape), descr="'|V1000000000'"),
        "dtype-unknown": shaped(str(array.shape), descr="'<q9'"),
        "dtype-none": shaped(str(array.shape), descr="None"),
        "header-long": npy_header("{" + " " * 100_000, 2) + data,
        "header-4gb": npy_header("{", 2, 2**32 - 1) + data,
        "header-code": npy_header("__import__('os').system('touch owned')") + data,
        "header-nested": npy_header("(" * 30_000 + ")" * 30_000),
        "version-9": b"\x93NUMPY\x09\x00" + data,
        "magic-only": b"\x93NUMPY",
        "pickle": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
        "pickled-array": npy_bytes(np.array([{"a": 1}, None], object), allow_pickle=True),
        "integers": npy_bytes(np.zeros(array.shape, np.int32)),
        "text": npy_bytes(np.full(array.shape, "x")),
        "complex": npy_bytes(np.ones(array.shape, np.complex64)),
        "scalar": npy_bytes(np.float16(1)),
        "another-dim": npy_bytes(np.ones((*array.shape, 2), np.float16)),
        "no-rows": npy_bytes(array[:0]),
    }


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def npz_damages(arrays: dict[str, np.ndarray]) -> dict[str, Made]:
    """.npz files that stand for some arrays and are something else."""
    name, array = next(iter(arrays.items()))
    members = {f"{key}.npy": npy_bytes(value) for key, value in arrays.items()}
    whole = zipped(members)

    def bomb() -> bytes:
        rows = (1 << 28) // (2 * array.shape[1])
        header = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({8 * rows}, {array.shape[1]}), }}"
        return npy_header(header) + bytes(1 << 28)

    damages: dict[str, Made] = {
        f"member-{what}": zipped({**members, f"{name}.npy": data})
        for what, data in npy_damages(array).items()
    }
    directory = whole.rfind(b"PK\x01\x02")
    damages |= {
        "bomb": lambda: zipped({**members, f"{name}.npy": bomb()}, zipfile.ZIP_DEFLATED),
        "bomb-header": lambda: zipped(
            {**members, f"{name}.npy": npy_header("{" + " " * (1 << 28), 2)}, zipfile.ZIP_DEFLATED
        ),
        "bomb-lzma": lambda: zipped({**members, f"{name}.npy": bomb()[: 1 << 26]}, zipfile.ZIP_LZMA),
        "size-lies": _with_sizes(whole, directory, 2**32 - 2),
        "size-zero": _with_sizes(whole, directory, 0),
        "zip64-lies": _with_zip64(members, 2**62),
        "encrypted": _with_flag(whole, directory, 1),
        "method-99": whole[: directory + 10] + b"\x63\0" + whole[directory + 12 :],
        "offset-lies": whole[: directory + 42] + b"\xff\xff\xff\x7f" + whole[directory + 46 :],
        "entries-65535": whole[:-14] + b"\xff\xff\xff\xff" + whole[-10:],
        "twice": _twice(members, f"{name}.npy"),
        "path": zipped({**members, "../../escaped.npy": b"x", "/tmp/escaped.npy": b"x"}),
        "no-member": zipped({}),
        "other-names": zipped({f"x_{key}": data for key, data in members.items()}),
        "fortran": zipped({key: npy_bytes(np.asfortranarray(value)) for key, value in _named(arrays)}),
        "big-endian": zipped({key: npy_bytes(value.astype(">f2")) for key, value in _named(arrays)}),
        "deflated": zipped(members, zipfile.ZIP_DEFLATED),
        "not-finite": zipped({**members, f"{name}.npy": npy_bytes(_with_row(array, np.nan))}),
        "zero-row": zipped({**members, f"{name}.npy": npy_bytes(_with_row(array, 0))}),
        "long-row": zipped({**members, f"{name}.npy": npy_bytes(_with_row(array, 3))}),
    }
    return damages


def _named(arrays: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return [(f"{key}.npy", value) for key, value in arrays.items()]


def _with_row(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[3] = value
    return changed


def _with_sizes(whole: bytes, directory: int, size: int) -> bytes:
    return whole[: directory + 20] + struct.pack("<II", size, size) + whole[directory + 28 :]


def _with_flag(whole: bytes, directory: int, flag: int) -> bytes:
    return whole[: directory + 8] + bytes([flag]) + whole[directory + 9 :]


def _with_zip64(members: dict[str, bytes], size: int) -> bytes:
    """A member whose zip64 field, in the directory, says that it is endless."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data)
        file.infolist()[0].file_size = file.infolist()[0].compress_size = size
    return buffer.getvalue()


def _twice(members: dict[str, bytes], name: str) -> bytes:
    buffer = io.BytesIO(zipped(members))
    with zipfile.ZipFile(buffer, "a") as file:
        file.filelist = [*file.filelist]
        file.NameToInfo = {}
        file.writestr(zipfile.ZipInfo(name), npy_bytes(np.ones((24, 16), np.float16)))
    return buffer.getvalue()


def parquet_bytes(table: pa.Table, **options: object) -> bytes:
    """A table as a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def parquet_damages(table: pa.Table, column: str) -> dict[str, bytes]:
    """Parquet files that stand for a table and are something else.

    Args:
      table: what the file should hold.
      column: the one that is changed.
    """
    good = parquet_bytes(table)

    def changed(values: pa.Array) -> bytes:
        return parquet_bytes(table.set_column(table.column_names.index(column), column, values))

    rows = len(table)
    endless = pa.table({name: pa.array([None] * 1, table[name].type) for name in table.column_names})
    return {
        "footer-2gb": good[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1",
        "footer-4gb": good[:-8] + struct.pack("<I", 2**32 - 1) + b"PAR1",
        "footer-0": good[:-8] + bytes(4) + b"PAR1",
        "footer-shifted": good[:-8] + struct.pack("<I", struct.unpack("<I", good[-8:-4])[0] - 9) + b"PAR1",
        "rows-huge": _with_rows(good, rows),
        "encrypted": good[:-4] + b"PARE",
        "column-missing": parquet_bytes(table.drop_columns([column])),
        "column-twice": _column_twice(table, column),
        "column-null": changed(pa.nulls(rows, table[column].type)),
        "column-nested": changed(pa.array([[1, 2]] * rows)),
        "column-map": changed(pa.array([{"a": 1}] * rows)),
        "column-bool": changed(pa.array([True] * rows)),
        "column-date": changed(pa.array([0] * rows, pa.timestamp("ns"))),
        "column-bytes": changed(pa.array([b"\xff\xfe"] * rows)),
        "column-decimal": changed(pa.array([1] * rows, pa.decimal128(9, 2))),
        "row-more": parquet_bytes(pa.concat_tables([table, table.slice(0, 1)])),
        "row-fewer": parquet_bytes(table.slice(1)),
        "no-rows": parquet_bytes(table.slice(0, 0)),
        "no-columns": parquet_bytes(pa.table({})),
        "one-null": parquet_bytes(endless),
        "long-name": parquet_bytes(table.append_column("\x1b[2J" * 9_999, pa.nulls(rows, pa.int8()))),
    }


def _column_twice(table: pa.Table, column: str) -> bytes:
    return parquet_bytes(pa.Table.from_arrays([*table.columns, table[column]], [*table.column_names, column]))


def _with_rows(good: bytes, rows: int) -> bytes:
    """A footer that says 2^62 rows: the zigzag number after field 3 of the file's metadata."""
    length = struct.unpack("<I", good[-8:-4])[0]
    footer = good[-8 - length : -8]
    number = bytes([2 * rows]) if 2 * rows < 128 else bytes([2 * rows & 127 | 128, 2 * rows >> 7])
    many = bytes([0xFE] + [0xFF] * 7 + [0x7F])
    changed = footer.replace(b"\x16" + number, b"\x16" + many)
    return good[: -8 - length] + changed + struct.pack("<I", len(changed)) + b"PAR1"


def parquet_bomb(table: pa.Table, column: str) -> bytes:
    """Text of a megabyte, once as stored and in every row as read."""
    rows = 4_096
    many = pa.table(
        {name: pa.concat_arrays([table[name].chunk(0)[:1]] * rows) for name in table.column_names}
    )
    bomb = pa.array(["x" * (1 << 20)]).dictionary_encode()
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), bomb.dictionary)
    index = many.column_names.index(column)
    return parquet_bytes(many.set_column(index, column, values), store_schema=False)
