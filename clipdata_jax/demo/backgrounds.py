"""Backgrounds and skies, drawn on the whole canvas."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from clipdata_jax.demo.facts import pick
from clipdata_jax.demo.pen import Rgb, mix, vary

WHITE: Rgb = (255, 255, 255)

# Where land or water begins below the sky, as a share of the height.
HORIZONS = {
    "beach": 0.52,
    "city": 0.74,
    "desert": 0.56,
    "meadow": 0.58,
    "night": 0.68,
    "room": 0.68,
    "sea": 0.5,
    "snow": 0.6,
    "sunset": 0.66,
    "underwater": 0.8,
}


class _Canvas:
    """A canvas addressed in shares of its side, with the random numbers of its image."""

    def __init__(self, side: int, rng: np.random.Generator, top: Rgb, bottom: Rgb, horizon: float) -> None:
        self.side, self.rng, self.horizon = side, rng, horizon
        top, bottom = vary(top, rng), vary(bottom, rng)
        # A gradient of a few rows, stretched: much cheaper than drawing a line a row.
        strip = Image.new("RGB", (1, 6))
        strip.putdata([mix(top, bottom, i / 5) for i in range(6)])
        self.image = strip.resize((side, side), Image.Resampling.BILINEAR)
        self.draw = ImageDraw.Draw(self.image)

    def ellipse(self, x: float, y: float, width: float, height: float, fill: Rgb) -> None:
        x, y, half, tall = (self.side * share for share in (x, y, width / 2, height / 2))
        self.draw.ellipse((x - half, y - tall, x + half, y + tall), fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Rgb) -> None:
        s = self.side
        self.draw.rectangle((left * s, top * s, right * s, bottom * s), fill)

    def polygon(self, points: list[tuple[float, float]], fill: Rgb) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill)

    def line(self, points: list[tuple[float, float]], fill: Rgb, width: float) -> None:
        placed = [(x * self.side, y * self.side) for x, y in points]
        self.draw.line(placed, fill, max(1, round(width * self.side)))

    def hills(self, top: float, fill: Rgb, *, height: float = 0.05) -> None:
        """Ground below a wavy line."""
        start, swing = self.rng.random() * 6.3, 3.0 + 4.0 * self.rng.random()
        xs = np.linspace(0, 1, 13)
        ys = top + height * np.sin(start + swing * xs)
        self.polygon([*zip(xs.tolist(), ys.tolist(), strict=True), (1, 1), (0, 1)], vary(fill, self.rng))

    def scatter(self, count: int, top: float, bottom: float) -> list[tuple[float, float]]:
        """Random places between two heights."""
        xy = self.rng.random((count, 2))
        return [(x, top + (bottom - top) * y) for x, y in xy.tolist()]


def paint_background(kind: str, sky: str, side: int, rng: np.random.Generator) -> tuple[Image.Image, float]:
    """Draws a background.

    Args:
      kind: one of `facts.BACKGROUNDS`.
      sky: a key of `words.SKIES`.
      side: the canvas's side in pixels.
      rng: source of what varies.

    Returns:
      The canvas, and where its land or water begins, as a share of the height.
    """
    top, bottom, land = _PAINTERS[kind]
    horizon = HORIZONS[kind] + 0.06 * (rng.random() - 0.5)
    if sky == "clouds":
        top, bottom = mix(top, (176, 188, 200), 0.6), mix(bottom, (200, 208, 216), 0.6)
    canvas = _Canvas(side, rng, top, bottom, horizon)
    if sky == "sun":
        _sun(canvas)
    if sky == "clouds":
        _clouds(canvas)
    land(canvas)
    if sky == "snowfall":
        for x, y in canvas.scatter(34, 0.0, 1.0):
            canvas.ellipse(x, y, 0.028, 0.028, WHITE)
    return canvas.image, horizon


def _sun(c: _Canvas) -> None:
    x = pick(c.rng, (0.04, 0.96))
    c.ellipse(x, 0.03, 0.42, 0.42, (255, 240, 170))
    c.ellipse(x, 0.03, 0.28, 0.28, (255, 222, 84))


def _clouds(c: _Canvas) -> None:
    for x, y in c.scatter(4, 0.04, 0.34):
        white = vary((244, 246, 250), c.rng, 6)
        for dx, dy, width in ((-0.09, 0.02, 0.12), (0.0, 0.0, 0.17), (0.1, 0.02, 0.13)):
            c.ellipse(x + dx, y + dy, width, width * 0.62, white)


def _beach(c: _Canvas) -> None:
    c.box(0, c.horizon - 0.12, 1, c.horizon + 0.1, (60, 158, 206))
    c.hills(c.horizon + 0.03, (240, 248, 250), height=0.015)
    c.hills(c.horizon + 0.06, (236, 210, 154), height=0.015)
    for x, y in c.scatter(14, c.horizon + 0.12, 1.0):
        c.ellipse(x, y, 0.016, 0.012, (206, 174, 116))


def _city(c: _Canvas) -> None:
    x = -0.05 * c.rng.random()
    while x < 1:
        width, top = 0.12 + 0.1 * c.rng.random(), c.horizon - 0.16 - 0.36 * c.rng.random()
        c.box(x, top, x + width, c.horizon, vary((142, 148, 164), c.rng, 22))
        for row in np.arange(top + 0.04, c.horizon - 0.04, 0.08).tolist():
            for column in (0.25, 0.65):
                c.box(x + column * width - 0.015, row, x + column * width + 0.015, row + 0.035, (226, 224, 190))
        x += width
    c.box(0, c.horizon, 1, c.horizon + 0.04, (186, 186, 190))
    c.box(0, c.horizon + 0.04, 1, 1, (98, 100, 108))
    for x in (0.02, 0.3, 0.58, 0.86):
        c.box(x, 0.9, x + 0.14, 0.92, (228, 228, 220))


def _desert(c: _Canvas) -> None:
    c.hills(c.horizon, (228, 184, 112), height=0.05)
    c.hills(c.horizon + 0.14, (216, 164, 90), height=0.06)
    for y in (0.84, 0.92):
        start = 0.5 * c.rng.random()
        c.line([(start, y), (start + 0.16, y - 0.015), (start + 0.34, y)], (192, 140, 74), 0.012)


def _meadow(c: _Canvas) -> None:
    c.hills(c.horizon - 0.03, (134, 190, 96), height=0.04)
    c.hills(c.horizon + 0.06, (112, 178, 76), height=0.03)
    for x, y in c.scatter(22, c.horizon + 0.12, 1.0):
        c.line([(x - 0.014, y - 0.03), (x, y), (x + 0.014, y - 0.03)], (78, 146, 58), 0.01)


def _night(c: _Canvas) -> None:
    for x, y in c.scatter(26, 0.0, c.horizon):
        width = 0.012 + 0.014 * c.rng.random()
        c.ellipse(x, y, width, width, (250, 246, 214))
    c.hills(c.horizon, (28, 46, 62), height=0.04)
    c.hills(c.horizon + 0.1, (36, 60, 64), height=0.03)


def _room(c: _Canvas) -> None:
    wall = pick(c.rng, ((222, 206, 184), (196, 212, 206), (214, 200, 216), (228, 214, 168)))
    c.box(0, 0, 1, 1, vary(wall, c.rng, 8))
    for i in range(5):
        c.box(0.06 + 0.2 * i, 0, 0.13 + 0.2 * i, c.horizon, mix(wall, WHITE, 0.28))
    c.box(0, c.horizon, 1, 1, (176, 126, 82))
    c.box(0, c.horizon - 0.03, 1, c.horizon, (240, 236, 226))
    for i in range(5):
        c.line([(0.25 * i + 0.1, c.horizon), (0.4 * i - 0.2, 1)], (148, 102, 64), 0.012)


def _sea(c: _Canvas) -> None:
    c.box(0, c.horizon, 1, 1, vary((40, 118, 176), c.rng))
    c.box(0, c.horizon, 1, c.horizon + 0.07, vary((74, 150, 198), c.rng))
    for x, y in c.scatter(12, c.horizon + 0.08, 1.0):
        c.line([(x - 0.05, y), (x - 0.02, y - 0.018), (x + 0.02, y), (x + 0.05, y - 0.018)], (168, 212, 232), 0.012)


def _snow(c: _Canvas) -> None:
    c.hills(c.horizon - 0.02, (214, 226, 240), height=0.05)
    c.hills(c.horizon + 0.08, (240, 244, 250), height=0.03)
    for x, y in c.scatter(6, c.horizon + 0.16, 1.0):
        c.ellipse(x, y, 0.1, 0.02, (220, 230, 244))


def _sunset(c: _Canvas) -> None:
    x = 0.2 + 0.6 * c.rng.random()
    c.ellipse(x, c.horizon, 0.34, 0.34, (255, 226, 140))
    for y in (0.16, 0.3):
        start = c.rng.random() - 0.2
        c.ellipse(start, y, 0.5, 0.03, (240, 150, 132))
    c.hills(c.horizon, (84, 52, 92), height=0.03)
    c.hills(c.horizon + 0.1, (66, 42, 80), height=0.03)


def _underwater(c: _Canvas) -> None:
    c.hills(c.horizon + 0.05, (196, 184, 140), height=0.03)
    for x, _ in c.scatter(3, 0, 1):
        top, sway = 0.55 + 0.2 * c.rng.random(), 0.03
        stem = [(x, 1.0), (x + sway, 0.92), (x - sway, 0.84), (x + sway, 0.76), (x - sway, top)]
        c.line(stem, (38, 128, 96), 0.03)
    for x, y in c.scatter(9, 0.04, 0.75):
        width = 0.02 + 0.03 * c.rng.random()
        c.ellipse(x, y, width, width, (176, 226, 240))
        c.ellipse(x, y, width * 0.55, width * 0.55, (92, 176, 212))


# Each background: the two colours of its sky, wall or water, from top to bottom, and what is painted over it.
_PAINTERS: dict[str, tuple[Rgb, Rgb, Callable[[_Canvas], None]]] = {
    "beach": ((110, 188, 238), (206, 234, 246), _beach),
    "city": ((168, 200, 224), (222, 228, 228), _city),
    "desert": ((126, 192, 226), (250, 232, 196), _desert),
    "meadow": ((104, 178, 240), (206, 232, 250), _meadow),
    "night": ((10, 14, 44), (42, 48, 98), _night),
    "room": ((220, 206, 190), (220, 206, 190), _room),
    "sea": ((138, 200, 240), (214, 236, 246), _sea),
    "snow": ((170, 192, 216), (222, 230, 240), _snow),
    "sunset": ((112, 66, 138), (255, 160, 84), _sunset),
    "underwater": ((64, 164, 210), (14, 70, 130), _underwater),
}
