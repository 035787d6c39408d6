"""Broken and hostile bytes: any file, arrays, parquet, tars, images and weights."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
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
        f"member-{what}": zipped({**members, f"{name}.npy": data}) for what, data in npy_damages(array).items()
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
    many = pa.table({name: pa.concat_arrays([table[name].chunk(0)[:1]] * rows) for name in table.column_names})
    bomb = pa.array(["x" * (1 << 20)]).dictionary_encode()
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), bomb.dictionary)
    index = many.column_names.index(column)
    return parquet_bytes(many.set_column(index, column, values), store_schema=False)


def tar_bytes(members: list[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _special(name: str, kind: bytes, target: str = "", **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, target, pax
    return info


def patched_header(data: bytes, start: int, value: bytes, at: int = 0, *, checksum: bool = True) -> bytes:
    """A tar with bytes of one header changed, its checksum updated unless told otherwise."""
    head = bytearray(data[at : at + 512])
    head[start : start + len(value)] = value
    if checksum:
        head[148:156] = b" " * 8
        head[148:156] = f"{sum(head):06o}\0 ".encode()
    return data[:at] + bytes(head) + data[at + 512 :]


def tar_damages(members: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """Tars that stand for some samples and are something else, or hold something else besides."""
    good = tar_bytes(members)
    first = members[0][0]
    stem = first.rpartition(".")[0]

    def also(*extra: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
        return tar_bytes([*members, *extra])

    return {
        "checksum": patched_header(good, 0, b"Z", checksum=False),
        "size-huge": patched_header(good, 124, b"77777777777\0"),
        "size-binary": patched_header(good, 124, b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7),
        "size-negative": patched_header(good, 124, b"\xff" * 12),
        "size-text": patched_header(good, 124, b"many bytes!!"),
        "size-one-more": patched_header(good, 124, f"{len(members[0][1]) + 600:011o}\0".encode()),
        "name-empty": patched_header(good, 0, bytes(100)),
        "name-bytes": patched_header(good, 0, b"\xff\xfe\x80.png\0"),
        "device": also((_special("z.png", tarfile.CHRTYPE), b"")),
        "pipe": also((_special("z.png", tarfile.FIFOTYPE), b"")),
        "link-out": also((_special("z.png", tarfile.SYMTYPE, "/etc/passwd"), b"")),
        "link-up": also((_special("z.txt", tarfile.SYMTYPE, "../../secret"), b"")),
        "link-itself": also((_special("z.png", tarfile.SYMTYPE, "z.png"), b"")),
        "link-ring": also(
            (_special("y.png", tarfile.SYMTYPE, "z.png"), b""), (_special("z.png", tarfile.SYMTYPE, "y.png"), b"")
        ),
        "hard-link-out": also((_special("z.png", tarfile.LNKTYPE, "/etc/passwd"), b"")),
        "many-links": also(*((_special(f"z{i}.png", tarfile.LNKTYPE, first), b"") for i in range(300))),
        "pax-size": also((_special("z.png", tarfile.REGTYPE, size="99999999999999"), b"x")),
        "pax-size-negative": also((_special("z.png", tarfile.REGTYPE, size="-512"), b"x")),
        "pax-size-text": also((_special("z.png", tarfile.REGTYPE, size="much"), b"x")),
        "pax-path": also((_special("z.png", tarfile.REGTYPE, path="../../escaped.png"), b"x")),
        "pax-sparse": also(
            (_special("z.png", tarfile.REGTYPE, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), b"9\n")
        ),
        "pax-sparse-map": also((_special("z.png", tarfile.REGTYPE, **{"GNU.sparse.map": "0,x"}), b"x")),
        "pax-nothing": patched_header(also(("z.png", b"x")), 156, b"x"),
        "gnu-long-name": patched_header(good, 156, b"L"),
        "gnu-sparse": patched_header(good, 156, b"S"),
        "unknown-type": patched_header(good, 156, b"?"),
        "volume": patched_header(good, 156, b"V"),
        "key-again": also((f"{stem}.png", b"x")),
        "member-twice": tar_bytes([members[0], members[0], *members[1:]]),
        "escape-codes": also(("z\x1b[2J\x1b]0;owned\x07.txt", b"\x1b[31mred")),
        "up": also(("../../../escaped.png", b"x"), ("/root/escaped.txt", b"x")),
        "json-nested": also(("z.json", b"[" * 200_000)),
        "json-infinite": also(("z.json", b'{"uid": Infinity, "caption": NaN}')),
        "json-number": also(("z.json", b'{"uid": ' + b"9" * 9_999 + b"}")),
        "json-list": also(("z.json", b"[1, 2]")),
        "json-bytes": also(("z.json", b'{"uid": "\xff\xfe"}')),
        "json-large": also(("z.json", b'{"a": [' + b"{}," * (6 << 20) + b"{}]}")),
        "txt-bytes": also(("z.txt", b"\xff\xfe\x80"), ("z.png", members[0][1])),
        "nested": tar_bytes([("inner.tar", good)]),
        "gzipped": zlib.compress(good),
        "no-members": tar_bytes([]),
    }


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def image_bombs(png: bytes) -> dict[str, Made]:
    """Images that are small as stored and huge as decoded, or no images."""

    def sized(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        pixels = zlib.compress(bytes(1 << 20))
        start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
        return start + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")

    def with_zeros(kind: bytes) -> bytes:
        return png[:33] + png_chunk(kind, b"a\0\0" + zlib.compress(bytes(1 << 28))) + png[33:]

    return {
        "wide": sized(2**31 - 1, 1),
        "large": sized(60_000, 60_000),
        "none": sized(0, 0),
        "short": sized(900, 900),
        "text-chunk": lambda: with_zeros(b"zTXt"),
        "profile-chunk": lambda: with_zeros(b"iCCP"),
        "chunk-length": png[:33] + struct.pack(">I", 2**31 - 1) + png[37:],
        "crc": png[:45] + bytes([png[45] ^ 255]) + png[46:],
        "gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08\x01\x00;",
        "tiff": b"II*\0\x08\0\0\0\xff\xff" + bytes(64),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }


def safetensors_damages(good: bytes) -> dict[str, bytes]:
    """Weights whose header says something else."""
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")

    def said(**changes: object) -> bytes:
        text = json.dumps({**header, name: {**header[name], **changes}}).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + length :]

    return {
        "header-huge": struct.pack("<Q", 2**63) + good[8:],
        "header-gb": struct.pack("<Q", 2**30) + good[8:],
        "header-nested": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "shape-huge": said(shape=[2**40, 2**40]),
        "offsets-out": said(data_offsets=[0, 2**50]),
        "offsets-back": said(data_offsets=[100, 0]),
        "dtype-unknown": said(dtype="X99"),
        "tensor-missing": struct.pack("<Q", 2) + b"{}",
        "half": good[: len(good) // 2],
        "pickle": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
    }
