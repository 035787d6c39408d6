"""The facts of a scene, decided before anything is drawn."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from clipdata_jax.demo import words

T = TypeVar("T")

KINDS: tuple[str, ...] = tuple(words.NOUNS)
BACKGROUNDS: tuple[str, ...] = tuple(words.WHERE)

# Kinds that hang or fly; all others stand, or swim.
AERIAL = frozenset({"balloon", "bird", "butterfly", "kite", "moon", "rocket", "star"})

# The side of a thing as a share of the image's, by the word for its size.
SIDES = {"small": 0.24, "medium": 0.36, "big": 0.58}

_HOMES = {"boat": ("sea", "sea", "beach", "room", "underwater"), "fish": ("sea", "underwater", "underwater", "beach")}
_LAND = tuple(b for b in BACKGROUNDS if b not in ("sea", "underwater"))
_AIR = tuple(b for b in BACKGROUNDS if b != "underwater")

# Colours that wouldn't be seen before a background, or that nobody would believe of a kind.
_CLASHES = {
    "beach": ("yellow",),
    "city": (),
    "desert": ("yellow", "orange"),
    "meadow": ("green",),
    "night": ("black", "brown"),
    "room": (),
    "sea": ("blue",),
    "snow": ("white",),
    "sunset": ("black", "orange", "brown"),
    "underwater": ("blue",),
}
_UNLIKELY = {"moon": ("black", "brown", "green", "purple"), "star": ("black", "brown")}
_SKIES = {
    "beach": ("", "clouds", "sun"),
    "city": ("", "clouds", "sun"),
    "desert": ("", "sun"),
    "meadow": ("", "clouds", "sun"),
    "sea": ("", "clouds", "sun"),
    "snow": ("", "snowfall"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """Some objects of one kind, colour and size.

    Attributes:
      kind: one of `KINDS`.
      colour: a key of `words.COLOURS`.
      size: a key of `SIDES`.
      count: 1, 2 or 3.
    """

    kind: str
    colour: str
    size: str
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a caption may say of a scene.

    Attributes:
      background: one of `BACKGROUNDS`.
      sky: a key of `words.SKIES`.
      things: the main thing and at most one other.
      relation: where the main thing is, seen from the other: "left", "right", "above", "below"; "" if alone.
    """

    background: str
    sky: str
    things: tuple[Thing, ...]
    relation: str

    def describes(self, other: "Facts") -> bool:
        """Returns whether a caption of these facts could be true of another scene: a shared kind or background."""
        kinds = {thing.kind for thing in self.things}
        return self.background == other.background or any(t.kind in kinds for t in other.things)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def imagine(rng: np.random.Generator, *, kind: str | None = None, alone: bool = False) -> Facts:
    """Makes up a scene.

    Args:
      rng: source of every choice.
      kind: the main thing's kind; by default any.
      alone: one object of medium or big size and nothing else, as in a classification set.

    Returns:
      Facts that `scenes.paint` can draw without things covering each other.

    Raises:
      ValueError: no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"no such kind: {kind!r}; there are {', '.join(KINDS)}")
    kind = kind or pick(rng, KINDS)
    background = pick(rng, _homes(kind))
    sky = pick(rng, _SKIES.get(background, ("",)))
    if alone:
        thing = _thing(rng, kind, background, ("medium", "big"), 1)
        return Facts(background=background, sky=sky, things=(thing,), relation="")
    if rng.random() < 0.5:
        thing = _some(rng, kind, background, width=1.0, height=1.0)
        return Facts(background=background, sky=sky, things=(thing,), relation="")
    return _pair(rng, kind, background, sky)


def _pair(rng: np.random.Generator, kind: str, background: str, sky: str) -> Facts:
    """Two things one above the other, if one of them flies, or side by side."""
    other = pick(rng, [k for k in KINDS if k != kind and background in _homes(k)])
    up, other_up = kind in AERIAL, other in AERIAL
    if up != other_up and rng.random() < 0.7:
        relation, widths, height = ("above" if up else "below"), (1.0, 1.0), 0.42
    else:
        relation, height = pick(rng, ("left", "right")), 1.0
        widths = pick(rng, ((0.5, 0.5), (0.5, 0.5), (0.65, 0.3)))
    first = _some(rng, kind, background, width=widths[0], height=height)
    second = _some(rng, other, background, width=widths[1], height=height)
    return Facts(background=background, sky=sky, things=(first, second), relation=relation)


def _some(rng: np.random.Generator, kind: str, background: str, *, width: float, height: float) -> Thing:
    """A thing of which all objects fit side by side into these shares of the image."""
    count = 1 + int(np.searchsorted((0.64, 0.86), rng.random()))
    count = min(count, int(width / SIDES["small"]))
    sizes = [size for size, side in SIDES.items() if side * count <= width and side <= height]
    return _thing(rng, kind, background, sizes, count)


def _thing(rng: np.random.Generator, kind: str, background: str, sizes: Sequence[str], count: int) -> Thing:
    banned = _CLASHES[background] + _UNLIKELY.get(kind, ())
    colour = pick(rng, [c for c in words.COLOURS if c not in banned])
    return Thing(kind=kind, colour=colour, size=pick(rng, sizes), count=count)


def _homes(kind: str) -> tuple[str, ...]:
    return _HOMES.get(kind) or (_AIR if kind in AERIAL else _LAND)
