"""What a shard holds: embeddings from npz and npy files, uids from parquet, and which rows are no unit vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from clipdata_jax.data import arrays, parquet, uids
from clipdata_jax.data.pool import Shard
from clipdata_jax.errors import InputError

# How far from 1 a row's norm may be: what rounding to the format can do.
_NORM_TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2}
_CHUNK = 1 << 9  # rows whose float32 form stays in a core's cache


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
    emb = arrays.read_array(path, name, rows=shard.rows)
    if emb.ndim != 2 or emb.dtype.kind != "f":
        raise InputError(f"{path}: holds {emb.dtype}{list(emb.shape)}, expected floats of shape (rows, dim)")
    return emb


def read_uids(shard: Shard) -> np.ndarray:
    """A shard's uids, u8,u8; clip-retrieval's metadata without a uid column gets them from file name and row.

    Raises:
      InputError: the file is damaged, or a DataComp shard has no uid column or a bad uid.
    """
    rows, names = parquet.rows_and_types(shard.metadata)
    if rows != shard.rows:
        raise InputError(f"{shard.metadata}: has {rows} rows, when the run began {shard.rows}; begin anew")
    if "uid" in names:
        return uids.from_hex(parquet.read(shard.metadata, ["uid"])["uid"], shard.metadata)
    if shard.images == shard.texts:
        raise InputError(f"{shard.metadata}: column 'uid' is missing; it has {', '.join(names)}")
    return uids.from_hex([uids.uid_of(shard.name, str(row)) for row in range(shard.rows)])


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
            norm = _norms(emb[rows])
            found = np.select([~np.isfinite(norm), norm == 0, np.abs(norm - 1) > tolerance], [1, 2, 3])
            if normalize:
                found[found == 3] = 0
                out[rows] = (
                    emb[rows].astype(np.float32) / np.where(np.isfinite(norm) & (norm > 0), norm, 1)[:, None]
                )
            bad[rows] = np.where(bad[rows] == 0, found, bad[rows])
        result.append(out)
    return result, bad


def _norms(block: np.ndarray) -> np.ndarray:
    """The rows' norms in float32, not finite where a number isn't.

    NumPy widens float16 number by number. Three times as fast in whole arrays of integers: without its sign a float16
    is, moved left by 13 bits, the float32 that is 2^112 times smaller, and what isn't finite comes out above 65,504.
    """
    if block.dtype == np.float16 and block.dtype.isnative:
        bits = np.left_shift(block.view(np.uint16), 13, dtype=np.uint32)
        bits &= np.uint32(0x0FFFE000)
        wide = bits.view(np.float32)
        wide *= np.float32(2.0**112)
    else:
        wide = block.astype(np.float32)
    norm = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    large = np.flatnonzero(norm > 65_504)
    norm[large[~np.isfinite(block[large]).all(axis=1)]] = np.nan
    return norm


BAD_REASONS = {1: "not finite", 2: "zero", 3: "not of unit norm"}
