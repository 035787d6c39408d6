"""What a shard holds: embeddings from npz and npy files, uids from parquet, and which rows are no unit vectors."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax.data import files, uids
from clipdata_jax.data.pool import Shard
from clipdata_jax.errors import InputError

# How far from 1 a row's norm may be: what rounding to the format can do.
_NORM_TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2}
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The pairs of a shard.

    Attributes:
      uid: shape (n,), u8,u8.
      images: shape (n, d), the dtype on disk, usually float16.
      texts: shape (n, d).
    """

    uid: np.ndarray
    images: np.ndarray
    texts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows to write, float16, in pieces that together have the shape."""

    shape: tuple[int, int]
    pieces: Iterable[np.ndarray]


def read_shard(shard: Shard, tag: str) -> Embeddings:
    """Reads a shard's uids and one model's embeddings.

    Raises:
      InputError: a file is damaged, lacks the tag or the uid column, or the rows don't agree.
    """
    uid = read_uids(shard)
    images, texts = (
        _read_rows(shard, shard.images, f"{tag}_img"),
        _read_rows(shard, shard.texts, f"{tag}_txt"),
    )
    if images.shape != texts.shape:
        raise InputError(
            f"{shard.images}: pictures are {images.shape}, captions {texts.shape}; write both again"
        )
    return Embeddings(uid, images, texts)


def read_images(shard: Shard, tag: str) -> np.ndarray:
    """A shard's picture embeddings of one model: shape (n, d), the dtype on disk.

    Raises:
      InputError: the file is damaged, lacks the tag, or has other rows than the metadata.
    """
    return _read_rows(shard, shard.images, f"{tag}_img")


def _read_rows(shard: Shard, path: str, name: str) -> np.ndarray:
    emb = read_array(path, name)
    if emb.ndim != 2 or emb.dtype.kind != "f":
        raise InputError(f"{path}: holds {emb.dtype}{list(emb.shape)}, expected floats of shape (rows, dim)")
    if len(emb) != shard.rows:
        raise InputError(f"{path}: {len(emb)} rows, but {shard.metadata} has {shard.rows}; write both again")
    return emb


def read_uids(shard: Shard) -> np.ndarray:
    """A shard's uids, u8,u8; clip-retrieval's metadata without a uid column gets them from file name and row.

    Raises:
      InputError: the file is damaged, or a DataComp shard has no uid column or a bad uid.
    """
    with files.open_read(shard.metadata) as file:
        try:
            names = pq.ParquetFile(file).schema_arrow.names
            column = pq.read_table(file, columns=["uid"])["uid"] if "uid" in names else None
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{shard.metadata}: can't be read ({error}); write it again") from error
    if column is not None:
        return uids.from_hex(column, shard.metadata)
    if shard.images == shard.texts:
        raise InputError(f"{shard.metadata}: column 'uid' is missing; it has {', '.join(names)}")
    return uids.from_hex([uids.uid_of(shard.name, str(row)) for row in range(shard.rows)])


def embedding_shape(path: str, name: str) -> tuple[int, int]:
    """The shape of an array in a npz or npy file, from its header.

    Raises:
      InputError: the file is damaged, lacks the array, or the array is not two-dimensional.
    """
    with files.open_read(path) as file:
        try:
            if path.endswith(".npz"):
                with zipfile.ZipFile(file) as members, members.open(f"{name}.npy") as member:
                    shape = _header_shape(member)
            else:
                shape = _header_shape(file)
        except KeyError as error:
            raise InputError(f"{path}: has no {name!r}") from error
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: damaged or not a NumPy file ({error}); write it again") from error
    if len(shape) != 2:
        raise InputError(f"{path}: {name} has shape {shape}, expected (rows, dim)")
    return shape


def _header_shape(file: IO[bytes]) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)[0]


def read_array(path: str, name: str) -> np.ndarray:
    """The array of a .npy, or the named one of a .npz; no pickle is ever loaded.

    Raises:
      InputError: the file is damaged, or lacks the array.
    """
    with files.open_read(path) as file:
        try:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            if name not in found:
                raise InputError(f"{path}: has no {name!r}; it has {', '.join(found.files)}")
            return found[name]
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: damaged or not a NumPy file ({error}); write it again") from error


def write_npz(file: IO[bytes], arrays: Mapping[str, Rows]) -> None:
    """Writes named arrays as `np.savez` does, piece by piece; the same arrays give the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as members:
        for name, rows in arrays.items():
            # The time of a member made by name alone is the zip format's first, 1980.
            with members.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                write_npy(member, rows)


def write_npy(file: IO[bytes], rows: Rows) -> None:
    """Writes an array as `np.save` does, piece by piece."""
    header = {"descr": "<f2", "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for piece in rows.pieces:
        file.write(np.ascontiguousarray(piece, "<f2").data)


def find_bad_rows(
    embeddings: Sequence[np.ndarray], *, normalize: bool = False
) -> tuple[list[np.ndarray], np.ndarray]:
    """Finds the rows that are no unit vectors in any of several arrays of n rows.

    Args:
      embeddings: arrays of shape (n, d).
      normalize: scale rows to unit norm rather than call them bad when their norm is not 1.

    Returns:
      The arrays (scaled if asked), and shape (n,) uint8: 0 good, 1 not finite, 2 zero, 3 not of unit norm
      (|norm - 1| above 2e-3, for bfloat16 above 1e-2).
    """
    bad = np.zeros(len(embeddings[0]), np.uint8)
    result = []
    for emb in embeddings:
        out = np.empty_like(emb) if normalize else emb
        tolerance = _NORM_TOLERANCE.get(emb.dtype.name, 2e-3)
        for start in range(0, len(emb), _CHUNK):
            rows = slice(start, start + _CHUNK)
            block = emb[rows].astype(np.float32)
            norm = np.sqrt(np.einsum("nd,nd->n", block, block))
            found = np.select([~np.isfinite(norm), norm == 0, np.abs(norm - 1) > tolerance], [1, 2, 3])
            if normalize:
                found[found == 3] = 0
                out[rows] = block / np.where(np.isfinite(norm) & (norm > 0), norm, 1)[:, None]
            bad[rows] = np.where(bad[rows] == 0, found, bad[rows])
        result.append(out)
    return result, bad


BAD_REASONS = {1: "not finite", 2: "zero", 3: "not of unit norm"}
