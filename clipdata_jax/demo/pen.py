"""Colours, and a pen that draws in a thing's own coordinates."""

import math
from collections.abc import Iterable

import numpy as np
from PIL import ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]

PAINTS: dict[str, Rgb] = {
    "black": (38, 36, 42),
    "blue": (46, 104, 222),
    "brown": (132, 82, 44),
    "green": (52, 158, 66),
    "orange": (246, 140, 28),
    "pink": (248, 140, 186),
    "purple": (136, 66, 178),
    "red": (216, 40, 40),
    "white": (246, 246, 242),
    "yellow": (250, 214, 46),
}

INK: Rgb = (48, 44, 52)
PAPER: Rgb = (250, 248, 240)
WOOD: Rgb = (120, 78, 46)
GLASS: Rgb = (190, 226, 244)
GOLD: Rgb = (252, 206, 70)
SILVER: Rgb = (176, 182, 192)


def mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """The first colour with this share of the second in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def vary(colour: Rgb, rng: np.random.Generator, by: int = 12) -> Rgb:
    """The colour with every channel moved a little."""
    red, green, blue = (min(255, max(0, c + int(d))) for c, d in zip(colour, rng.integers(-by, by + 1, 3), strict=True))
    return red, green, blue


class Pen:
    """Draws in a unit square: x and y run from -0.5 to 0.5, y downwards, whatever the thing's place and size.

    Attributes:
      main: the thing's colour; `dark` and `light` are its shade and its gleam, `edge` its outline.
    """

    def __init__(
        self, draw: ImageDraw.ImageDraw, *, at: Point, side: float, colour: Rgb, mirrored: bool = False
    ) -> None:
        """Makes a pen.

        Args:
          draw: the canvas.
          at: the thing's centre, in pixels.
          side: the side of its square, in pixels.
          colour: its colour.
          mirrored: whether left and right are exchanged.
        """
        self._draw, self._at, self._side = draw, at, side
        self._sign = -1 if mirrored else 1
        self.main = colour
        self.dark, self.light = mix(colour, (0, 0, 0), 0.28), mix(colour, (255, 255, 255), 0.45)
        self.edge = mix(colour, (20, 16, 30), 0.55)
        self._edge_width = max(1, round(draw.im.size[0] / 80))

    def _place(self, x: float, y: float) -> Point:
        return self._at[0] + self._sign * x * self._side, self._at[1] + y * self._side

    def polygon(self, points: Iterable[Point], fill: Rgb, *, edged: bool = True) -> None:
        """A filled polygon, outlined by default."""
        placed = [self._place(x, y) for x, y in points]
        self._draw.polygon(placed, fill=fill)
        if edged:
            self._draw.line([*placed, *placed[:2]], fill=self.edge, width=self._edge_width)

    def ellipse(self, centre: Point, width: float, height: float, fill: Rgb, *, edged: bool = True) -> None:
        """A filled ellipse, outlined by default."""
        (x, y), half, tall = self._place(*centre), width * self._side / 2, height * self._side / 2
        outline, line = (self.edge, self._edge_width) if edged else (None, 0)
        self._draw.ellipse((x - half, y - tall, x + half, y + tall), fill=fill, outline=outline, width=line)

    def pie(self, centre: Point, width: float, height: float, angles: tuple[float, float], fill: Rgb) -> None:
        """The outlined part of an ellipse between two angles, in degrees clockwise from the right."""
        steps = np.radians(np.linspace(*angles, 17))
        arc = [(centre[0] + math.cos(a) * width / 2, centre[1] + math.sin(a) * height / 2) for a in steps]
        self.polygon(arc, fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Rgb, *, edged: bool = True) -> None:
        """A filled rectangle, outlined by default."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill, edged=edged)

    def line(self, points: Iterable[Point], colour: Rgb, width: float) -> None:
        """A line of a width in units of the thing's side."""
        placed = [self._place(x, y) for x, y in points]
        self._draw.line(placed, fill=colour, width=max(1, round(width * self._side)), joint="curve")

    def dot(self, centre: Point, width: float, colour: Rgb) -> None:
        """A disc without outline."""
        self.ellipse(centre, width, width, colour, edged=False)


def ring(count: int, outer: float, inner: float, *, turn: float = -90.0) -> list[Point]:
    """The corners of a star with `count` tips, beginning at an angle in degrees."""
    points = []
    for i in range(2 * count):
        angle, radius = math.radians(turn + 180.0 * i / count), (outer, inner)[i % 2]
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points
