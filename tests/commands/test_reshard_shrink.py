"""The real `clipdata reshard --shrink`."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from support.images import jpeg

from clipdata_jax.formats import tars, uids

SIZES = {"large": (90, 60), "tall": (64, 256), "small": (30, 24)}


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def pool(tmp_path):
    """Photographs, a drawing as PNG, images whose colours are not plain, and a broken one."""
    images = {name: ("jpg", jpeg(number, size)) for number, (name, size) in enumerate(SIZES.items())}
    plain = Image.open(io.BytesIO(jpeg(9, (80, 80))))
    images["drawing"] = "png", encoded(plain, "PNG")
    images["clear"] = "png", encoded(plain.convert("RGBA"), "PNG")
    images["ink"] = "jpg", jpeg(7, (80, 80), "CMYK")
    images["broken"] = "jpg", jpeg(5, (80, 80))[:700]
    members = []
    for number, (key, (extension, data)) in enumerate(images.items()):
        fields = json.dumps({"uid": f"{number:032x}"}).encode()
        members += [(f"{key}.{extension}", data), (f"{key}.txt", key.encode()), (f"{key}.json", fields)]
    tars.write_tar(str(tmp_path / "0.tar"), members)
    chosen = uids.from_hex([f"{number:032x}" for number in range(len(images))])
    np.save(tmp_path / "subset.npy", chosen)
    return dict(members)


def test_large_plain_images_are_scaled_down_and_all_else_is_as_it_was(pool, tmp_path, clipdata):
    done = clipdata("reshard", "0.tar", "--subset=subset.npy", "--out=out", "--shrink=40", "--on-bad=skip")
    assert done.returncode == 0, done.stderr
    assert "3 images shrunk, 3 images left as they were" in done.stdout
    assert "1 image can't be decoded, copied as it is; the first: 0.tar: sample 'broken'" in done.stdout
    found = dict(tars.read_members(str(tmp_path / "out" / "0.tar")))
    scaled = {"large.jpg": (60, 40), "tall.jpg": (40, 160), "drawing.jpg": (40, 40)}
    for name, size in scaled.items():
        image = Image.open(io.BytesIO(found.pop(name)))
        assert (image.format, image.size) == ("JPEG", size)
        original = Image.open(io.BytesIO(pool[name if name in pool else "drawing.png"]))
        want = np.asarray(original.resize(size, Image.Resampling.BICUBIC), float)
        assert np.abs(np.asarray(image, float) - want).mean() < 6
    others = {name: data for name, data in pool.items() if name.replace(".png", ".jpg") not in scaled}
    assert found == {**others, "clear.png": pool["clear.png"]}
    counts = json.loads((tmp_path / "out" / "_manifest.json").read_text())["images"]
    assert (counts["shrunk"], counts["as_they_were"], len(counts["broken"])) == (3, 3, 1)


def test_a_broken_image_stops_a_run_that_was_not_told_to_skip(pool, clipdata):
    done = clipdata("reshard", "0.tar", "--subset=subset.npy", "--out=out", "--shrink=40")
    assert done.returncode == 2
    assert done.stderr.count("\n") <= 2
    assert "0.tar: sample 'broken': the image can't be decoded" in done.stderr
    assert "--on-bad skip" in done.stderr


def test_the_side_is_at_least_one_pixel(pool, clipdata):
    done = clipdata("reshard", "0.tar", "--subset=subset.npy", "--out=out", "--shrink=0")
    assert done.returncode == 2
    assert "--shrink is 0" in done.stderr
