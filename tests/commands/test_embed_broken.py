"""A pool with every kind of broken member: nothing is dropped silently, nothing escapes, the rest is embedded."""

import io
import json
import struct
import zlib

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.checkpoints import make_checkpoint
from support.images import jpeg, write_pairs

from clipdata_jax import models
from clipdata_jax.formats import tars


def gif():
    frames = [Image.new("P", (30, 20), shade) for shade in (3, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def bomb(side=10_000):
    """A PNG of 100 megapixels in a few hundred kilobytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side + 1) * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


GOOD = {  # image, and what else there is
    "cmyk": (jpeg(1, mode="CMYK"), {"txt": b"cyan and magenta"}),
    "grey": (jpeg(2, mode="L"), {"txt": b"grey"}),
    "animated": (gif(), {"txt": b"a film"}),
    "../../etc/passwd": (jpeg(3), {"txt": b"climbs out"}),
    "/root/absolute": (jpeg(4), {"txt": b"from the root"}),
    "inner/folder/key": (jpeg(5), {"json": json.dumps({"caption": "in a folder"}).encode()}),
}
BAD = {
    "truncated": (jpeg(6, size=(99, 99))[:-900], {"txt": b"cut"}, "truncated or broken"),
    "bomb": (bomb(), {"txt": b"boom"}, "0 pixels"),
    "zero": (b"", {"txt": b"nothing"}, "empty (0 bytes)"),
    "html": (b"<html>404</html>", {"txt": b"not found"}, "not an image"),
    "latin1": (jpeg(7), {"txt": "café".encode("latin-1")}, "its .txt is not UTF-8 (byte 3)"),
    "uncaptioned": (jpeg(8), {}, "no caption"),
    "blank": (jpeg(9), {"txt": b"   "}, "its caption is empty"),
    "mad_json": (jpeg(10), {"json": b"{" * 9}, "its .json is not JSON"),
    "bad_uid": (jpeg(11), {"txt": b"x", "json": b'{"uid": [7]}'}, "its uid is [7]"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def pool(tmp_path):
    (tmp_path / "pool").mkdir()
    members = []
    for key, (image, others, *_) in {**GOOD, **BAD}.items():
        members += [(f"{key}.jpg", image), *((f"{key}.{ext}", data) for ext, data in others.items())]
    members.append(("alone.txt", b"a caption without an image"))
    tars.write_tar(str(tmp_path / "pool" / "members.tar"), members)
    pair = [("a.jpg", jpeg(0)), ("a.txt", b"x"), ("b.jpg", jpeg(1)), ("b.txt", b"y")]
    tars.write_tar(str(tmp_path / "pool" / "interleaved.tar"), [pair[0], pair[2], pair[1], pair[3]])
    tars.write_tar(str(tmp_path / "pool" / "repeated.tar"), [*pair, ("b.jpg", jpeg(2))])
    whole = (tmp_path / "pool" / "repeated.tar").read_bytes()
    (tmp_path / "pool" / "cut.tar").write_bytes(whole[:1500])
    (tmp_path / "pool" / "not_a.tar").write_bytes(b"<html>")
    write_pairs(tmp_path / "pool" / "sound.tar", range(3))
    return tmp_path / "pool"


def test_every_kind_of_broken_member_is_listed_and_the_rest_embedded(tmp_path, pool, checkpoint, clipdata):
    flags = ("embed", "pool", "--model", checkpoint, "--batch-size", 4, "--out", "out")
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    done = clipdata(*flags, "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    skipped = {entry["key"]: entry["reason"] for entry in manifest["skipped_samples"]}
    assert set(skipped) == {*BAD, "alone"}
    for key, (*_, words) in BAD.items():
        assert words in skipped[key], (key, skipped[key])
    assert {entry["tar"] for entry in manifest["skipped_samples"]} == {"pool/members.tar"}
    reasons = "\n".join(manifest["skipped_tars"])
    for words in ("members of sample 'a' lie apart", "repeated.tar: key 'b' has two members .jpg"):
        assert words in reasons
    assert len(manifest["skipped_tars"]) == 4
    assert manifest["pairs"] == len(GOOD) + 3
    assert f"Skipped 4 tars and {len(BAD) + 1} samples" in done.stdout.splitlines()[-1]
    table = pq.read_table(tmp_path / "out" / "members.parquet").to_pydict()
    assert table["key"] == list(GOOD)
    transform, model = models.load_image_transform(checkpoint), models.load_clip(checkpoint)
    with np.load(tmp_path / "out" / "members.npz") as file:
        found = file["clip_img"]
    wanted = jax.jit(models.CLIP.encode_image)(model, np.stack([transform(image) for image, _ in GOOD.values()]))
    np.testing.assert_allclose(found, wanted, atol=5e-4)
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before  # nothing climbed out


def test_each_broken_member_stops_a_run_that_was_not_told_to_skip(tmp_path, checkpoint, clipdata):
    for key, (image, others, words) in BAD.items():
        members = [(f"{key}.jpg", image), *((f"{key}.{ext}", data) for ext, data in others.items())]
        tars.write_tar(str(tmp_path / f"{key}.tar"), members)
        done = clipdata("embed", f"{key}.tar", "--model", checkpoint, "--out", f"{key}_out", "--batch-size", 4)
        assert done.returncode == 2, (key, done.stderr)
        assert words in done.stderr, (key, done.stderr)
        assert f"{key}.tar: sample '{key}': " in done.stderr
        assert "Traceback" not in done.stderr
