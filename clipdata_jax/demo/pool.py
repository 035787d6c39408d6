"""Demonstration data on disk: a pool of good and bad pairs, clean pairs, a target set, a classification set.

Every image's random numbers come from a hash of its maker's name, the seed and its number, so the sets of
two makers are disjoint even under one seed, and within a maker other seeds give other images. Equal
arguments give equal bytes, on one version of Pillow and PyArrow.
"""

import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax import storage
from clipdata_jax.demo import words
from clipdata_jax.demo.facts import KINDS
from clipdata_jax.demo.pairs import Pair, clean_pair, deal_kinds, pool_pair, rng_of, uid_of
from clipdata_jax.demo.scenes import draw_scene, to_jpeg
from clipdata_jax.errors import InputError
from clipdata_jax.formats.tars import write_tar

TEMPLATES: tuple[str, ...] = (
    "a {c}",
    "a picture of a {c}",
    "a drawing of a {c}",
    "an illustration of one {c}",
    "a cartoon of a single {c}",
    "a big {c}",
)


def make_pool(folder: str, *, pairs: int = 6000, seed: int = 0, shards: int = 6, size: int = 64) -> list[str]:
    """Writes a pool such as the web gives: half of its pairs sound, the rest spoilt in known ways.

    Beside the tars, `truth.parquet` has the columns uid and kind, in the order of the pairs; kind is a key of
    `pairs.SHARES`. A "duplicate" copies an earlier sound pair, as the same bytes or more compressed.

    Args:
      folder: where to write; any fsspec path.
      pairs: the number of pairs.
      seed: another seed gives another pool.
      shards: the number of tars, of equal length to within one pair, kinds mixed over all.
      size: the images' side in pixels.

    Returns:
      The tars' paths.

    Raises:
      ValueError: fewer than 20 pairs, more shards than pairs, or a size below 8.
      InputError: the folder holds other tars, or can't be written.
    """
    if pairs < 20:
        raise ValueError(f"pairs is {pairs}: a pool needs at least 20 to hold every kind")
    kinds = deal_kinds(pairs, seed)
    rows = (pool_pair(kinds, seed, index, size) for index in range(pairs))
    tars = _write_tars(folder, rows, "pool", pairs, seed, shards)
    uids = [uid_of("pool", seed, index) for index in range(pairs)]
    with storage.open_write(storage.join(folder, "truth.parquet")) as file:
        pq.write_table(pa.table({"uid": uids, "kind": kinds}), file)
    return tars


def make_clean_tars(
    folder: str, *, pairs: int, seed: int = 0, shards: int = 1, size: int = 64, web_share: float = 0.0
) -> list[str]:
    """Writes tars of sound pairs, for training a teacher and for retrieval.

    Args:
      folder: where to write; any fsspec path.
      pairs: the number of pairs.
      seed: another seed gives other pairs; keep those for training and for evaluation apart.
      shards: the number of tars.
      size: the images' side in pixels.
      web_share: the share of pairs, at random, that have a generic caption or an image of words instead: a
        teacher that never saw any doesn't over-rate them as teachers trained on the web do.

    Returns:
      The tars' paths.

    Raises:
      ValueError: no pairs, more shards than pairs, a share outside [0, 1], or a size below 8.
      InputError: the folder holds other tars, or can't be written.
    """
    if not 0 <= web_share <= 1:
        raise ValueError(f"web_share is {web_share}, not within [0, 1]")
    rows = (clean_pair(seed, index, size, web_share) for index in range(pairs))
    return _write_tars(folder, rows, "clean", pairs, seed, shards)


def make_target(folder: str, *, images: int = 300, seed: int = 0, size: int = 64) -> list[str]:
    """Writes JPEG files of the downstream task, see `make_zero_shot`: the target set of NormSim.

    One object each, all kinds in turn.

    Args:
      folder: where to write; any fsspec path.
      images: the number of images.
      seed: another seed gives other images.
      size: their side in pixels.

    Returns:
      The files' paths.

    Raises:
      ValueError: no images, or a size below 8.
      InputError: the folder can't be written.
    """
    if images < 1:
        raise ValueError(f"images is {images}, not at least 1")
    paths = [storage.join(folder, f"{index:06d}.jpg") for index in range(images)]
    for index, path in enumerate(paths):
        scene = draw_scene(rng_of("target", seed, index), size=size, kind=KINDS[index % len(KINDS)], alone=True)
        storage.write_bytes(path, to_jpeg(scene.image))
    return paths


def make_zero_shot(folder: str, *, per_class: int = 25, seed: int = 0, size: int = 64) -> list[str]:
    """Writes a classification set that asks for the kind of an object.

    One tar of `key.jpg` and `key.cls` (the class's number), in random order; `classnames.json`, the list of
    the classes' names; `templates.json`, a list of sentences in which "{c}" is the place of the name.

    Args:
      folder: where to write; any fsspec path.
      per_class: images of each class.
      seed: another seed gives other images.
      size: their side in pixels.

    Returns:
      The path of the one tar.

    Raises:
      ValueError: no images, or a size below 8.
      InputError: the folder holds other tars, or can't be written.
    """
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}, not at least 1")
    count = per_class * len(KINDS)
    order = rng_of("zero_shot", seed, 0, "deal").permutation(count).tolist()
    paths = _free_paths(folder, 1)
    write_tar(paths[0], _zero_shot_members(order, seed, size))
    for name, content in (("classnames", [words.NOUNS[k][0][0] for k in KINDS]), ("templates", list(TEMPLATES))):
        storage.write_bytes(storage.join(folder, f"{name}.json"), f"{json.dumps(content, indent=1)}\n".encode())
    return paths


def _zero_shot_members(order: list[int], seed: int, size: int) -> Iterator[tuple[str, bytes]]:
    for row, index in enumerate(order):
        label = index % len(KINDS)
        scene = draw_scene(rng_of("zero_shot", seed, index), size=size, kind=KINDS[label], alone=True)
        yield f"{row:06d}.cls", str(label).encode()
        yield f"{row:06d}.jpg", to_jpeg(scene.image)


def _free_paths(folder: str, shards: int) -> list[str]:
    """The paths of a folder's tars; a longer set from an earlier call would get mixed with them."""
    paths = [storage.join(folder, f"{shard:05d}.tar") for shard in range(shards)]
    others = sorted(set(storage.Folder(folder).files(".tar")) - set(paths))
    if others:
        raise InputError(f"{folder}: holds another set's tars ({others[0]}); empty it or name another folder")
    return paths


def _write_tars(folder: str, rows: Iterator[Pair], maker: str, pairs: int, seed: int, shards: int) -> list[str]:
    if not 1 <= shards <= pairs:
        raise ValueError(f"{pairs} pairs don't make {shards} shards")
    paths = _free_paths(folder, shards)
    bounds = [pairs * shard // shards for shard in range(shards + 1)]
    for shard, path in enumerate(paths):
        count = bounds[shard + 1] - bounds[shard]
        write_tar(path, _members(rows, maker, seed, shard, bounds[shard], count))
    return paths


def _members(
    rows: Iterator[Pair], maker: str, seed: int, shard: int, start: int, count: int
) -> Iterator[tuple[str, bytes]]:
    """The three members of each of a shard's pairs, keys as img2dataset writes them."""
    for row in range(count):
        jpeg, caption = next(rows)
        key, uid = f"{shard:05d}{row:04d}", uid_of(maker, seed, start + row)
        yield f"{key}.jpg", jpeg
        yield f"{key}.json", f"{json.dumps({'key': key, 'uid': uid})}\n".encode()
        yield f"{key}.txt", caption.encode()
