"""Scenes: made-up facts, the image that shows them and a caption that describes them."""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageDraw

from clipdata_jax.demo.backgrounds import paint_background
from clipdata_jax.demo.captions import describe
from clipdata_jax.demo.facts import AERIAL, SIDES, Facts, Thing, imagine
from clipdata_jax.demo.objects import DRAWINGS
from clipdata_jax.demo.pen import PAINTS, Pen, vary

# Everything is drawn this many times larger and then averaged, which is what smooths the edges.
OVERSAMPLING = 4


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image and what is true of it.

    Attributes:
      image: RGB, size x size pixels.
      caption: describes the facts, with some left out.
      facts: what is in the image.
    """

    image: Image.Image
    caption: str
    facts: Facts


@dataclasses.dataclass(frozen=True)
class _Spot:
    """The place of an object, in shares of the image: its centre and its side."""

    x: float
    y: float
    side: float


def draw_scene(
    seed: int | np.random.Generator, *, size: int = 64, kind: str | None = None, alone: bool = False
) -> Scene:
    """Draws a scene and describes it; equal seeds give equal scenes.

    Args:
      seed: a seed, or a generator to draw from.
      size: the image's side in pixels.
      kind: the main thing's kind, one of `facts.KINDS`; by default any.
      alone: one object of medium or big size and nothing else, as in a classification set.

    Returns:
      The scene.

    Raises:
      ValueError: no such kind, or a size below 8.
    """
    rng = np.random.default_rng(seed)
    facts = imagine(rng, kind=kind, alone=alone)
    caption = describe(facts, rng)
    return Scene(image=paint(facts, rng, size=size), caption=caption, facts=facts)


def paint(facts: Facts, rng: np.random.Generator, *, size: int = 64) -> Image.Image:
    """Draws facts.

    Args:
      facts: what to show.
      rng: chooses places, shades and details within the facts.
      size: the image's side in pixels.

    Returns:
      An RGB image.

    Raises:
      ValueError: a size below 8.
    """
    if size < 8:
        raise ValueError(f"size is {size}: an image of fewer than 8 pixels shows nothing")
    side = OVERSAMPLING * size
    canvas, horizon = paint_background(facts.background, facts.sky, side, rng)
    draw = ImageDraw.Draw(canvas)
    for thing, spots in zip(facts.things, _arrange(facts, horizon, rng), strict=True):
        colour, mirrored = vary(PAINTS[thing.colour], rng), rng.random() < 0.5
        for spot in spots:
            at = (spot.x * side, spot.y * side)
            pen = Pen(draw, at=at, side=spot.side * side, colour=colour, mirrored=mirrored)
            DRAWINGS[thing.kind](pen)
    return canvas.reduce(OVERSAMPLING)


def to_jpeg(image: Image.Image, *, quality: int = 85) -> bytes:
    """The image as a JPEG file.

    Args:
      image: an RGB image.
      quality: Pillow's, 1 to 95.

    Returns:
      The file's bytes.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _arrange(facts: Facts, horizon: float, rng: np.random.Generator) -> list[list[_Spot]]:
    """A list of spots for each thing, none covering another."""
    things = facts.things
    sides = [SIDES[t.size] * (0.94 + 0.06 * rng.random()) for t in things]
    widths = [side * t.count for side, t in zip(sides, things, strict=True)]
    stacked = facts.relation in ("above", "below")
    if len(things) == 1 or stacked:
        lefts = [(1 - width) * (0.5 + 0.9 * (rng.random() - 0.5)) for width in widths]
    else:
        gaps = (1 - sum(widths)) * np.sort(rng.random(2))
        first, second = (0, 1) if facts.relation == "left" else (1, 0)
        lefts = [0.0, 0.0]
        lefts[first], lefts[second] = float(gaps[0]), widths[first] + float(gaps[1])
    return [
        [
            _Spot(left + side * (i + 0.5), _height(t, side, facts.background, horizon, stacked, rng), 0.96 * side)
            for i in range(t.count)
        ]
        for t, side, left in zip(things, sides, lefts, strict=True)
    ]


def _height(
    thing: Thing, side: float, background: str, horizon: float, stacked: bool, rng: np.random.Generator
) -> float:
    """The height of an object's centre: in the sky, afloat, or with its foot on the ground."""
    if thing.kind in AERIAL:
        lowest = 0.5 - side / 2 if stacked else max(0.62 - side / 2, side / 2)
        return side / 2 + 0.02 + max(0.0, lowest - side / 2 - 0.02) * rng.random()
    if background == "underwater" and thing.kind == "fish" and not stacked:
        return side / 2 + (1 - side) * (0.1 + 0.7 * rng.random())
    foot = max(horizon + 0.1, 0.5 + side if stacked else 0.0)
    foot = max(foot, side + 0.02)
    return min(0.97, foot + (0.97 - foot) * rng.random()) - side / 2
