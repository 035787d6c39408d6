"""Small images, and tars of them with captions."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from support.checkpoints import CAPTIONS

from clipdata_jax.formats import tars


def jpeg(seed: int, size: tuple[int, int] = (50, 40), mode: str = "RGB") -> bytes:
    """An image of noise."""
    buffer = io.BytesIO()
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    Image.frombytes(mode, size, pixels.tobytes()).save(buffer, "JPEG")
    return buffer.getvalue()


def write_pairs(path: Path, seeds: Iterable[int], **extra: bytes) -> None:
    """A tar of numbered images and captions, and of more members; "__" in their names stands for a dot."""
    members = []
    for seed in seeds:
        members += [(f"{seed:05}.jpg", jpeg(seed)), (f"{seed:05}.txt", CAPTIONS[seed % 3].encode())]
    tars.write_tar(str(path), [*members, *((name.replace("__", "."), data) for name, data in extra.items())])
