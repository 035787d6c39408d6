"""The settings of images that lie beside a checkpoint: read, written and refused; SigLIP's pixels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdata_jax.errors import InputError
from clipdata_jax.models import ImageTransform, load_image_transform, write_preprocessor_config

IMAGES = (
    "cmyk.jpg",
    "exif_rotated.jpg",
    "gray_alpha.png",
    "gray_square.png",
    "palette.png",
    "rgb_landscape.png",
    "rgba_portrait.png",
    "tiny_upscale.png",
)


def processor_of(model: str, name: str) -> Any:
    """A processor of transformers that needs no torch."""
    reason = "needs transformers 5.6, whose processors work without torch"
    module = pytest.importorskip(f"transformers.models.{model}.image_processing_pil_{model}", reason=reason)
    return getattr(module, name)


def write(folder: Path, **content: object) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def test_the_settings_beside_a_checkpoint_are_read(golden: Path, tmp_path: Path):
    assert load_image_transform(golden / "models" / "hf_clip_quickgelu") == ImageTransform(size=32)
    old = write(tmp_path, size=40, crop_size=32)
    assert load_image_transform(old) == ImageTransform(size=32, resize=40)
    new = write(tmp_path, size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=3)
    want = ImageTransform(size=32, resize=40, convention="open_clip")
    assert load_image_transform(new, convention="open_clip") == want
    settings = (tmp_path / "preprocessor_config.json").read_text()
    (tmp_path / "processor_config.json").write_text(f'{{"image_processor": {settings}}}')
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_image_transform(tmp_path) == ImageTransform(size=32, resize=40)


def test_a_size_of_height_and_width_is_scaled_to_as_transformers_does(golden: Path, tmp_path: Path):
    processor = processor_of("clip", "CLIPImageProcessorPil")

    side = {"height": 32, "width": 32}
    transform = load_image_transform(write(tmp_path, size=side, crop_size=side))
    assert transform == ImageTransform(size=32, fit="squash")
    assert load_image_transform(write(tmp_path, size=side, do_center_crop=False)) == transform
    theirs = processor(size=side, crop_size=side, do_normalize=False, do_rescale=False)
    for name in ("rgb_landscape.png", "exif_rotated.jpg"):
        with Image.open(golden / "preprocess" / name) as image:
            want = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
            np.testing.assert_array_equal(transform(image), want, err_msg=name)


def test_settings_are_written_as_they_are_read(tmp_path: Path):
    processor = processor_of("clip", "CLIPImageProcessorPil")

    transform = ImageTransform(size=32, resize=36)
    write_preprocessor_config(tmp_path, transform, image_mean=(0.5, 0.5, 0.5))
    assert load_image_transform(tmp_path) == transform
    theirs = processor.from_pretrained(tmp_path)
    assert dict(theirs.size)["shortest_edge"] == 36
    assert tuple(theirs.image_mean) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="convention is 'open_clip'"):
        write_preprocessor_config(tmp_path, ImageTransform(size=32, convention="open_clip"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"do_center_crop": False}, "do_center_crop False, expected true"),
        ({"do_pad": True}, "do_pad True, expected false"),
        ({"rescale_factor": 0.5}, r"rescale_factor 0\.5, expected 0\.0039.*: 1 / 255"),
        ({"resample": 0}, r"resample 0, expected 3 \(bicubic\) or 2"),
        ({"size": {"height": 32, "width": 31}}, "size .* expected one number of pixels for height and width"),
        ({"size": {"height": 32, "width": 32}}, "crop_size 224, expected its size, .*'height': 32"),
        ({"crop_size": {"height": 32, "width": 31}}, "crop_size .* for height and width"),
        ({"crop_size": "32"}, "crop_size '32'"),
        ({"size": 31, "crop_size": 32}, "size 31 below crop_size 32"),
    ],
)
def test_settings_that_are_not_clips_are_refused(content: dict, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        load_image_transform(write(tmp_path, **content))


def test_settings_of_another_model_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"neither preprocessor_config\.json nor config\.json"):
        load_image_transform(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert load_image_transform(tmp_path) == ImageTransform(size=224)
    with pytest.raises(InputError, match="crop_size is 336 but the model's image_size is 224"):
        load_image_transform(write(tmp_path, size=336, crop_size=336))


@pytest.mark.parametrize(("resample", "interpolation"), [(3, "bicubic"), (2, "bilinear")])
def test_siglips_pixels_are_exactly_those_of_transformers(
    resample: int, interpolation: str, golden: Path, tmp_path: Path
):
    processor = processor_of("siglip", "SiglipImageProcessorPil")

    side = {"height": 32, "width": 32}
    write(tmp_path, image_processor_type="SiglipImageProcessor", size=side, resample=resample, do_convert_rgb=None)
    transform = load_image_transform(tmp_path)
    assert transform == ImageTransform(size=32, fit="squash", interpolation=interpolation)
    theirs = processor(size=side, resample=resample)
    for name in IMAGES:
        with Image.open(golden / "preprocess" / name) as image:
            values = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0])
            want = np.rint((values.transpose(1, 2, 0) * 0.5 + 0.5) * 255)
            np.testing.assert_array_equal(transform(image), want, err_msg=name)


def test_siglips_settings_are_read_and_written(golden: Path, tmp_path: Path):
    assert load_image_transform(golden / "models" / "hf_siglip") == ImageTransform(size=32, fit="squash")
    shutil.copyfile(golden / "models" / "hf_siglip" / "config.json", tmp_path / "config.json")
    transform = ImageTransform(size=32, fit="squash", interpolation="bilinear")
    write_preprocessor_config(tmp_path, transform, image_mean=(0.5, 0.5, 0.5))
    assert load_image_transform(tmp_path) == transform
    with pytest.raises(InputError, match="crop_size 224, expected its size"):
        load_image_transform(write(tmp_path, do_center_crop=True, size={"height": 32, "width": 32}))
    with pytest.raises(InputError, match="processor's size is 64 but the model's image_size is 32"):
        load_image_transform(write(tmp_path, size={"height": 64, "width": 64}))


def open_clip(folder: Path, **settings: object) -> Path:
    model = {"embed_dim": 512, "vision_cfg": {"image_size": 32}, "text_cfg": {}}
    content = {"model_cfg": model, "preprocess_cfg": settings}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def test_open_clips_settings_are_read(golden: Path, tmp_path: Path):
    want = ImageTransform(size=32, convention="open_clip")
    assert load_image_transform(golden / "models" / "open_clip_gelu") == want
    assert load_image_transform(open_clip(tmp_path)) == want
    assert load_image_transform(tmp_path, convention="transformers") == ImageTransform(size=32)
    settings = {"size": [32, 32], "resize_mode": "squash", "interpolation": "bilinear", "fill_color": 0}
    want = ImageTransform(size=32, convention="open_clip", fit="squash", interpolation="bilinear")
    assert load_image_transform(open_clip(tmp_path, **settings)) == want
    wide = Image.new("RGB", (90, 30))
    wide.paste("white", (0, 0, 30, 30))
    got = want(wide)[:, :, 0]  # nothing is cut off: a third is white
    assert got[:, :8].min() > 250
    assert got[:, 14:].max() < 5
    with pytest.raises(
        InputError, match=r"unsupported settings: resize_mode 'longest', mode 'L', crop_pct 0\.9 \(unknown\)"
    ):
        load_image_transform(open_clip(tmp_path, resize_mode="longest", mode="L", crop_pct=0.9))
    with pytest.raises(InputError, match="has size 64 but the model's image_size is 32"):
        load_image_transform(open_clip(tmp_path, size=64))
