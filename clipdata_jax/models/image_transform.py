"""From the bytes of an image to the square of pixels that CLIP was trained on, with Pillow on the host."""

from __future__ import annotations

import dataclasses
import io
import math
import warnings
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from clipdata_jax.errors import InputError
from clipdata_jax.models.checkpoint_layout import Convention

Fit = Literal["crop", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
# What the web holds. Pillow reads more, some of it through outside programs, which no file should start.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Pillow warns of images that it opens all the same: of large ones, which `max_pixels` refuses here, and of
# odd metadata, which is not read. A filter per call would not be safe in the threads that decode.
for _category in (Image.DecompressionBombWarning, UserWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


def open_image(data: bytes) -> Image.Image:
    """Opens an image without decoding it: its size is known, its pixels are decoded when first used, once.

    Several `ImageTransform`s can then share the decoding, which takes most of the time.

    Args:
      data: the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file.

    Raises:
      InputError: not an image, a broken header, or so many pixels that it may be an attack. One sentence
        without a file name, which only the caller knows.
    """
    if not data:
        raise InputError("the image's file is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        start = bytes(data[:8])
        raise InputError(
            f"not an image: {len(data)} bytes starting {start!r} are none of {_FORMATS}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"the image has too many pixels to be decoded safely ({_reason(error)})") from error
    except MemoryError:
        raise
    except Exception as error:  # a broken header raises nearly anything
        raise InputError(f"the image's header can't be read ({_reason(error)}): it is broken") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Decodes an image and makes a square of it; safe to call from many threads.

    The two conventions agree on opaque images without a palette:

    - "transformers": transparency is laid on white and colours become RGB first, then scaling (as the
      Pillow-based processors of transformers 5);
    - "open_clip": scaling and cutting in the file's own colours (a palette: nearest neighbour), then
      RGB, with transparency dropped.

    Neither turns an image as its EXIF tag says, since the published models were not trained that way.
    """

    size: int
    """Pixels a side of the result."""
    resize: int | None = None
    """Pixels of the shorter side after scaling, at least `size`; default `size`."""
    convention: Convention = "transformers"
    fit: Fit = "crop"
    """"crop": the shorter side is scaled and the centre cut out; "squash": both sides are scaled to `size`."""
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
        """Pixels of the shorter side after scaling."""
        return self.size if self.resize is None else self.resize

    def __call__(self, source: bytes | Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """Makes the model's input of an image.

        Args:
          source: the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file (of an animation the first frame), or
            an open image, which is left as it is; a broken one is closed.

        Returns:
          RGB, uint8, not normalised: `CLIP.encode_image` does that.

        Raises:
          InputError: not an image, cut short or broken, or of more than `max_pixels`. One sentence without a
            file name, which only the caller knows.
        """
        if isinstance(source, Image.Image):
            return self._pixels(source)
        with open_image(source) as image:
            return self._pixels(image)

    def _pixels(self, image: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        scaled = self._scaled_size(*image.size)
        try:
            _load(image)
            if self.convention == "transformers":
                image = _flat_rgb(image)
            image = _scaled_centre(image, scaled, self._centre(*scaled), _FILTERS[self.interpolation])
            image.info.pop("transparency", None)  # dropped below either way, with a warning for a palette's
            return np.asarray(_rgb(image))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on a broken file
            raise InputError(
                f"the image can't be decoded ({_reason(error)}): it is cut short or broken"
            ) from error

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        if width < 1 or height < 1:
            raise InputError(f"the image is {width} x {height} pixels: there is nothing to see")
        if self.fit == "squash":
            self._check_pixels(width, height, width * height, "")
            self._check_pixels(width, height, self.size**2, f" and {self.size**2:,} pixels when scaled")
            return self.size, self.size
        side, shorter, longer = self.shorter_side, min(width, height), max(width, height)
        other = int(side * longer / shorter)
        # A long thin line is small as stored and huge once its shorter side has grown.
        self._check_pixels(width, height, width * height, "")
        self._check_pixels(width, height, side * other, f" and {side * other:,} pixels when scaled")
        return (side, other) if width <= height else (other, side)

    def _check_pixels(self, width: int, height: int, pixels: int, which: str) -> None:
        if pixels > self.max_pixels:
            raise InputError(
                f"the image has {width} x {height} pixels{which}, over max_pixels {self.max_pixels:,}"
            )

    def _centre(self, width: int, height: int) -> tuple[int, int, int, int]:
        spare = width - self.size, height - self.size
        # The two libraries cut an odd remainder differently: down, or to the even side.
        left, top = (s // 2 if self.convention == "transformers" else round(s / 2) for s in spare)
        return left, top, left + self.size, top + self.size


def _scaled_centre(
    image: Image.Image,
    scaled: tuple[int, int],
    centre: tuple[int, int, int, int],
    kernel: Image.Resampling,
) -> Image.Image:
    """What `image.resize(scaled, kernel).crop(centre)` gives, with less work where much of it is cut off.

    Pillow scales across, rounds to bytes, then scales down. One after the other, what is cut off at the sides is
    not scaled down, and what is cut off above and below not across.
    """
    left, top, right, bottom = centre
    # Transparent images Pillow converts first, those of palettes it doesn't interpolate, and tall ones it scales
    # down first.
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
    """The rows of an image that some rows of it scaled are made of, and a few more: (first, behind the last)."""
    reach = 2 * max(scale, 1) + 2  # a bicubic kernel is two of the coarser pixels wide, either way
    return max(0, math.floor(top * scale - reach)), min(height, math.ceil(bottom * scale + reach))


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception:
        image.close()  # else the next to load it gets what was decoded up to the break, and no error
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
