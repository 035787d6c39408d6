"""Faults of a pair: a caption that says nothing, an image that shows nothing or only words."""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipdata_jax.demo.backgrounds import paint_background
from clipdata_jax.demo.facts import Facts, pick
from clipdata_jax.demo.pen import INK, PAINTS, PAPER, Rgb, mix, vary
from clipdata_jax.demo.scenes import OVERSAMPLING

BOILERPLATE: tuple[str, ...] = (
    "Photo coming soon",
    "Click to enlarge",
    "image not available",
    "No image found.",
    "Loading...",
    "thumbnail",
    "Share this page",
    "Image may be subject to copyright",
    "View larger image",
    "Sign in to see more",
    "default profile photo",
    "Page {n} of 40",
    "IMG_{n:04d}.JPG",
    "DSC{n:05d}",
    "DSCN{n:04d}.jpg",
    "Screenshot_{n:05d}.png",
    "image{n}",
    "untitled-{n}.png",
    "https://example.com/img/{n}.jpg",
    "P{n:07d}",
)

GENERIC: tuple[str, ...] = (
    "a picture",
    "a nice picture",
    "an image",
    "a nice scene",
    "colorful drawing",
    "A beautiful illustration.",
    "cute cartoon",
    "a drawing for kids",
    "wall art print",
    "free clip art",
    "stock illustration",
    "a lovely view",
    "some objects",
    "things in a place",
    "a simple drawing of something",
    "Pretty picture for the wall",
    "An outdoor scene.",
    "my favourite drawing",
    "digital art",
    "children's book illustration",
)

SLOGANS: tuple[str, ...] = (
    "Sale {n}% off",
    "Save {n}% today",
    "Only ${n}",
    "Buy now",
    "Free shipping",
    "Best price",
    "Summer sale",
    "Winter sale",
    "New in stock",
    "Follow us",
    "Subscribe now",
    "Open 24 hours",
    "Keep calm and carry on",
    "Happy birthday",
    "Thank you",
    "Welcome",
)
_PERCENTS = (10, 15, 20, 25, 30, 40, 50, 60, 70, 75)


def boilerplate_caption(rng: np.random.Generator) -> str:
    """A caption made by a camera or a web page, which says nothing about the image."""
    return pick(rng, BOILERPLATE).format(n=int(rng.integers(1, 3000)))


def generic_caption(rng: np.random.Generator) -> str:
    """A caption that fits nearly every image."""
    return pick(rng, GENERIC)


def slogan(rng: np.random.Generator) -> str:
    """The text of a sale banner or a poster."""
    return pick(rng, SLOGANS).format(n=pick(rng, _PERCENTS))


def paint_text(text: str, rng: np.random.Generator, *, size: int = 64, facts: Facts | None = None) -> Image.Image:
    """An image of words.

    Args:
      text: what it says, wrapped and as large as fits.
      rng: chooses colours and frame.
      size: the side in pixels.
      facts: if given, the words stand before this background, without any of its things.

    Returns:
      An RGB image.
    """
    side = OVERSAMPLING * size
    if facts is None:
        canvas, ink, halo = _banner(side, rng)
    else:
        canvas, _ = paint_background(facts.background, facts.sky, side, rng)
        dark = facts.background in ("night", "sunset", "underwater")
        ink, halo = (PAPER, INK) if dark else (INK, PAPER)
    shown = text.upper() if rng.random() < 0.6 else text
    font, lines = _fit(shown, round(side * 0.86))
    ImageDraw.Draw(canvas).multiline_text(
        (side / 2, side / 2),
        lines,
        fill=ink,
        font=font,
        anchor="mm",
        align="center",
        spacing=side * 0.02,
        stroke_width=0 if facts is None else OVERSAMPLING,
        stroke_fill=halo,
    )
    return canvas.reduce(OVERSAMPLING)


def paint_blank(rng: np.random.Generator, *, size: int = 64) -> Image.Image:
    """An image of nothing: one colour, a faint gradient, a faint noise or an empty frame.

    Args:
      rng: chooses which.
      size: the side in pixels.

    Returns:
      An RGB image.
    """
    colour = vary(pick(rng, (PAPER, (255, 255, 255), (228, 228, 228), (128, 128, 128), (12, 12, 14))), rng, 6)
    image = Image.new("RGB", (size, size), colour)
    roll = rng.random()
    if roll < 0.25:
        image = Image.linear_gradient("L").resize((size, size)).convert("RGB")
        image = Image.blend(Image.new("RGB", (size, size), colour), image, 0.12)
    elif roll < 0.5:
        noise = rng.integers(-7, 8, (size, size, 1)) + np.asarray(image, np.int64)
        image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    elif roll < 0.65:
        grey = mix(colour, (128, 128, 128), 0.3)
        ImageDraw.Draw(image).rectangle((1, 1, size - 2, size - 2), outline=grey)
    return image


def _banner(side: int, rng: np.random.Generator) -> tuple[Image.Image, Rgb, Rgb]:
    """A sheet of one colour, framed or not, and the colours to write on it in."""
    colour = vary(PAINTS[pick(rng, sorted(PAINTS))], rng)
    paper, ink = (colour, PAPER if sum(colour) < 420 else INK)
    if rng.random() < 0.3:
        paper, ink = PAPER, mix(colour, INK, 0.35)
    canvas = Image.new("RGB", (side, side), paper)
    if rng.random() < 0.5:
        edge = side * 0.03
        frame = (edge, edge, side - edge, side - edge)
        ImageDraw.Draw(canvas).rectangle(frame, outline=ink, width=round(edge / 2))
    return canvas, ink, paper


def _fit(text: str, width: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, str]:
    """The largest letters at which the words, wrapped, fit a square, and the wrapped words."""
    for share in (0.3, 0.25, 0.21, 0.18, 0.15, 0.125, 0.11, 0.095):
        font = _font(round(width * share))
        lines = _wrap(text.split(), font, width)
        if len(lines) * width * share * 1.3 <= width and all(font.getlength(line) <= width for line in lines):
            break
    return font, "\n".join(lines)


def _wrap(words: list[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
