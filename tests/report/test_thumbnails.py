import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clipdata_jax.models import image_transform
from clipdata_jax.report import thumbnails


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("PNG", mode) for mode in ("RGB", "L", "RGBA", "LA", "P", "1", "I;16")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    ],
)
def test_images_of_every_kind_become_small_jpegs(kind, mode):
    found = thumbnails.make(encode(Image.new("RGB", (400, 200), (200, 30, 30)).convert(mode), kind))
    assert isinstance(found, thumbnails.Thumbnail)
    small = decode(found.uri)
    assert small.mode == "RGB"
    assert small.size == (found.width, found.height) == (320, 160)


def test_transparency_is_shown_on_white():
    found = thumbnails.make(encode(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"))
    assert decode(found.uri).getpixel((10, 10)) == (255, 255, 255)


def test_a_small_image_stays_its_size():
    assert thumbnails.make(encode(Image.new("RGB", (7, 5)), "PNG")).width == 7


def test_nothing_but_pixels_is_carried_over():
    secret = b"SECRET-" * 40
    image = Image.new("RGB", (300, 300))
    exif = image.getexif()
    exif[0x010E] = secret.decode()
    data = encode(image, "JPEG", exif=exif, icc_profile=secret, comment=secret)
    assert secret in data
    assert secret not in base64.b64decode(thumbnails.make(data).uri.partition(",")[2])


def test_noise_is_bounded():
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    assert len(thumbnails.make(encode(Image.fromarray(noise), "PNG")).uri) < 32_100


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_001, 10_000, 60_000])
def test_huge_images_are_not_decoded(side):
    assert thumbnails.make(header_of(side, side)) in ("image too large", "image unreadable")
    assert thumbnails.make(header_of(9_000, 9_000)) == "image too large"


def test_damaged_files_are_unreadable():
    whole = encode(Image.effect_noise((64, 64), 60).convert("RGB"), "JPEG")
    assert thumbnails.make(whole[: len(whole) // 2]) == "image unreadable"
    for data in (b"", b"not an image", whole[:20], encode(Image.new("RGB", (9, 9)), "PPM"), header_of(9, 9)):
        assert thumbnails.make(data) == "image unreadable"
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        good = np.frombuffer(encode(Image.effect_noise((64, 64), 60).convert("RGB"), kind), np.uint8)
        for _ in range(60):
            bad = good.copy()
            bad[random.integers(0, len(bad), 20)] = random.integers(0, 256, 20)
            assert isinstance(thumbnails.make(bad.tobytes()), (str, thumbnails.Thumbnail))


def test_what_can_be_embedded_can_be_shown():
    assert set(thumbnails._FORMATS) == set(image_transform._FORMATS)
    for kind in thumbnails._FORMATS:
        buffer = io.BytesIO()
        Image.new("RGB", (300, 200), "red").save(buffer, kind)
        assert isinstance(thumbnails.make(buffer.getvalue()), thumbnails.Thumbnail)
