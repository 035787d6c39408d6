"""A pool as embeddings: DataComp's metadata shards (parquet beside npz), or clip-retrieval's folders."""

from __future__ import annotations

import dataclasses
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax.data import files, runs, uids
from clipdata_jax.errors import InputError

# How far from 1 a row's norm may be: what rounding to the format can do.
_NORM_TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2}
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of pairs.

    Attributes:
      name: its base name, and that of the score table's part.
      metadata: the parquet file.
      images: the file of picture embeddings: the npz, or a npy.
      texts: the file of caption embeddings: the same npz, or a npy.
      rows: pairs, from the parquet footer.
    """

    name: str
    metadata: str
    images: str
    texts: str
    rows: int


@dataclasses.dataclass(frozen=True)
class Pool:
    """The shards of a pool in order of their names, and the models whose embeddings they hold.

    Without uids of its own (clip-retrieval's metadata may have none) a pair is named by file name and row.
    """

    folder: str
    shards: tuple[Shard, ...]
    tags: tuple[str, ...]
    has_uids: bool = True

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def tag(self, wanted: str | None) -> str:
        """The model to use: the wanted one, or the only one.

        Raises:
          InputError: the pool lacks it, or has several and none is named.
        """
        if wanted is None and len(self.tags) == 1:
            return self.tags[0]
        if wanted not in self.tags:
            found = ", ".join(self.tags)
            what = (
                "has embeddings of several models"
                if wanted is None
                else f"has no embeddings tagged {wanted!r}"
            )
            raise InputError(f"{self.folder}: {what}; name one with --tag: {found}")
        return wanted


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


def open_pool(folder: str) -> Pool:
    """Finds a pool's shards; reads the parquet footers and the names in the first npz, no embeddings.

    Raises:
      InputError: no such folder, nothing in it, a parquet file without its embeddings or the reverse.
    """
    folder = folder.rstrip("/") or folder
    if not files.is_folder(folder):
        what = "is a file" if files.exists(folder) else "no such folder"
        raise InputError(f"{folder}: {what}; expected a folder of metadata shards (.parquet beside .npz)")
    runs.check_finished(folder)
    if files.is_folder(files.join(folder, "img_emb")):
        return _open_clip_retrieval(folder)
    metadata = {_stem(path): path for path in files.list_folder(folder, ".parquet")}
    arrays = {_stem(path): path for path in files.list_folder(folder, ".npz")}
    if not metadata and not arrays:
        if files.list_folder(folder, ".tar"):
            raise InputError(f"{folder}: holds tars, not embeddings; run `clipdata embed {folder} ...` first")
        raise InputError(
            f"{folder}: the pool is empty; expected metadata shards, name.parquet beside name.npz, or"
            " clip-retrieval's folders img_emb, text_emb and metadata"
        )
    if alone := sorted(set(metadata) ^ set(arrays)):
        has, lacks = (".parquet", ".npz") if alone[0] in metadata else (".npz", ".parquet")
        raise InputError(f"{folder}: {alone[0]}{has} has no {alone[0]}{lacks} beside it; add or remove it")
    shards = tuple(
        Shard(name, metadata[name], arrays[name], arrays[name], _footer_rows(metadata[name]))
        for name in sorted(metadata)
    )
    return Pool(folder, shards, _first_tags(shards))


def _first_tags(shards: tuple[Shard, ...]) -> tuple[str, ...]:
    """The tags of the first shard that can be read; the others are looked at when it is their turn."""
    for shard in shards:
        try:
            return _tags(shard.images)
        except InputError as error:
            last = error
    raise last


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _open_clip_retrieval(folder: str) -> Pool:
    def numbered(name: str, suffix: str) -> dict[str, str]:
        paths = files.list_folder(files.join(folder, name), suffix)
        return {re.sub(r"^.*_", "", _stem(path)): path for path in paths}

    images, texts = numbered("img_emb", ".npy"), numbered("text_emb", ".npy")
    metadata = numbered("metadata", ".parquet")
    if not images:
        raise InputError(f"{folder}: img_emb is empty; expected clip-retrieval's img_emb/img_emb_0.npy, ...")
    for name, found in (("text_emb", texts), ("metadata", metadata)):
        if odd := sorted(set(found) ^ set(images)):
            raise InputError(
                f"{folder}: img_emb and {name} don't have files of the same numbers, as in"
                f" img_emb_0.npy, text_emb_0.npy, metadata_0.parquet (see {odd[0]!r}); add or remove it"
            )
    shards = [
        Shard(_stem(metadata[n]), metadata[n], images[n], texts[n], _footer_rows(metadata[n])) for n in images
    ]
    shards.sort(key=lambda shard: shard.name)
    return Pool(folder, tuple(shards), ("clip",), has_uids="uid" in _column_names(shards[0].metadata))


def _footer_rows(path: str) -> int:
    with files.open_read(path) as file:
        try:
            return int(pq.ParquetFile(file).metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a parquet file, or cut short ({error}); write it again") from error


def _column_names(path: str) -> list[str]:
    with files.open_read(path) as file:
        return list(pq.ParquetFile(file).schema_arrow.names)


def _tags(path: str) -> tuple[str, ...]:
    with files.open_read(path) as file:
        try:
            names = {name.removesuffix(".npy") for name in zipfile.ZipFile(file).namelist()}
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{path}: not a .npz file, or cut short ({error}); write it again") from error
    tags = sorted(name.removesuffix("_img") for name in names if name.endswith("_img"))
    tags = [tag for tag in tags if f"{tag}_txt" in names]
    if not tags:
        raise InputError(
            f"{path}: holds {', '.join(sorted(names)) or 'nothing'}; expected <tag>_img and <tag>_txt, e.g. b32_img"
        )
    return tuple(tags)


def read_shard(shard: Shard, tag: str) -> Embeddings:
    """Reads a shard's uids and one model's embeddings.

    Raises:
      InputError: a file is damaged, lacks the tag or the uid column, or the rows don't agree.
    """
    uid = read_uids(shard)
    images = read_array(shard.images, f"{tag}_img")
    texts = read_array(shard.texts, f"{tag}_txt")
    for path, emb in ((shard.images, images), (shard.texts, texts)):
        if emb.ndim != 2 or emb.dtype.kind != "f":
            raise InputError(
                f"{path}: holds {emb.dtype}{list(emb.shape)}, expected floats of shape (rows, dim)"
            )
        if len(emb) != shard.rows:
            raise InputError(
                f"{path}: {len(emb)} rows, but {shard.metadata} has {shard.rows}; write both again"
            )
    if images.shape != texts.shape:
        raise InputError(
            f"{shard.images}: pictures are {images.shape}, captions {texts.shape}; write both again"
        )
    return Embeddings(uid, images, texts)


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
