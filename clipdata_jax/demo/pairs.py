"""Single pairs of the demonstration's sets, each a pure function of its set, the seed and its number."""

import hashlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from clipdata_jax.demo import spoils
from clipdata_jax.demo.captions import describe
from clipdata_jax.demo.facts import Facts, imagine, pick
from clipdata_jax.demo.scenes import Scene, draw_scene, to_jpeg

# What may be true of a pair, and the share of a pool that it has.
SHARES: dict[str, float] = {
    "sound": 0.50,
    "shuffled": 0.14,
    "boilerplate": 0.08,
    "generic": 0.08,
    "text_image": 0.08,
    "blank": 0.06,
    "duplicate": 0.06,
}

# The bytes of a JPEG file, and its caption.
Pair = tuple[bytes, str]


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


def rng_of(maker: str, seed: int, index: int, use: str = "scene") -> np.random.Generator:
    """The random numbers of one image.

    Args:
      maker: "pool", "clean", "target" or "zero_shot": no two share numbers.
      seed: the maker's seed.
      index: the image's number.
      use: what the numbers are for; other uses get independent ones.

    Returns:
      A fresh generator.
    """
    return np.random.default_rng(int(_hash(maker, seed, index, use), 16))


def deal_kinds(pairs: int, seed: int) -> list[str]:
    """Deals the kinds of a pool's pairs.

    Args:
      pairs: the number of pairs.
      seed: the pool's seed.

    Returns:
      The kind of each pair: the exact shares in random order, the first pair sound.
    """
    counts = {kind: round(share * pairs) for kind, share in SHARES.items()}
    counts["sound"] += pairs - sum(counts.values())
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    dealt = [kinds[i] for i in rng_of("pool", seed, 0, "deal").permutation(pairs).tolist()]
    first = dealt.index("sound")
    dealt[0], dealt[first] = dealt[first], dealt[0]
    return dealt


def _imagined(seed: int, index: int) -> tuple[Facts, str]:
    """The facts and the caption of a pool's scene, without drawing it."""
    rng = rng_of("pool", seed, index)
    facts = imagine(rng)
    return facts, describe(facts, rng)


def pool_pair(kinds: list[str], seed: int, index: int, size: int) -> Pair:
    """Makes one pair of a pool.

    Args:
      kinds: the kinds of all its pairs, from `deal_kinds`.
      seed: the pool's seed.
      index: the pair's number.
      size: the image's side in pixels.

    Returns:
      The pair, spoilt as its kind says.
    """
    kind = kinds[index]
    # What spoils a pair has numbers of its own, so that its scene is what it would be if sound.
    rng = rng_of("pool", seed, index, "spoil")
    if kind == "duplicate":
        scene = draw_scene(rng_of("pool", seed, _original(kinds, rng, index)), size=size)
        return to_jpeg(scene.image, quality=pick(rng, (85, 85, 70, 60))), scene.caption
    scene = draw_scene(rng_of("pool", seed, index), size=size)
    if kind == "shuffled":
        return to_jpeg(scene.image), _foreign_caption(scene.facts, rng, seed, index, len(kinds))
    return _spoil(kind, scene, rng, size)


def _original(kinds: list[str], rng: np.random.Generator, index: int) -> int:
    """The sound pair that a duplicate copies."""
    return next(i for i in _draws(rng, index) if kinds[i] == "sound")


def scenes(kinds: list[str], seed: int) -> list[int]:
    """Numbers the scenes that a pool's pairs show.

    Args:
      kinds: the kinds of all its pairs, from `deal_kinds`.
      seed: the pool's seed.

    Returns:
      For each pair the number of the sound pair that it copies if it is a duplicate, else its own.
    """
    return [
        _original(kinds, rng_of("pool", seed, index, "spoil"), index) if kind == "duplicate" else index
        for index, kind in enumerate(kinds)
    ]


def _foreign_caption(facts: Facts, rng: np.random.Generator, seed: int, index: int, pairs: int) -> str:
    """The caption of another pair of the pool, one that isn't true of these facts."""
    others = (_imagined(seed, i) for i in _draws(rng, pairs) if i != index)
    return next(caption for other, caption in others if not other.describes(facts))


def _draws(rng: np.random.Generator, count: int) -> Iterator[int]:
    """Whole numbers below the count, without end."""
    while True:
        yield int(rng.integers(count))


def _spoil(kind: str, scene: Scene, rng: np.random.Generator, size: int) -> Pair:
    """A scene as a pair of this kind."""
    image, caption = scene.image, scene.caption
    if kind == "boilerplate":
        caption = spoils.boilerplate_caption(rng)
    elif kind == "generic":
        caption = spoils.generic_caption(rng)
    elif kind == "blank":
        image = spoils.paint_blank(rng, size=size)
    elif kind == "text_image":
        image, caption = _words_image(scene, rng, size)
    return to_jpeg(image), caption


def _words_image(scene: Scene, rng: np.random.Generator, size: int) -> tuple[Image.Image, str]:
    """A banner with a slogan, or the caption in writing, on a sheet or before the empty background."""
    roll = rng.random()
    if roll < 0.5:
        text = spoils.slogan(rng)
        return spoils.paint_text(text, rng, size=size), text
    facts = scene.facts if roll < 0.75 else None
    return spoils.paint_text(scene.caption, rng, size=size, facts=facts), scene.caption


def clean_pair(seed: int, index: int, size: int, web_share: float) -> Pair:
    """Makes one pair of a clean set.

    Args:
      seed: the set's seed.
      index: the pair's number.
      size: the image's side in pixels.
      web_share: how likely the pair is generic or an image of words instead.

    Returns:
      The pair.
    """
    scene = draw_scene(rng_of("clean", seed, index), size=size)
    rng = rng_of("clean", seed, index, "spoil")
    kind = pick(rng, ("generic", "text_image")) if rng.random() < web_share else "sound"
    return _spoil(kind, scene, rng, size)
