"""Thumbnails of untrusted images: only pixels of the original file reach the page."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import io
import warnings

from PIL import Image, PngImagePlugin

SIDE = 320
MAX_PIXELS = 64_000_000
# Those that `models.open_image` takes, without jax.
_AVIF = ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *_AVIF)
# Of a PNG's texts and colour profile, when decompressed; Pillow's limit of 1 MiB refuses sound images.
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24
_QUALITIES = (80, 60, 35, 15)
_MAX_BYTES = 24_000


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """An image of at most 320 pixels a side as a data URI.

    Attributes:
      uri: `data:image/jpeg;base64,...`, at most some 32 kB.
      width: in pixels.
      height: in pixels.
    """

    uri: str
    width: int
    height: int


def make(data: bytes, *, side: int = SIDE) -> Thumbnail | str:
    """Decodes an image and encodes a thumbnail of it.

    Args:
      data: the bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file, from anywhere.
      side: pixels that neither side has more of.

    Returns:
      the thumbnail, or the reason why there is none.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd but readable files; its own warning of size comes later than ours.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return "image too large"
                image.draft("RGB", (2 * side, 2 * side))
                return _encode(_flatten(image, side))
    except Exception:  # decoders raise anything on damaged files
        return "image unreadable"


def _flatten(image: Image.Image, side: int) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image.thumbnail((side, side))
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def _encode(small: Image.Image) -> Thumbnail:
    small.info.clear()  # Pillow would write a JPEG's comment again
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= _MAX_BYTES:
            break
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(uri, small.width, small.height)
