"""Reading and writing the image processor's settings of a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image

from clipdata_jax.errors import InputError
from clipdata_jax.models.checkpoint_files import (
    CONFIG,
    PREPROCESSOR,
    PROCESSOR,
    checkpoint_folder,
    read_json,
    write_json,
)
from clipdata_jax.models.checkpoint_layout import Convention, Layout, find_layout
from clipdata_jax.models.clip_config import OPENAI_MEAN, OPENAI_STD
from clipdata_jax.models.image_transform import Fit, ImageTransform, Interpolation
from clipdata_jax.models.transformers_config import is_siglip

_SWITCHES = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_RESAMPLES: dict[int, Interpolation] = {
    int(Image.Resampling.BICUBIC): "bicubic",
    int(Image.Resampling.BILINEAR): "bilinear",
}
# The keys of open_clip's preprocess_cfg and the values that change nothing here; None: read, by us or load_clip.
_OPEN_CLIP: dict[str, tuple[Any, ...] | None] = {
    "size": None,
    "mean": None,
    "std": None,
    "interpolation": ("bicubic", "bilinear"),
    "resize_mode": ("shortest", "squash"),
    "mode": ("RGB",),
    "fill_color": None,  # fills what resize_mode "longest" leaves empty
}


def load_image_transform(path: str | Path, *, convention: Convention | None = None) -> ImageTransform:
    """Reads the image transform of a checkpoint.

    Args:
      path: as for `load_clip`. The sizes are those of `preprocessor_config.json` or, in open_clip's layout, of
        `preprocess_cfg` in `open_clip_config.json`; without these, the model's.
      convention: "transformers" or "open_clip": how transparency and palettes are treated, see
        `ImageTransform`. Default: the checkpoint's layout.

    Returns:
      A callable from the bytes of an image to uint8 pixels of shape (size, size, 3).

    Raises:
      InputError: a file is missing or broken, or its settings are not supported or don't fit the model.

    >>> from importlib.resources import files
    >>> from clipdata_jax import load_image_transform
    >>> folder = files("clipdata_jax") / "demo" / "model"
    >>> load_image_transform(folder).size
    64
    """
    folder = checkpoint_folder(path)
    layout = find_layout(folder)
    if layout is not None and layout.kind == "open_clip":
        return _from_open_clip(layout, convention or "open_clip")
    config = layout.config() if layout else None
    content = read_preprocessor(folder)
    siglip = is_siglip(config) if config else "Siglip" in str((content or {}).get("image_processor_type"))
    model_size = config.image_size if config is not None and config.vision is not None else None
    if content is None:
        if model_size is None:
            raise InputError(f"{folder} has neither {PREPROCESSOR} nor {CONFIG}; expected at least {CONFIG}")
        content = {"size": model_size, "crop_size": model_size}
    size, resize, fit = _sizes(folder, content, siglip=siglip)
    if model_size not in (None, size):
        key = "size" if fit == "squash" else "crop_size"
        raise InputError(
            f"{folder}: the image processor's {key} is {size} but the model's image_size is {model_size}: check that"
            " both files are of the same model"
        )
    return ImageTransform(
        size=size,
        resize=None if resize == size else resize,
        convention=convention or "transformers",
        fit=fit,
        interpolation=_interpolation(folder, content),
    )


def read_preprocessor(folder: Path) -> dict[str, Any] | None:
    """Reads the image processor's settings of a checkpoint folder; None without such a file.

    Raises:
      InputError: the file is broken.
    """
    if (folder / PREPROCESSOR).is_file():
        return read_json(folder / PREPROCESSOR)
    # Where transformers 5 writes them.
    settings = read_json(folder / PROCESSOR).get("image_processor") if (folder / PROCESSOR).is_file() else None
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
      transform: of the convention "transformers", since the file has no field for another.
      image_mean: of the three colours, in [0, 1].
      image_std: of the three colours, above 0.

    Raises:
      ValueError: the transform's convention is "open_clip".

    >>> from clipdata_jax.models import ImageTransform, load_image_transform, write_preprocessor_config
    >>> write_preprocessor_config(".", ImageTransform(size=224, resize=256))
    >>> load_image_transform(".").shorter_side
    256
    """
    if transform.convention != "transformers":
        raise ValueError(f"convention is {transform.convention!r}, expected 'transformers' for {PREPROCESSOR}")
    side = {"height": transform.size, "width": transform.size}
    kind, shape = "Siglip", dict[str, Any](size=side)
    if transform.fit == "crop":
        shortest = {"shortest_edge": transform.shorter_side}
        kind, shape = "CLIP", {"size": shortest, "crop_size": side, "do_center_crop": True}
    write_json(
        Path(folder) / PREPROCESSOR,
        {
            "image_processor_type": f"{kind}ImageProcessor",
            **shape,
            "resample": {name: code for code, name in _RESAMPLES.items()}[transform.interpolation],
            "rescale_factor": 1 / 255,
            "image_mean": list(image_mean),
            "image_std": list(image_std),
            **dict.fromkeys(_SWITCHES, True),
        },
    )


def _from_open_clip(layout: Layout, convention: Convention) -> ImageTransform:
    content, where = layout.content.get("preprocess_cfg") or {}, f"{layout.config_file}: preprocess_cfg"
    if not isinstance(content, dict):
        raise InputError(f"{where} is a {type(content).__name__}, expected an object")
    refused = [
        f"{name} {value!r}" + ("" if name in _OPEN_CLIP else " (unknown)")
        for name, value in content.items()
        if (allowed := _OPEN_CLIP.get(name, ())) is not None and value not in allowed
    ]
    if refused:
        raise InputError(f"{where} has unsupported settings: {', '.join(refused)}")
    model_size = layout.config().image_size
    size = content.get("size", model_size)
    if (size[0] if isinstance(size, list) and size == size[:1] * 2 else size) != model_size:
        raise InputError(f"{where} has size {size!r} but the model's image_size is {model_size}")
    return ImageTransform(
        size=model_size,
        convention=convention,
        fit="squash" if content.get("resize_mode") == "squash" else "crop",
        interpolation=content.get("interpolation", "bicubic"),
    )


def _sizes(folder: Path, content: dict[str, Any], *, siglip: bool) -> tuple[int, int, Fit]:
    """The side of the result, the length of the shorter side after scaling and the way to fit, by the settings.

    As in transformers, a size with `height` and `width` is scaled to as it is, and a plain number is one for SigLIP.
    """
    where = f"the image processor's file in {folder}"
    for name in _SWITCHES:
        if content.get(name) not in (None, True):
            raise InputError(f"{where} has {name} {content[name]!r}, expected true")
    if content.get("do_pad"):
        raise InputError(f"{where} has do_pad {content['do_pad']!r}, expected false")
    factor = content.get("rescale_factor", 1 / 255)
    if not (isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-6)):
        raise InputError(f"{where} has rescale_factor {factor!r}, expected {1 / 255}: 1 / 255")
    given, crops = content.get("size", 224), content.get("do_center_crop")
    crops = not siglip if crops is None else crops
    if "height" in given if isinstance(given, dict) else siglip:
        side = _side(where, content, "size", "height", "width")
        if crops and _side(where, content, "crop_size", "height", "width") != side:
            raise InputError(f"{where} has crop_size {content.get('crop_size', 224)!r}, expected its size, {given!r}")
        return side, side, "squash"
    if not crops:
        raise InputError(f"{where} has do_center_crop {crops!r}, expected true")
    shorter = _side(where, content, "size", "shortest_edge")
    side = _side(where, content, "crop_size", "height", "width")
    if shorter < side:
        raise InputError(f"{where} has size {shorter} below crop_size {side}, expected at least that")
    return side, shorter, "crop"


def _interpolation(folder: Path, content: dict[str, Any]) -> Interpolation:
    resample = content.get("resample", 3)
    if resample not in _RESAMPLES:
        raise InputError(
            f"the image processor's file in {folder} has resample {resample!r}, expected 3 (bicubic) or 2 (bilinear)"
        )
    return _RESAMPLES[resample]


def _side(where: str, content: dict[str, Any], name: str, *keys: str) -> int:
    """A number of pixels: the value of all keys or, in older files, a plain number."""
    found = content.get(name, 224)
    values = [found.get(key) for key in keys] if isinstance(found, dict) else [found]
    if not isinstance(values[0], int) or values[0] < 1 or values != values[:1] * len(values):
        raise InputError(f"{where} has {name} {found!r}, expected one number of pixels for {' and '.join(keys)}")
    return values[0]
