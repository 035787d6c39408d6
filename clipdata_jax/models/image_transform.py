"""Image preprocessing on the host with Pillow: from the bytes of a file to the square of pixels that CLIP takes."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import math
import warnings
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from clipdata_jax.errors import InputError
from clipdata_jax.models.checkpoint_layout import Convention

Fit = Literal["crop", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
# The formats of the web. Pillow reads more, some through external programs, which no input should start; AVIF since
# its version 11.3.
_QUALITY = 95  # of JPEGs
_AVIF = ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *_AVIF)

# Of a PNG's texts and colour profile, when decompressed; Pillow's limit of 1 MiB refuses sound images.
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24

# Pillow warns about large images, which `max_pixels` refuses here, and about odd metadata, which is not read. A
# filter per call would not be safe in the threads that decode.
for _category in (Image.DecompressionBombWarning, UserWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


def open_image(data: bytes) -> Image.Image:
    """Opens an image without decoding it; its pixels are decoded once, when first used.

    Several `ImageTransform`s can then share the decoding, which takes most of the time.

    Args:
      data: the bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file.

    Returns:
      The image, of known size; `ImageTransform` takes it in place of bytes.

    Raises:
      InputError: not an image, a broken header, or so many pixels that it may be an attack. The message is a
        sentence without a file name, which only the caller knows.

    >>> import io
    >>> from PIL import Image
    >>> from clipdata_jax.models import ImageTransform, open_image
    >>> Image.new("RGB", (80, 60), "red").save(file := io.BytesIO(), "png")
    >>> image = open_image(file.getvalue())
    >>> image.size
    (80, 60)
    >>> ImageTransform(size=32)(image).shape
    (32, 32, 3)
    """
    if not data:
        raise InputError("the image's file is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        start = bytes(data[:8])
        raise InputError(f"not an image: {len(data)} bytes starting {start!r} are none of {_FORMATS}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"the image has too many pixels to be decoded safely ({_reason(error)})") from error
    except MemoryError:
        raise
    except Exception as error:  # a broken header raises nearly anything
        raise InputError(f"the image's header is broken ({_reason(error)})") from error


def shrunk_image(data: bytes, side: int) -> bytes:
    """Scales an image down so that its shorter side has `side` pixels, as a JPEG of quality 95.

    Bicubic, as CLIP scales. An image that is no larger stays as it is, and so does one with a palette, transparency or
    CMYK colours, whose conversion is left to the model's own transform.

    Args:
      data: the bytes of an image file, as for `open_image`.
      side: pixels, at least 1.

    Returns:
      The bytes of a JPEG, or `data` itself.

    Raises:
      InputError: not an image, truncated or broken, or too large to be decoded safely.

    >>> import io
    >>> from PIL import Image
    >>> from clipdata_jax.models import open_image, shrunk_image
    >>> Image.new("RGB", (80, 60), "red").save(file := io.BytesIO(), "png")
    >>> open_image(shrunk_image(file.getvalue(), 30)).size
    (40, 30)
    >>> shrunk_image(file.getvalue(), 60) == file.getvalue()
    True
    """
    with open_image(data) as image:
        width, height = image.size
        shorter = min(width, height)
        if shorter <= side or image.mode not in ("RGB", "L") or "transparency" in image.info:
            return data
        try:
            _load(image)
            size = round(width * side / shorter), round(height * side / shorter)
            scaled = image.resize(size, Image.Resampling.BICUBIC)
            scaled.save(file := io.BytesIO(), "JPEG", quality=_QUALITY, subsampling=0)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on a broken file
            raise InputError(f"the image can't be decoded ({_reason(error)}): it is truncated or broken") from error
    return file.getvalue()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Decodes an image and resizes it to a square; safe to call from many threads.

    The two conventions agree on opaque images without a palette:

    - "transformers": transparency is composed onto white and colours are converted to RGB, then scaled (as by the
      Pillow-based processors of transformers 5);
    - "open_clip": scaled and cropped in the file's own colours (a palette: nearest neighbour), then converted to
      RGB, with transparency dropped.

    Neither applies the EXIF orientation, since the published models were not trained that way.
    """

    size: int
    """Side of the result in pixels."""
    resize: int | None = None
    """Length of the shorter side after scaling in pixels, at least `size`; default `size`."""
    convention: Convention = "transformers"
    fit: Fit = "crop"
    """"crop": the shorter side is scaled and the centre cropped; "squash": both sides are scaled to `size`."""
    interpolation: Interpolation = "bicubic"
    max_pixels: int = 64_000_000
    """Images of more pixels, as stored or as scaled, are refused before they are decoded."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.shorter_side < self.size:
            raise ValueError(f"size {self.size} and resize {self.resize}: expected 1 <= size <= resize")
        if self.convention not in get_args(Convention):
            raise ValueError(f"convention is {self.convention!r}, expected one of {get_args(Convention)}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"fit is {self.fit!r}, expected one of {get_args(Fit)}")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation is {self.interpolation!r}, expected one of {(*_FILTERS,)}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}, expected at least 1")

    @property
    def shorter_side(self) -> int:
        """Length of the shorter side after scaling in pixels."""
        return self.size if self.resize is None else self.resize

    def __call__(self, source: bytes | Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """Converts an image to the model's input.

        Args:
          source: the bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file (the first frame of an animation), or an
            open image, which is not modified; a broken one is closed.

        Returns:
          RGB, shape (size, size, 3), uint8, not normalised: `CLIP.encode_image` does that.

        Raises:
          InputError: not an image, truncated or broken, or of more than `max_pixels`. The message is a sentence
            without a file name, which only the caller knows.
        """
        if isinstance(source, Image.Image):
            return self._pixels(source)
        with open_image(source) as image:
            return self._pixels(image)

    def part(self, image: Image.Image, box: tuple[int, int, int, int]) -> UInt8[np.ndarray, "size size 3"]:
        """Converts a part of an image to the model's input, scaled to the square whatever its shape.

        Args:
          image: an open image, as for a call; a broken one is closed.
          box: left, top, right and bottom of the part, in pixels; it lies inside.

        Returns:
          RGB, shape (size, size, 3), uint8.

        Raises:
          InputError: as a call.
        """
        self._check_pixels(*image.size, image.width * image.height, "")
        square = (self.size, self.size)
        return self._decoded(image, lambda whole: whole.crop(box).resize(square, _FILTERS[self.interpolation]))

    def _pixels(self, image: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        scaled = self._scaled_size(*image.size)
        centre, kernel = self._centre(*scaled), _FILTERS[self.interpolation]
        return self._decoded(image, lambda whole: _scaled_centre(whole, scaled, centre, kernel))

    def _decoded(
        self, image: Image.Image, scale: Callable[[Image.Image], Image.Image]
    ) -> UInt8[np.ndarray, "size size 3"]:
        try:
            _load(image)
            if self.convention == "transformers":
                image = _flat_rgb(image)
            image = scale(image)
            image.info.pop("transparency", None)  # dropped below anyway, a palette's with a warning
            return np.asarray(_rgb(image))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on a broken file
            raise InputError(f"the image can't be decoded ({_reason(error)}): it is truncated or broken") from error

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        if width < 1 or height < 1:
            raise InputError(f"the image is {width} x {height} pixels, expected at least 1 x 1")
        if self.fit == "squash":
            self._check_pixels(width, height, width * height, "")
            self._check_pixels(width, height, self.size**2, f" and {self.size**2:,} pixels when scaled")
            return self.size, self.size
        side, shorter, longer = self.shorter_side, min(width, height), max(width, height)
        other = int(side * longer / shorter)
        # A long thin image is small as stored and huge once its shorter side is scaled up.
        self._check_pixels(width, height, width * height, "")
        self._check_pixels(width, height, side * other, f" and {side * other:,} pixels when scaled")
        return (side, other) if width <= height else (other, side)

    def _check_pixels(self, width: int, height: int, pixels: int, which: str) -> None:
        if pixels > self.max_pixels:
            raise InputError(f"the image has {width} x {height} pixels{which}, over max_pixels {self.max_pixels:,}")

    def _centre(self, width: int, height: int) -> tuple[int, int, int, int]:
        spare = width - self.size, height - self.size
        # The two libraries round an odd remainder differently: down, or half to even.
        left, top = (s // 2 if self.convention == "transformers" else round(s / 2) for s in spare)
        return left, top, left + self.size, top + self.size


def _scaled_centre(
    image: Image.Image, scaled: tuple[int, int], centre: tuple[int, int, int, int], kernel: Image.Resampling
) -> Image.Image:
    """Computes `image.resize(scaled, kernel).crop(centre)` with less work where much is cropped.

    Pillow resizes horizontally, rounds to bytes, then resizes vertically. In two calls, rows that are cropped are not
    resized horizontally, nor columns vertically.
    """
    left, top, right, bottom = centre
    # Pillow converts transparent images first, doesn't interpolate palettes, and resizes tall images vertically first.
    if image.mode != "RGB" or scaled == (right - left, bottom - top) or image.height > 2 * image.width:
        return image.resize(scaled, kernel).crop(centre)
    first, last = _rows_read(top, bottom, image.height / scaled[1], image.height)
    band = image if last - first == image.height else image.crop((0, first, image.width, last))
    band = band.resize((scaled[0], last - first), kernel).crop((left, 0, right, last - first))
    if band.height < image.height:  # a row's weights depend on where it lies
        whole = Image.new("RGB", (right - left, image.height))
        whole.paste(band, (0, first))
        band = whole
    return band.resize((right - left, scaled[1]), kernel).crop((0, top, right - left, bottom))


def _rows_read(top: int, bottom: int, scale: float, height: int) -> tuple[int, int]:
    """The range of an image's rows that some rows of the scaled image depend on, with a small margin."""
    reach = 2 * max(scale, 1) + 2  # a bicubic kernel is two of the coarser pixels wide, either way
    return max(0, math.floor(top * scale - reach)), min(height, math.ceil(bottom * scale + reach))


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception:
        image.close()  # else a second load returns what was decoded so far, without an error
        raise


def _flat_rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return _rgb(image)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy even RGB


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
