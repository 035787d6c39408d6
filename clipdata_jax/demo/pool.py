"""Demonstration data on disk: a spoilt pool with its truth, clean pairs, a target set, a classification set.

Every picture's random numbers come from a hash of its maker's name, the seed and its number, so the sets of two
makers are disjoint even under one seed, and within a maker other seeds give other pictures. Equal arguments
give equal bytes, on one version of Pillow and PyArrow.
"""

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipdata_jax.data import files
from clipdata_jax.data.tars import write_tar
from clipdata_jax.demo import spoils, words
from clipdata_jax.demo.captions import describe
from clipdata_jax.demo.facts import KINDS, Facts, imagine, pick
from clipdata_jax.demo.scenes import Scene, draw_scene, to_jpeg
from clipdata_jax.errors import InputError

# What may be true of a pair, and the share of a pool that it has.
SHARES: dict[str, float] = {
    "sound": 0.50,
    "shuffled": 0.14,
    "boilerplate": 0.08,
    "generic": 0.08,
    "text_picture": 0.08,
    "blank": 0.06,
    "duplicate": 0.06,
}

TEMPLATES: tuple[str, ...] = (
    "a {c}",
    "a picture of a {c}",
    "a drawing of a {c}",
    "an illustration of one {c}",
    "a cartoon of a single {c}",
    "a big {c}",
)

Pair = tuple[bytes, str]


def make_pool(folder: str, *, pairs: int = 6000, seed: int = 0, shards: int = 6, size: int = 64) -> list[str]:
    """Writes a pool such as the web gives: half of its pairs sound, the rest spoilt in known ways.

    Beside the tars, `truth.parquet` has the columns uid and kind, in the order of the pairs; kind is a key of
    `SHARES`. A "duplicate" copies an earlier sound pair, as the same bytes or compressed once more.

    Args:
      folder: where to write; any fsspec path.
      pairs: the number of pairs.
      seed: another seed gives another pool.
      shards: the number of tars, of equal length to within one pair, kinds mixed over all.
      size: the pictures' side in pixels.

    Returns:
      The tars' paths.

    Raises:
      ValueError: fewer than 20 pairs, more shards than pairs, or a size below 8.
      InputError: the folder holds other tars, or can't be written.
    """
    if pairs < 20:
        raise ValueError(f"pairs is {pairs}: a pool needs at least 20 to hold every kind")
    kinds = _deal_kinds(pairs, seed)
    rows = (_pool_pair(kinds, seed, index, size) for index in range(pairs))
    tars = _write_tars(folder, rows, "pool", pairs, seed, shards)
    uids = [uid_of("pool", seed, index) for index in range(pairs)]
    with files.open_write(files.join(folder, "truth.parquet")) as file:
        pq.write_table(
            pa.table({"uid": pa.array(uids, pa.string()), "kind": pa.array(kinds, pa.string())}), file
        )
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
      size: the pictures' side in pixels.
      web_share: the share of pairs, at random, that have a generic caption or a picture of words instead: a
        teacher that never saw any doesn't over-rate them as teachers trained on the web do.

    Returns:
      The tars' paths.

    Raises:
      ValueError: no pairs, more shards than pairs, a share outside [0, 1], or a size below 8.
      InputError: the folder holds other tars, or can't be written.
    """
    if not 0 <= web_share <= 1:
        raise ValueError(f"web_share is {web_share}, not within [0, 1]")
    rows = (_clean_pair(seed, index, size, web_share) for index in range(pairs))
    return _write_tars(folder, rows, "clean", pairs, seed, shards)


def make_target(folder: str, *, pictures: int = 300, seed: int = 0, size: int = 64) -> list[str]:
    """Writes plain JPEG files like those of `make_zero_shot`, the downstream task: the target set of NormSim.

    One object each, all kinds in turn.

    Args:
      folder: where to write; any fsspec path.
      pictures: the number of pictures.
      seed: another seed gives other pictures.
      size: their side in pixels.

    Returns:
      The files' paths.

    Raises:
      ValueError: no pictures, or a size below 8.
      InputError: the folder can't be written.
    """
    if pictures < 1:
        raise ValueError(f"pictures is {pictures}, not at least 1")
    paths = [files.join(folder, f"{index:06d}.jpg") for index in range(pictures)]
    for index, path in enumerate(paths):
        scene = draw_scene(_rng("target", seed, index), size=size, kind=KINDS[index % len(KINDS)], alone=True)
        files.write_bytes(path, to_jpeg(scene.image))
    return paths


def make_zero_shot(folder: str, *, per_class: int = 25, seed: int = 0, size: int = 64) -> list[str]:
    """Writes a classification set: which kind of object is it?

    One tar of `key.jpg` and `key.cls` (the class's number), in random order; `classnames.json`, the list of
    the classes' names; `templates.json`, a list of sentences in which "{c}" is the place of the name.

    Args:
      folder: where to write; any fsspec path.
      per_class: pictures of each class.
      seed: another seed gives other pictures.
      size: their side in pixels.

    Returns:
      The path of the one tar.

    Raises:
      ValueError: no pictures, or a size below 8.
      InputError: the folder holds other tars, or can't be written.
    """
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}, not at least 1")
    count = per_class * len(KINDS)
    order = _rng("zero_shot", seed, 0, "deal").permutation(count).tolist()
    paths = _free_paths(folder, 1)
    write_tar(paths[0], _zero_shot_members(order, seed, size))
    for name, content in (
        ("classnames", [words.NOUNS[k][0][0] for k in KINDS]),
        ("templates", list(TEMPLATES)),
    ):
        files.write_bytes(files.join(folder, f"{name}.json"), f"{json.dumps(content, indent=1)}\n".encode())
    return paths


def uid_of(maker: str, seed: int, index: int) -> str:
    """The uid of a pair.

    Args:
      maker: "pool" or "clean".
      seed: the maker's seed.
      index: the pair's number, counted over all shards.

    Returns:
      32 hex digits.
    """
    return _hash(maker, seed, index, "uid")


def _hash(*parts: str | int) -> str:
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def _rng(maker: str, seed: int, index: int, use: str = "scene") -> np.random.Generator:
    return np.random.default_rng(int(_hash(maker, seed, index, use), 16))


def _deal_kinds(pairs: int, seed: int) -> list[str]:
    """The kind of each pair: exact shares in random order, the first pair sound."""
    counts = {kind: round(share * pairs) for kind, share in SHARES.items()}
    counts["sound"] += pairs - sum(counts.values())
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    dealt = [kinds[i] for i in _rng("pool", seed, 0, "deal").permutation(pairs).tolist()]
    first = dealt.index("sound")
    dealt[0], dealt[first] = dealt[first], dealt[0]
    return dealt


def _imagined(seed: int, index: int) -> tuple[Facts, str]:
    """The facts and the caption of a pool's scene, without drawing it."""
    rng = _rng("pool", seed, index)
    facts = imagine(rng)
    return facts, describe(facts, rng)


def _pool_pair(kinds: list[str], seed: int, index: int, size: int) -> Pair:
    kind = kinds[index]
    # What spoils a pair has numbers of its own, so that its scene is what it would be if sound.
    rng = _rng("pool", seed, index, "spoil")
    if kind == "duplicate":
        original = pick(rng, [i for i in range(index) if kinds[i] == "sound"])
        scene = draw_scene(_rng("pool", seed, original), size=size)
        return to_jpeg(scene.image, quality=pick(rng, (85, 85, 70, 60))), scene.caption
    scene = draw_scene(_rng("pool", seed, index), size=size)
    if kind == "shuffled":
        return to_jpeg(scene.image), _foreign_caption(scene.facts, rng, seed, index, len(kinds))
    return _spoil(kind, scene, rng, size)


def _foreign_caption(facts: Facts, rng: np.random.Generator, seed: int, index: int, pairs: int) -> str:
    """The caption of another pair of the pool, one that isn't true of these facts."""
    others = (_imagined(seed, i) for i in rng.permutation(pairs).tolist() if i != index)
    return next(caption for other, caption in others if not other.describes(facts))


def _spoil(kind: str, scene: Scene, rng: np.random.Generator, size: int) -> Pair:
    """A scene as a pair of this kind."""
    image, caption = scene.image, scene.caption
    if kind == "boilerplate":
        caption = spoils.boilerplate_caption(rng)
    elif kind == "generic":
        caption = spoils.generic_caption(rng)
    elif kind == "blank":
        image = spoils.paint_blank(rng, size=size)
    elif kind == "text_picture":
        image, caption = _words_picture(scene, rng, size)
    return to_jpeg(image), caption


def _words_picture(scene: Scene, rng: np.random.Generator, size: int) -> tuple[Image.Image, str]:
    """A banner with a slogan, or the caption in writing, on a sheet or before the empty background."""
    roll = rng.random()
    if roll < 0.5:
        text = spoils.slogan(rng)
        return spoils.paint_text(text, rng, size=size), text
    facts = scene.facts if roll < 0.75 else None
    return spoils.paint_text(scene.caption, rng, size=size, facts=facts), scene.caption


def _clean_pair(seed: int, index: int, size: int, web_share: float) -> Pair:
    scene = draw_scene(_rng("clean", seed, index), size=size)
    rng = _rng("clean", seed, index, "spoil")
    kind = pick(rng, ("generic", "text_picture")) if rng.random() < web_share else "sound"
    return _spoil(kind, scene, rng, size)


def _zero_shot_members(order: list[int], seed: int, size: int) -> Iterator[tuple[str, bytes]]:
    for row, index in enumerate(order):
        label = index % len(KINDS)
        scene = draw_scene(_rng("zero_shot", seed, index), size=size, kind=KINDS[label], alone=True)
        yield f"{row:06d}.cls", str(label).encode()
        yield f"{row:06d}.jpg", to_jpeg(scene.image)


def _free_paths(folder: str, shards: int) -> list[str]:
    """The paths of a folder's tars; a longer set from an earlier call would get mixed with them."""
    paths = [files.join(folder, f"{shard:05d}.tar") for shard in range(shards)]
    others = sorted(set(files.list_folder(folder, ".tar")) - set(paths))
    if others:
        raise InputError(f"{folder}: holds another set's tars ({others[0]}); empty it or name another folder")
    return paths


def _write_tars(
    folder: str, rows: Iterator[Pair], maker: str, pairs: int, seed: int, shards: int
) -> list[str]:
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
