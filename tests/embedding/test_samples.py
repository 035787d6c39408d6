"""Reading samples: order, threads, every kind of bad sample."""

import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from clipdata_jax.embedding.samples import Bad, Decoded, decoded_samples
from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars, uids
from clipdata_jax.models import ImageTransform

TRANSFORM = ImageTransform(size=8)


def jpeg(seed=0, size=(12, 8)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path, samples):
    members = [(f"{key}.{ext}", data) for key, sample in samples.items() for ext, data in sample.items()]
    tars.write_tar(str(path), members)
    return str(path)


def good(seed=0):
    return {"jpg": jpeg(seed), "txt": f"an image of {seed}\n".encode()}


def read(path, **options):
    return list(decoded(path, **{"decoders": 2, **options}))


def decoded(path, transform=TRANSFORM, **options):
    return decoded_samples(tars.read_tar(path), [transform], path=path, **{"on_bad": "stop", **options})


@pytest.mark.parametrize("decoders", [0, 1, 3])
def test_samples_come_whole_and_in_order_whatever_the_threads(tmp_path, decoders):
    path = write(tmp_path / "00000.tar", {f"{i:05}": good(i) for i in range(40)})
    found = read(path, decoders=decoders)
    assert [item.key for item in found] == [f"{i:05}" for i in range(40)]
    assert [item.caption for item in found] == [f"an image of {i}" for i in range(40)]
    assert [item.uid for item in found] == [uids.uid_of("00000.tar", f"{i:05}") for i in range(40)]
    for i, item in enumerate(found):
        np.testing.assert_array_equal(item.pixels[0], TRANSFORM(jpeg(i)))
        assert (item.tar, item.width, item.height, item.label) == (path, 12, 8, None)


def test_captions_uid_and_label_come_from_where_the_formats_put_them(tmp_path):
    uid = "0123456789ABCDEF" * 2
    several = {"uid": uid, "caption": "one", "captions": ["first", "second"]}
    path = write(
        tmp_path / "a.tar",
        {
            "all": {"png": jpeg(), "txt": b"plain", "json": json.dumps(several).encode(), "cls": b"7\n"},
            "json": {"jpg": jpeg(), "json": json.dumps(several).encode()},
            "list": {"jpg": jpeg(), "json": json.dumps({"captions": ["first", "second"]}).encode()},
        },
    )
    found = read(path)
    assert [item.caption for item in found] == ["plain", "one", "first"]
    assert [item.captions for item in found] == [("first", "second")] * 3
    assert [item.label for item in found] == ["7", None, None]
    assert [item.uid for item in found] == [uid.lower(), uid.lower(), uids.uid_of("a.tar", "list")]


BAD = {
    "no image": ({"txt": b"x"}, "no image among its members (.txt)"),
    "not an image": ({"jpg": b"<html>", "txt": b"x"}, "not an image"),
    "cut image": ({"jpg": jpeg(size=(99, 99))[:900], "txt": b"x"}, "truncated or broken"),
    "no caption": ({"jpg": jpeg()}, "no caption"),
    "empty caption": ({"jpg": jpeg(), "txt": b" \n"}, "its caption is empty"),
    "not UTF-8": ({"jpg": jpeg(), "txt": b"caf\xe9"}, "its .txt is not UTF-8 (byte 3)"),
    "half a surrogate": ({"jpg": jpeg(), "json": b'{"caption": "\\ud83d"}'}, "half of a surrogate pair"),
    "caption no text": ({"jpg": jpeg(), "json": b'{"caption": 3}'}, "a caption in its .json is 3"),
    "captions no list": ({"jpg": jpeg(), "json": b'{"captions": "x"}'}, "expected a list of captions"),
    "no JSON": ({"jpg": jpeg(), "txt": b"x", "json": b"{"}, "its .json is not JSON"),
    "deep JSON": ({"jpg": jpeg(), "txt": b"x", "json": b"[" * 100_000}, "its .json is not JSON"),
    "JSON list": ({"jpg": jpeg(), "txt": b"x", "json": b"[]"}, "its .json holds a list, expected an object"),
    "bad uid": ({"jpg": jpeg(), "txt": b"x", "json": b'{"uid": 1.5}'}, "its uid is 1.5, expected text or an integer"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("decoders", [1, 4])
def test_a_bad_sample_stops_with_its_name_or_is_skipped_with_its_reason(tmp_path, name, decoders):
    sample, reason = BAD[name]
    path = write(tmp_path / "a.tar", {"0": good(), "1": sample, "2": good(2)})
    first, bad, last = read(path, on_bad="skip", decoders=decoders)
    assert (bad.tar, bad.key) == (path, "1")
    assert reason in bad.reason
    assert (first.key, last.key) == ("0", "2")
    found = []
    with pytest.raises(InputError) as caught:
        found.extend(decoded(path, decoders=decoders))
    assert f"{path}: sample '1': " in str(caught.value)
    assert reason in str(caught.value)


def test_captions_are_not_looked_at_unless_needed(tmp_path):
    path = write(tmp_path / "a.tar", {"0": {"jpg": jpeg(), "txt": b"\xff", "cls": b"3"}})
    (item,) = read(path, need_caption=False)
    assert (item.caption, item.captions, item.label) == ("", (), "3")


def test_unwanted_samples_are_not_decoded(tmp_path):
    wanted = uids.uid_of("a.tar", "1")
    path = write(tmp_path / "a.tar", {"0": {"jpg": b"broken"}, "1": good()})
    (item,) = read(path, keep=lambda uid: uid == wanted)
    assert item.uid == wanted


@pytest.mark.parametrize("decoders", [1, 4])
def test_a_cut_tar_stops_after_the_samples_before_the_cut(tmp_path, decoders):
    path = write(tmp_path / "a.tar", {f"{i}": good(i) for i in range(5)})
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: data.index(b"3.txt") + 100])
    found = []
    with pytest.raises(InputError, match=r"a\.tar: damaged or not a tar"):
        found.extend(item.key for item in decoded(path, on_bad="skip", decoders=decoders))
    assert found == ["0", "1", "2"]


def test_reading_ahead_is_bounded_and_threads_end_with_the_reader(tmp_path):
    path = write(tmp_path / "a.tar", {f"{i:03}": good(i) for i in range(100)})
    started = []

    def transform(data):
        started.append(1)
        return TRANSFORM(data)

    reader = decoded(path, transform, decoders=2)
    assert isinstance(next(reader), Decoded)
    time.sleep(0.05)
    assert len(started) <= 10
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_flickr8k_has_five_captions_a_image(shared):
    path = str(shared("data/flickr8k_96px") / "val-00000.tar")
    found = read(path)
    assert len(found) == 1000
    assert not any(isinstance(item, Bad) for item in found)
    assert all(len(item.captions) == 5 and item.caption == item.captions[0].strip() for item in found)


def test_a_uid_is_the_samples_own_or_made_of_the_tars_name_in_the_pool(tmp_path):
    own = {**good(), "json": json.dumps({"uid": "0" * 32}).encode()}
    path = write(tmp_path / "0.tar", {"a": own, "b": good()})
    assert [sample.uid for sample in read(path)] == ["0" * 32, uids.uid_of("0.tar", "b")]
    assert [sample.uid for sample in read(path, name="p/0.tar")] == ["0" * 32, uids.uid_of("p/0.tar", "b")]
