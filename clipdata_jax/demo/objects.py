"""Drawings of each kind of object, in the unit square of a `Pen`."""

import math
from collections.abc import Callable

from clipdata_jax.demo.pen import GLASS, GOLD, INK, PAPER, SILVER, WOOD, Pen, mix, ring


def _ball(pen: Pen) -> None:
    pen.ellipse((0, 0), 0.92, 0.92, pen.main)
    pen.ellipse((0, 0), 0.36, 0.92, PAPER)
    pen.ellipse((0, 0), 0.14, 0.92, pen.main, edged=False)
    pen.dot((0, -0.4), 0.14, PAPER)
    pen.ellipse((-0.2, -0.22), 0.14, 0.2, pen.light, edged=False)


def _balloon(pen: Pen) -> None:
    pen.line([(0, 0.22), (0.05, 0.32), (-0.04, 0.4), (0.02, 0.5)], INK, 0.025)
    pen.polygon([(0, 0.16), (0.08, 0.25), (-0.08, 0.25)], pen.dark)
    pen.ellipse((0, -0.15), 0.58, 0.7, pen.main)
    pen.ellipse((-0.12, -0.3), 0.12, 0.2, pen.light, edged=False)


def _bird(pen: Pen) -> None:
    pen.polygon([(-0.24, 0.04), (-0.5, -0.1), (-0.48, 0.16)], pen.dark)
    pen.polygon([(0.36, -0.2), (0.5, -0.12), (0.36, -0.07)], GOLD)
    pen.ellipse((-0.02, 0.08), 0.6, 0.4, pen.main)
    pen.ellipse((0.24, -0.14), 0.32, 0.32, pen.main)
    pen.ellipse((0.02, 0.14), 0.36, 0.22, pen.light, edged=False)
    pen.polygon([(0.12, 0.02), (-0.16, 0.06), (-0.3, -0.46), (-0.08, -0.36)], pen.dark)
    pen.dot((0.29, -0.17), 0.1, PAPER)
    pen.dot((0.3, -0.17), 0.06, INK)
    pen.line([(-0.04, 0.27), (-0.06, 0.42)], GOLD, 0.04)
    pen.line([(0.08, 0.27), (0.07, 0.42)], GOLD, 0.04)


def _boat(pen: Pen) -> None:
    pen.line([(0, -0.48), (0, 0.2)], WOOD, 0.05)
    pen.polygon([(0.04, -0.46), (0.04, 0.1), (0.42, 0.1)], PAPER)
    pen.polygon([(-0.04, -0.36), (-0.04, 0.1), (-0.32, 0.1)], mix(PAPER, pen.main, 0.25))
    pen.polygon([(-0.5, 0.16), (0.5, 0.16), (0.34, 0.46), (-0.34, 0.46)], pen.main)
    pen.line([(-0.42, 0.25), (0.42, 0.25)], pen.light, 0.05)


def _butterfly(pen: Pen) -> None:
    for side in (-1, 1):
        pen.line([(0, -0.22), (side * 0.16, -0.44)], INK, 0.03)
        pen.ellipse((side * 0.25, -0.14), 0.46, 0.48, pen.main)
        pen.ellipse((side * 0.2, 0.24), 0.34, 0.38, pen.main)
        pen.dot((side * 0.28, -0.14), 0.2, pen.light)
        pen.dot((side * 0.21, 0.25), 0.13, pen.dark)
    pen.ellipse((0, 0.04), 0.12, 0.66, INK, edged=False)
    pen.dot((0, -0.26), 0.15, INK)


def _car(pen: Pen) -> None:
    pen.polygon([(-0.3, 0.02), (-0.18, -0.26), (0.14, -0.26), (0.3, 0.02)], pen.main)
    pen.polygon([(-0.21, 0.0), (-0.13, -0.18), (-0.04, -0.18), (-0.04, 0.0)], GLASS, edged=False)
    pen.polygon([(0.03, 0.0), (0.03, -0.18), (0.11, -0.18), (0.2, 0.0)], GLASS, edged=False)
    pen.polygon([(-0.5, 0.28), (-0.5, 0.06), (-0.42, 0.0), (0.36, 0.0), (0.5, 0.1), (0.5, 0.28)], pen.main)
    pen.line([(-0.02, 0.03), (-0.02, 0.24)], pen.dark, 0.025)
    pen.dot((0.44, 0.12), 0.1, GOLD)
    for x in (-0.27, 0.28):
        pen.dot((x, 0.28), 0.28, INK)
        pen.dot((x, 0.28), 0.13, SILVER)


def _cat(pen: Pen) -> None:
    pen.line([(-0.2, 0.4), (-0.42, 0.36), (-0.46, 0.16), (-0.38, 0.04)], pen.edge, 0.12)
    pen.line([(-0.2, 0.4), (-0.42, 0.36), (-0.46, 0.16), (-0.38, 0.04)], pen.main, 0.08)
    pen.ellipse((0, 0.24), 0.5, 0.52, pen.main)
    pen.ellipse((0.02, 0.3), 0.26, 0.36, pen.light, edged=False)
    for side in (-1, 1):
        pen.polygon([(side * 0.28, -0.16), (side * 0.3, -0.5), (side * 0.06, -0.34)], pen.main)
        pen.polygon([(side * 0.23, -0.26), (side * 0.26, -0.42), (side * 0.13, -0.33)], (246, 170, 176), edged=False)
    pen.ellipse((0, -0.15), 0.62, 0.48, pen.main)
    for side in (-1, 1):
        pen.ellipse((side * 0.14, -0.18), 0.13, 0.16, PAPER, edged=False)
        pen.ellipse((side * 0.14, -0.17), 0.07, 0.14, INK, edged=False)
        pen.line([(side * 0.16, -0.02), (side * 0.44, -0.06)], pen.edge, 0.02)
        pen.line([(side * 0.16, 0.02), (side * 0.42, 0.06)], pen.edge, 0.02)
    pen.polygon([(-0.05, -0.07), (0.05, -0.07), (0, -0.01)], (238, 120, 132), edged=False)


def _cup(pen: Pen) -> None:
    pen.ellipse((0.28, 0.08), 0.38, 0.38, pen.main)
    pen.ellipse((0.28, 0.08), 0.2, 0.2, pen.dark)
    pen.polygon([(-0.4, -0.2), (0.24, -0.2), (0.18, 0.44), (-0.34, 0.44)], pen.main)
    pen.line([(-0.26, -0.06), (-0.23, 0.34)], pen.light, 0.07)
    pen.ellipse((-0.08, -0.2), 0.66, 0.18, (92, 56, 36))
    for x in (-0.2, 0.04):
        pen.line([(x, -0.3), (x + 0.05, -0.36), (x, -0.42), (x + 0.05, -0.5)], (206, 206, 212), 0.035)


def _fish(pen: Pen) -> None:
    pen.polygon([(-0.22, 0), (-0.5, -0.26), (-0.42, 0), (-0.5, 0.26)], pen.dark)
    pen.polygon([(-0.12, -0.18), (0.06, -0.4), (0.16, -0.18)], pen.dark)
    pen.ellipse((0.08, 0), 0.76, 0.48, pen.main)
    pen.line([(-0.08, -0.2), (-0.02, 0), (-0.08, 0.2)], pen.light, 0.06)
    pen.line([(0.06, -0.22), (0.12, 0), (0.06, 0.22)], pen.light, 0.06)
    pen.polygon([(0.04, 0.04), (-0.12, 0.16), (0.1, 0.14)], pen.dark, edged=False)
    pen.dot((0.28, -0.06), 0.14, PAPER)
    pen.dot((0.3, -0.06), 0.08, INK)


def _flower(pen: Pen) -> None:
    leaf = (60, 142, 62)
    pen.line([(0, 0), (0, 0.5)], (44, 112, 50), 0.07)
    pen.ellipse((0.14, 0.34), 0.26, 0.12, leaf, edged=False)
    pen.ellipse((-0.14, 0.26), 0.26, 0.12, leaf, edged=False)
    for i in range(6):
        angle = math.radians(60 * i + 30)
        pen.ellipse((0.2 * math.cos(angle), -0.18 + 0.2 * math.sin(angle)), 0.27, 0.27, pen.main)
    heart = (150, 88, 36) if pen.main[0] > 200 and pen.main[2] < 100 else GOLD
    pen.ellipse((0, -0.18), 0.24, 0.24, heart)


def _house(pen: Pen) -> None:
    pen.box(0.18, -0.42, 0.3, -0.16, (150, 90, 78))
    pen.box(-0.38, -0.06, 0.38, 0.48, pen.main)
    pen.polygon([(-0.5, -0.02), (0, -0.48), (0.5, -0.02)], mix(pen.dark, (70, 40, 40), 0.5))
    pen.box(-0.09, 0.16, 0.11, 0.48, WOOD)
    pen.dot((0.06, 0.33), 0.05, GOLD)
    for x in (-0.31, 0.18):
        pen.box(x, 0.08, x + 0.14, 0.24, GLASS)


def _kite(pen: Pen) -> None:
    pen.line([(0, 0.2), (0.1, 0.3), (-0.02, 0.4), (0.08, 0.5)], INK, 0.025)
    pen.polygon([(0, -0.5), (0.32, -0.14), (0, 0.24), (-0.32, -0.14)], pen.main)
    pen.polygon([(0, -0.5), (0.32, -0.14), (0, -0.14)], pen.light, edged=False)
    pen.polygon([(0, 0.24), (-0.32, -0.14), (0, -0.14)], pen.dark, edged=False)
    pen.line([(0, -0.5), (0, 0.24)], pen.edge, 0.02)
    pen.line([(-0.32, -0.14), (0.32, -0.14)], pen.edge, 0.02)
    for x, y in ((0.08, 0.31), (0.01, 0.41)):
        pen.polygon([(x - 0.08, y - 0.04), (x + 0.08, y + 0.04), (x + 0.08, y - 0.04), (x - 0.08, y + 0.04)], pen.main)


def _moon(pen: Pen) -> None:
    outer = [math.radians(a) for a in range(-70, -291, -10)]
    points = [(0.12 + 0.48 * math.cos(a), 0.48 * math.sin(a)) for a in outer]
    inner = [math.radians(a) for a in range(-263, -96, 10)]
    points += [(0.33 + 0.42 * math.cos(a), 0.44 * math.sin(a)) for a in inner]
    pen.polygon(points, pen.main)
    pen.dot((-0.24, -0.08), 0.09, pen.dark)
    pen.dot((-0.17, 0.18), 0.07, pen.dark)


def _mushroom(pen: Pen) -> None:
    pen.polygon([(-0.13, 0.0), (0.13, 0.0), (0.18, 0.48), (-0.18, 0.48)], (244, 232, 208))
    pen.pie((0, 0.06), 0.96, 1.08, (180, 360), pen.main)
    spot = PAPER if min(pen.main) < 200 else (232, 120, 110)
    for x, y, width in ((-0.24, -0.12, 0.16), (0.04, -0.28, 0.18), (0.26, -0.08, 0.14)):
        pen.dot((x, y), width, spot)


def _pine(pen: Pen) -> None:
    pen.box(-0.07, 0.28, 0.07, 0.5, WOOD)
    for top, bottom, half in ((0.0, 0.34, 0.38), (-0.24, 0.1, 0.3), (-0.5, -0.14, 0.21)):
        pen.polygon([(0, top), (half, bottom), (-half, bottom)], pen.main)
        pen.polygon([(0, top + 0.05), (half * 0.8, bottom - 0.02), (half * 0.2, bottom - 0.02)], pen.dark, edged=False)


def _robot(pen: Pen) -> None:
    pen.line([(0, -0.36), (0, -0.48)], SILVER, 0.04)
    pen.dot((0, -0.46), 0.09, (230, 60, 60))
    for side in (-1, 1):
        pen.line([(side * 0.24, 0.0), (side * 0.42, 0.1), (side * 0.42, 0.22)], SILVER, 0.08)
        pen.box(side * 0.13 - 0.07, 0.28, side * 0.13 + 0.07, 0.5, SILVER)
    pen.box(-0.26, -0.06, 0.26, 0.32, pen.main)
    pen.box(-0.22, -0.4, 0.22, -0.08, pen.light)
    for side in (-1, 1):
        pen.dot((side * 0.1, -0.27), 0.12, PAPER)
        pen.dot((side * 0.1, -0.27), 0.07, INK)
    pen.line([(-0.11, -0.15), (0.11, -0.15)], INK, 0.035)
    pen.box(-0.15, 0.03, 0.15, 0.22, SILVER)
    pen.dot((-0.06, 0.12), 0.09, (230, 70, 60))
    pen.dot((0.07, 0.12), 0.09, (80, 190, 90))


def _rocket(pen: Pen) -> None:
    pen.polygon([(-0.12, 0.28), (0, 0.5), (0.12, 0.28)], (252, 150, 40), edged=False)
    pen.polygon([(-0.06, 0.28), (0, 0.4), (0.06, 0.28)], (255, 232, 120), edged=False)
    for side in (-1, 1):
        pen.polygon([(side * 0.14, 0.02), (side * 0.34, 0.32), (side * 0.12, 0.26)], pen.dark)
    pen.polygon(
        [(0, -0.5), (0.13, -0.3), (0.18, -0.04), (0.13, 0.28), (-0.13, 0.28), (-0.18, -0.04), (-0.13, -0.3)], pen.main
    )
    pen.polygon([(0, -0.5), (0.12, -0.3), (-0.12, -0.3)], PAPER if min(pen.main) < 200 else (220, 60, 60))
    pen.ellipse((0, -0.1), 0.2, 0.2, GLASS)


def _star(pen: Pen) -> None:
    pen.polygon(ring(5, 0.5, 0.22), pen.main)
    pen.polygon(ring(5, 0.26, 0.12), pen.light, edged=False)


def _tree(pen: Pen) -> None:
    pen.polygon([(-0.07, 0.05), (0.07, 0.05), (0.11, 0.5), (-0.11, 0.5)], WOOD)
    for x, y, width in ((-0.22, -0.02, 0.42), (0.22, -0.02, 0.42), (0, -0.22, 0.54)):
        pen.ellipse((x, y), width, width, pen.main)
    pen.ellipse((0, -0.06), 0.5, 0.34, pen.main, edged=False)
    for x, y in ((-0.12, -0.28), (0.16, -0.12), (-0.22, 0.0)):
        pen.dot((x, y), 0.11, pen.light)


def _umbrella(pen: Pen) -> None:
    pen.line([(0, -0.44), (0, 0.38), (0.06, 0.46), (0.14, 0.46), (0.18, 0.38)], INK, 0.045)
    pen.pie((0, 0.02), 0.98, 0.84, (180, 360), pen.main)
    pen.pie((0, 0.02), 0.42, 0.84, (180, 360), pen.light)
    pen.line([(0, -0.5), (0, -0.4)], INK, 0.04)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "ball": _ball,
    "balloon": _balloon,
    "bird": _bird,
    "boat": _boat,
    "butterfly": _butterfly,
    "car": _car,
    "cat": _cat,
    "cup": _cup,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "kite": _kite,
    "moon": _moon,
    "mushroom": _mushroom,
    "pine": _pine,
    "robot": _robot,
    "rocket": _rocket,
    "star": _star,
    "tree": _tree,
    "umbrella": _umbrella,
}
