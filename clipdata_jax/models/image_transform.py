"""From the bytes of a picture to the square of pixels that CLIP was trained on, with Pillow on the host."""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from clipdata_jax.errors import InputError
from clipdata_jax.models.clip_config import OPENAI_MEAN, OPENAI_STD
from clipdata_jax.models.files import (
    CONFIG,
    PREPROCESSOR,
    PROCESSOR,
    checkpoint_folder,
    read_config,
    read_json,
    write_json,
)

Convention = Literal["transformers", "open_clip"]
# What the web holds. Pillow reads more, some of it through outside programs, which no file should start.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")

# Pillow warns of pictures that it opens all the same: of large ones, which `max_pixels` refuses here, and of
# odd metadata, which is not read. A filter per call would not be safe in the threads that decode.
for _category in (Image.DecompressionBombWarning, UserWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Decodes a picture, scales its shorter side and cuts out the centre; safe to call from many threads.

    The two conventions agree on opaque pictures without a palette:

    - "transformers": transparency is laid on white and colours become RGB first, then bicubic scaling (as the
      Pillow-based processor of transformers 5);
    - "open_clip": bicubic scaling and cutting in the file's own colours (a palette: nearest neighbour), then
      RGB, with transparency dropped.

    Neither turns a picture as its EXIF tag says, since the published models were not trained that way.
    """

    size: int
    """Pixels a side of the result."""
    resize: int | None = None
    """Pixels of the shorter side after scaling, at least `size`; default `size`."""
    convention: Convention = "transformers"
    max_pixels: int = 64_000_000
    """Pictures of more pixels, as stored or as scaled, are refused before they are decoded."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.shorter_side < self.size:
            raise ValueError(f"size {self.size} and resize {self.resize}: expected 1 <= size <= resize")
        if self.convention not in get_args(Convention):
            raise ValueError(f"convention is {self.convention!r}, expected one of {get_args(Convention)}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}, expected at least 1")

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side after scaling."""
        return self.size if self.resize is None else self.resize

    def __call__(self, picture: bytes | Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """Makes the model's input of a picture.

        Args:
          picture: the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file (of an animation the first frame), or
            an open picture, which is left as it is.

        Returns:
          RGB, uint8, not normalised: `CLIP.encode_image` does that.

        Raises:
          InputError: not a picture, cut short or broken, or of more than `max_pixels`. One sentence without a
            file name, which only the caller knows.
        """
        if isinstance(picture, Image.Image):
            return self._pixels(picture)
        with _open(picture) as image:
            return self._pixels(image)

    def _pixels(self, image: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        scaled = self._scaled_size(*image.size)
        try:
            if self.convention == "transformers":
                image = _flat_rgb(image)
            image = image.resize(scaled, Image.Resampling.BICUBIC)
            image = image.crop(self._centre(*scaled))
            image.info.pop("transparency", None)  # dropped below either way, with a warning for a palette's
            return np.asarray(image.convert("RGB"))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on a broken file
            raise InputError(
                f"the picture can't be decoded ({_reason(error)}): it is cut short or broken"
            ) from error

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        if width < 1 or height < 1:
            raise InputError(f"the picture is {width} x {height} pixels: there is nothing to see")
        side, shorter, longer = self.shorter_side, min(width, height), max(width, height)
        other = int(side * longer / shorter)
        # A long thin line is small as stored and huge once its shorter side has grown.
        for pixels, which in (
            (width * height, ""),
            (side * other, f" and {side * other:,} pixels when scaled"),
        ):
            if pixels > self.max_pixels:
                raise InputError(
                    f"the picture has {width} x {height} pixels{which}, over max_pixels {self.max_pixels:,}"
                )
        return (side, other) if width <= height else (other, side)

    def _centre(self, width: int, height: int) -> tuple[int, int, int, int]:
        spare = width - self.size, height - self.size
        # The two libraries cut an odd remainder differently: down, or to the even side.
        left, top = (s // 2 if self.convention == "transformers" else round(s / 2) for s in spare)
        return left, top, left + self.size, top + self.size


def load_image_transform(path: str | Path, *, convention: Convention = "transformers") -> ImageTransform:
    """The transform that belongs to a checkpoint.

    Args:
      path: as for `load_clip`. `preprocessor_config.json` says the sizes; without one they are the
        model's, as for all of OpenAI's models.
      convention: whose treatment of transparency and palettes, see `ImageTransform`.

    Raises:
      InputError: a file is missing or broken, asks for something else than scaling the shorter side
        (bicubic), cutting the centre and normalising, or for another size than the model's.
    """
    folder = checkpoint_folder(path)
    model_size = read_config(folder).vision.image_size if (folder / CONFIG).is_file() else None
    content = read_preprocessor(folder)
    if content is None:
        if model_size is None:
            raise InputError(
                f"{folder} has neither {PREPROCESSOR} nor {CONFIG}: expected at least the latter"
            )
        return ImageTransform(size=model_size, convention=convention)
    resize, size = _sizes(folder, content)
    if model_size is not None and size != model_size:
        raise InputError(
            f"{folder}: the image processor's crop_size is {size} but the model's image_size is "
            f"{model_size}: check that both files are of the same model"
        )
    return ImageTransform(size=size, resize=resize, convention=convention)


def read_preprocessor(folder: Path) -> dict[str, Any] | None:
    """The image processor's settings in a checkpoint folder, None if it has none.

    Raises:
      InputError: the file is broken.
    """
    if (folder / PREPROCESSOR).is_file():
        return read_json(folder / PREPROCESSOR)
    # Where transformers 5 writes them.
    settings = (
        read_json(folder / PROCESSOR).get("image_processor") if (folder / PROCESSOR).is_file() else None
    )
    return settings if isinstance(settings, dict) else None


def write_preprocessor_config(
    folder: str | Path,
    transform: ImageTransform,
    *,
    image_mean: tuple[float, float, float] = OPENAI_MEAN,
    image_std: tuple[float, float, float] = OPENAI_STD,
) -> None:
    """Writes `preprocessor_config.json`, which `load_image_transform`, `load_clip` and transformers read.

    Args:
      folder: an existing folder.
      transform: what to write; the file can't say a convention, it is always transformers'.
      image_mean: of the three colours, on a scale of 0 to 1.
      image_std: likewise, above 0.

    Raises:
      ValueError: the transform has open_clip's convention.
    """
    if transform.convention != "transformers":
        raise ValueError(f"{PREPROCESSOR} can't say convention {transform.convention!r}, only 'transformers'")
    write_json(
        Path(folder) / PREPROCESSOR,
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": transform.shorter_side},
            "crop_size": {"height": transform.size, "width": transform.size},
            "resample": int(Image.Resampling.BICUBIC),
            "rescale_factor": 1 / 255,
            "image_mean": list(image_mean),
            "image_std": list(image_std),
            **dict.fromkeys(_SWITCHES, True),
        },
    )


def _sizes(folder: Path, content: dict[str, Any]) -> tuple[int, int]:
    """(shorter side, crop) as the processor's settings say them."""
    where = f"the image processor's file in {folder}"
    for name in _SWITCHES:
        if content.get(name, True) is not True:
            raise InputError(f"{where} has {name} {content[name]!r}, expected true")
    if (resample := content.get("resample", Image.Resampling.BICUBIC)) != Image.Resampling.BICUBIC:
        raise InputError(f"{where} has resample {resample!r}, expected 3 (bicubic)")
    shorter = _side(where, content, "size", "shortest_edge")
    side = _side(where, content, "crop_size", "height", "width")
    if shorter < side:
        raise InputError(f"{where} has size {shorter} below crop_size {side}, expected no less")
    return shorter, side


def _side(where: str, content: dict[str, Any], name: str, *keys: str) -> int:
    """One number of pixels: all the keys' values, or, in older files, a plain number."""
    found = content.get(name, 224)
    values = [found.get(key) for key in keys] if isinstance(found, dict) else [found]
    if not isinstance(values[0], int) or values[0] < 1 or values != values[:1] * len(values):
        raise InputError(
            f"{where} has {name} {found!r}, expected one number of pixels for {' and '.join(keys)}"
        )
    return values[0]


def _open(data: bytes) -> Image.Image:
    if not data:
        raise InputError("the picture's file is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        start = bytes(data[:8])
        raise InputError(
            f"not a picture: {len(data)} bytes starting {start!r} are none of {_FORMATS}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"the picture has too many pixels to be decoded safely ({_reason(error)})"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a broken header raises nearly anything
        raise InputError(f"the picture's header can't be read ({_reason(error)}): it is broken") from error


def _flat_rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
