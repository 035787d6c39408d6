"""Embeddings of a pool or target: DataComp's metadata shards (parquet beside npz), or clip-retrieval's folders."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.formats import arrays, file_kinds, ids, parquet, score_tables, uids
from clipdata_jax.runtime import threads

BAD_REASONS = {1: "not finite", 2: "zero", 3: "not of unit norm"}
# The largest |norm - 1| that rounding to the format can cause.
_NORM_TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2}
_CHUNK = 1 << 9  # rows whose float32 form stays in a core's cache


@dataclasses.dataclass(frozen=True)
class EmbeddingShard:
    """The files of one shard.

    Attributes:
      name: the shard's name, also that of its part of a score table.
      metadata: the parquet file.
      images: the file of image embeddings: a .npz or .npy.
      texts: the file of caption embeddings: the same .npz, or a .npy; None if there are none.
      rows: pairs, from the parquet footer; fewer where a limit leaves out the last ones.
      keys: the names of the arrays of images and captions in the .npz, if they aren't TAG_img and TAG_txt.
      uid_column: the column of ids in the metadata.
      left_out: the rows at the end of the files that are not read.
    """

    name: str
    metadata: str
    images: str
    texts: str | None
    rows: int
    keys: tuple[str, str] | None = None
    uid_column: str = "uid"
    left_out: int = 0

    def dim(self, tag: str) -> int:
        """Reads the dimension of a model's embeddings, from the header."""
        return arrays.array_shape(self.images, self.array(tag))[1]

    def array(self, tag: str, *, texts: bool = False) -> str:
        """The name in the .npz of a model's embeddings of the images or `texts`."""
        return self.keys[texts] if self.keys else f"{tag}_{'txt' if texts else 'img'}"


@dataclasses.dataclass(frozen=True)
class EmbeddingPool:
    """The shards of a pool.

    Attributes:
      folder: the pool.
      shards: its shards, sorted by name.
      tags: the models whose embeddings it holds.
      has_texts: whether it holds embeddings of captions.
      has_uids: whether the metadata hold uids; otherwise (clip-retrieval) they derive from file name and row.
      unreadable: error messages of the shards that were left out.
    """

    folder: str
    shards: tuple[EmbeddingShard, ...]
    tags: tuple[str, ...]
    has_texts: bool = True
    has_uids: bool = True
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def first(self, pairs: int) -> EmbeddingPool:
        """The first pairs of the pool alone."""
        taken: list[EmbeddingShard] = []
        for shard in self.shards:
            rows = min(shard.rows, pairs)
            pairs -= rows
            taken += [dataclasses.replace(shard, rows=rows, left_out=shard.rows - rows)] if rows else []
        return dataclasses.replace(self, shards=tuple(taken))

    def tag(self, wanted: str | None) -> str:
        """Returns the wanted model's tag, or the only one.

        Raises:
          InputError: the pool lacks it, or holds several and none is named.
        """
        if wanted is None and len(self.tags) == 1:
            return self.tags[0]
        if wanted not in self.tags:
            found = ", ".join(self.tags)
            what = "has embeddings of several models" if wanted is None else f"has no embeddings tagged {wanted!r}"
            raise InputError(f"{self.folder}: {what}; name one with --tag: {found}")
        return wanted


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The uids and embeddings of a shard.

    Attributes:
      uid: shape (n,), u8,u8.
      images: shape (n, d), the dtype on disk, usually float16.
      texts: shape (n, d), or (n, 0) if there are none.
      hashed: how many of the uids are made of ids of another kind.
    """

    uid: np.ndarray
    images: np.ndarray
    texts: np.ndarray
    hashed: int = 0


def open_pool(
    folder: str,
    *,
    on_bad: OnBad = "stop",
    texts: bool = True,
    rows: Mapping[str, int] | None = None,
    keys: tuple[str | None, str | None] = (None, None),
    uid_column: str = "uid",
) -> EmbeddingPool:
    """Opens a pool; reads parquet footers and the names in the first .npz, but no embeddings.

    Args:
      folder: a folder of metadata shards, or of clip-retrieval's folders.
      on_bad: "skip" leaves out shards whose footer can't be read and lists them in `EmbeddingPool.unreadable`.
      texts: whether it must hold embeddings of captions too.
      rows: shard -> its pairs, where known; the footers of other shards are read.
      keys: the names of the arrays of images and captions in each .npz, if they aren't TAG_img and TAG_txt.
      uid_column: the column of ids in the metadata.

    Raises:
      InputError: the folder is missing or holds no pairs, a shard lacks its parquet or embedding file, or there are no
        embeddings of captions.
    """
    pool = _open(folder.rstrip("/") or folder, on_bad, texts, rows or {}, keys)
    if not len(pool):
        raise InputError(f"{pool.folder}: the pool is empty: its {len(pool.shards)} shards have no rows")
    if uid_column != "uid":
        ids.check_name(pool.shards[0].metadata, parquet.rows_and_types(pool.shards[0].metadata)[1], uid_column)
        shards = tuple(dataclasses.replace(shard, uid_column=uid_column) for shard in pool.shards)
        pool = dataclasses.replace(pool, shards=shards, has_uids=True)
    if texts and not pool.has_texts:
        named = " (name their array with --text-key)" if keys[0] and not keys[1] else ""
        raise InputError(
            f"{pool.folder}: has no embeddings of captions{named}, which clip_score and neg_clip_loss need; images"
            " alone can be scored with --scores norm_sim --target NAME=PATH"
        )
    return pool


def _open(
    folder: str, on_bad: OnBad, texts: bool, rows: Mapping[str, int], keys: tuple[str | None, str | None]
) -> EmbeddingPool:
    at = storage.Folder(folder)
    if not at.is_folder():
        what = "is a file" if at.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; expected a folder of metadata shards (.parquet beside .npz)")
    storage.check_finished(at)
    if at.is_folder("img_emb"):
        return _open_clip_retrieval(folder, on_bad, rows)
    metadata = {_stem(path): path for path in at.files(".parquet")}
    embeddings = {_stem(path): path for path in at.files(".npz")}
    if not embeddings and at.files(".tar"):
        raise InputError(f"{folder}: holds tars, not embeddings; run `clipdata embed {folder} ...` first")
    if metadata and not embeddings:
        score_tables.check_not_scores(folder, parquet.rows_and_types(min(metadata.values()))[1])
    if not metadata and not embeddings:
        raise InputError(
            f"{folder}: the pool is empty; expected metadata shards, name.parquet beside name.npz, or"
            " clip-retrieval's folders img_emb, text_emb and metadata"
        )
    if alone := sorted(set(metadata) ^ set(embeddings)):
        has, lacks = (".parquet", ".npz") if alone[0] in metadata else (".npz", ".parquet")
        raise InputError(f"{folder}: {alone[0]}{has} has no {alone[0]}{lacks} beside it; add or remove it")
    found = [(name, metadata[name], embeddings[name], embeddings[name]) for name in sorted(metadata)]
    shards, unreadable = _read_footers(found, on_bad, rows)
    names = _first_names(shards)
    tags = _tags(shards[0].images, names, keys, texts)
    image, text = keys
    with_texts = tags if image and text else tuple(tag for tag in tags if f"{tag}_txt" in names)
    has_texts = bool(with_texts) if texts else with_texts == tags
    tags = with_texts if texts and has_texts else tags
    given = (image, text or "") if image else None
    shards = tuple(dataclasses.replace(shard, keys=given, texts=shard.texts if has_texts else None) for shard in shards)
    return EmbeddingPool(folder, shards, tags, has_texts, unreadable=unreadable)


def _read_footers(
    found: Sequence[tuple[str, str, str, str | None]], on_bad: OnBad, rows: Mapping[str, int]
) -> tuple[tuple[EmbeddingShard, ...], tuple[str, ...]]:
    """Adds their rows to shards (name, metadata, images, texts); returns the others' error messages."""
    shards: list[EmbeddingShard] = []
    unreadable: list[str] = []
    unknown = [one[1] for one in found if one[0] not in rows]
    footers = threads.prefetch(_rows_or_error, unknown, threads=storage.Folder(found[0][1]).threads)
    for one in found:
        here = rows[one[0]] if one[0] in rows else next(footers)
        if isinstance(here, int):
            shards.append(EmbeddingShard(*one, here))
            continue
        if on_bad == "stop" or len(unreadable) + 1 == len(found):
            raise here
        unreadable.append(str(here))
    return tuple(shards), tuple(unreadable)


def _rows_or_error(path: str) -> int | InputError:
    try:
        return parquet.rows_and_types(path)[0]
    except InputError as error:
        return error


def _first_names(shards: tuple[EmbeddingShard, ...]) -> set[str]:
    """The names of the arrays of the first readable shard; the others are checked when they are read."""
    for shard in shards:
        try:
            return arrays.array_names(shard.images)
        except InputError as error:
            last = error
    raise last


def _tags(path: str, names: set[str], keys: tuple[str | None, str | None], texts: bool) -> tuple[str, ...]:
    """The models whose image embeddings a .npz holds; the key of the images if that is given."""
    held = ", ".join(sorted(names)) or "nothing"
    for flag, key in zip(("--image-key", "--text-key"), keys, strict=True):
        if key is not None and key not in names:
            raise InputError(f"{path}: holds {held}; {flag} {key} is not among them")
    if keys[0] is not None:
        return (keys[0],)
    tags = sorted(name.removesuffix("_img") for name in names if name.endswith("_img"))
    if not tags:
        expected, flags = ("<tag>_img and <tag>_txt", " and --text-key") if texts else ("<tag>_img", "")
        raise InputError(
            f"{path}: holds {held}; expected {expected}, e.g. b32_img; name others with --image-key{flags}"
        )
    return tuple(tags)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _open_clip_retrieval(folder: str, on_bad: OnBad, rows: Mapping[str, int]) -> EmbeddingPool:
    def numbered(name: str, suffix: str) -> dict[str, str]:
        paths = storage.Folder(folder).at(name).files(suffix)
        return {re.sub(r"^.*_", "", _stem(path)): path for path in paths}

    images, texts = numbered("img_emb", ".npy"), numbered("text_emb", ".npy")
    metadata = numbered("metadata", ".parquet")
    if not images:
        raise InputError(f"{folder}: img_emb is empty; expected clip-retrieval's img_emb/img_emb_0.npy, ...")
    for name, found in (("text_emb", texts), ("metadata", metadata)) if texts else (("metadata", metadata),):
        if odd := sorted(set(found) ^ set(images)):
            raise InputError(
                f"{folder}: img_emb and {name} don't have files of the same numbers, as in"
                f" img_emb_0.npy, text_emb_0.npy, metadata_0.parquet (see {odd[0]!r}); add or remove it"
            )
    pairs = sorted((_stem(metadata[n]), metadata[n], images[n], texts.get(n)) for n in images)
    shards, unreadable = _read_footers(pairs, on_bad, rows)
    has_uids = "uid" in parquet.rows_and_types(shards[0].metadata)[1]
    return EmbeddingPool(folder, shards, ("clip",), bool(texts), has_uids, unreadable)


def read_shard(shard: EmbeddingShard, tag: str) -> Embeddings:
    """Reads a shard's uids and one model's embeddings.

    Raises:
      InputError: a file is damaged or lacks the tag or the uid column, or the shapes differ.
    """
    uid, hashed = read_ids(shard)
    images = read_images(shard, tag)
    if shard.texts is None:
        return Embeddings(uid, images, np.empty((len(images), 0), images.dtype), hashed)
    texts = _read_rows(shard, shard.texts, shard.array(tag, texts=True))
    if images.shape != texts.shape:
        raise InputError(f"{shard.images}: images are {images.shape}, captions {texts.shape}; write both again")
    return Embeddings(uid, images, texts, hashed)


def read_images(shard: EmbeddingShard, tag: str) -> np.ndarray:
    """Reads a shard's image embeddings of one model: shape (n, d), the dtype on disk.

    Raises:
      InputError: the file is damaged, lacks the tag, or has another number of rows than the metadata.
    """
    return _read_rows(shard, shard.images, shard.array(tag))


def _read_rows(shard: EmbeddingShard, path: str, name: str) -> np.ndarray:
    emb = arrays.read_array(path, name, rows=shard.rows + shard.left_out)[: shard.rows]
    if emb.ndim != 2 or not arrays.is_float(emb.dtype):
        raise InputError(f"{path}: holds {emb.dtype}{list(emb.shape)}, expected floats of shape (rows, dim)")
    return emb


def read_uids(shard: EmbeddingShard) -> np.ndarray:
    """Reads a shard's uids, u8,u8; see `read_ids`."""
    return read_ids(shard).uid


def read_ids(shard: EmbeddingShard) -> ids.ParsedIds:
    """Reads a shard's uids; clip-retrieval's metadata may lack them: then they derive from file name and row.

    Raises:
      InputError: the file is damaged, a uid is missing or of a wrong kind, or a DataComp shard has no uid column.
    """
    rows, names = parquet.rows_and_types(shard.metadata)
    if rows != (before := shard.rows + shard.left_out):
        raise InputError(f"{shard.metadata}: has {rows} rows, had {before} when the run began; start a new run")
    name = shard.uid_column
    if name in names or name != "uid" or shard.images.endswith(".npz"):
        ids.check_name(shard.metadata, names, name)
        column = parquet.read(shard.metadata, [name])[name][: shard.rows]
        return ids.from_column(column, shard.metadata, name=name)
    return ids.ParsedIds(uids.from_hex([uids.uid_of(shard.name, str(row)) for row in range(shard.rows)]), 0)


def find_bad_rows(embeddings: Sequence[np.ndarray], *, normalize: bool = False) -> tuple[list[np.ndarray], np.ndarray]:
    """Finds rows that aren't unit vectors in any of several arrays of n rows.

    Args:
      embeddings: arrays of shape (n, d).
      normalize: whether to scale rows of another norm to unit norm, rather than report them.

    Returns:
      The arrays, and shape (n,) uint8: 0 good, 1 not finite, 2 zero, 3 not of unit norm (|norm - 1| above 2e-3, for
      bfloat16 above 1e-2). If asked they are scaled, and are float32 at least where a row was not of unit norm:
      rounded to their format again, rows would have other directions.
    """
    norms = [np.empty(len(emb), np.float32) for emb in embeddings]
    bad = np.zeros(len(embeddings[0]), np.uint8)
    off = False
    for emb, norm in zip(embeddings, norms, strict=True):
        tolerance = _NORM_TOLERANCE.get(emb.dtype.name, 2e-3)
        for start in range(0, len(emb), _CHUNK):
            rows = slice(start, start + _CHUNK)
            norm[rows] = here = _norms(emb[rows])
            found = np.select([~np.isfinite(here), here == 0, np.abs(here - 1) > tolerance], [1, 2, 3])
            if normalize:
                off |= bool((found == 3).any())
                found[found == 3] = 0
            bad[rows] = np.where(bad[rows] == 0, found, bad[rows])
    if not normalize:
        return list(embeddings), bad
    return [_scale(emb, norm, widen=off) for emb, norm in zip(embeddings, norms, strict=True)], bad


def _scale(emb: np.ndarray, norm: np.ndarray, *, widen: bool) -> np.ndarray:
    """Divides rows by their norms, where these are finite and not 0, in float32."""
    out = np.empty(emb.shape, np.result_type(emb.dtype, np.float32) if widen else emb.dtype)
    divisor = np.where(np.isfinite(norm) & (norm > 0), norm, 1)[:, None]
    for start in range(0, len(emb), _CHUNK):
        rows = slice(start, start + _CHUNK)
        out[rows] = emb[rows].astype(np.float32) / divisor[rows]
    return out


def _norms(block: np.ndarray) -> np.ndarray:
    """The rows' norms in float32; not finite where a number isn't.

    NumPy widens float16 one number at a time. Integer arrays are three times as fast: shifted left by 13 bits, the
    magnitude of a float16 is that of a float32 smaller by 2^112, and what isn't finite comes out above 65,504.
    """
    if block.dtype == np.float16 and block.dtype.isnative:
        bits = np.left_shift(block.view(np.uint16), 13, dtype=np.uint32)
        bits &= np.uint32(0x0FFFE000)
        wide = bits.view(np.float32)
        wide *= np.float32(2.0**112)
    else:
        wide = block.astype(np.float32)
    norm: np.ndarray = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    large = np.flatnonzero(norm > 65_504)
    norm[large[~np.isfinite(block[large]).all(axis=1)]] = np.nan
    return norm


def target_array(path: str, tag: str) -> str:
    """The name of a target's array in a .npz: TAG_img, or TAG where that is the --image-key of the pool."""
    return tag if path.endswith(".npz") and tag in arrays.array_names(path) else f"{tag}_img"


def read_target(path: str, tag: str, *, dim: int | None = None) -> np.ndarray:
    """Reads target image embeddings.

    Args:
      path: a .npy of shape (rows, dim), a .npz with an array `<tag>_img` or `<tag>`, or a folder of such .npz files.
      tag: the model, or the pool's --image-key.
      dim: the pool's dimension, None if not known yet.

    Returns:
      Unit rows, shape (rows, dim), float16, bfloat16 or float32.

    Raises:
      InputError: it can't be read, is empty, has another dimension than the pool, or a row isn't of unit norm.
    """
    parts = [path]
    at = storage.Folder(path)
    if at.is_folder():
        storage.check_finished(at)
        parts = at.files(".npz")
        if not parts:
            raise InputError(
                f"{path}: the target folder holds no .npz; embed its images first, clipdata embed {path}"
                f" --images-only --model {tag}=CHECKPOINT ..., and name that --out here"
            )
    elif file_kinds.is_pickle(path):
        raise InputError(
            f"{path}: is a pickle, as torch.save writes it, not embeddings as .npy; pickles are never loaded: where you"
            f" trust it, numpy.save('target.npy', torch.load({path!r})['image_features'].numpy()) converts DataComp's"
        )
    try:
        found = [arrays.read_array(part, target_array(part, tag)) for part in parts]
    except InputError as error:
        raise InputError(
            f"{error} (the target of a pool tagged {tag!r}: embed both with the same --model {tag}=CHECKPOINT)"
        ) from error
    for part, array in zip(parts, found, strict=True):
        if array.ndim != 2 or not arrays.is_float(array.dtype):
            raise InputError(f"{part}: the target is {array.dtype}{list(array.shape)}, expected floats (rows, dim)")
        if dim is not None and array.shape[1] != dim:
            raise InputError(
                f"{part}: the target has dimension {array.shape[1]}, the pool {dim}; embed both with the same model"
            )
    target = np.concatenate(found)
    if not len(target):
        raise InputError(f"{path}: the target is empty, expected at least one row")
    _, bad = find_bad_rows([target])
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(f"{path}: target row {row} is {BAD_REASONS[int(bad[row])]}; expected unit rows")
    return target.astype(np.float32) if target.dtype == np.float64 else target
