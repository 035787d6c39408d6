"""Sources as `embed` finds them, and their samples."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from clipdata_jax.config import Reading
from clipdata_jax.formats import tars
from clipdata_jax.formats.sources import discovery


def png(shade: int = 0) -> bytes:
    """A small image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (shade, 1, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def find(*patterns: str | Path, images_only: bool = False, **columns: str) -> discovery.Sources:
    """The sources that patterns name."""
    return discovery.find_sources([str(one) for one in patterns], images_only=images_only, reading=Reading(**columns))


def read(found: discovery.Sources) -> list[tars.RawSample]:
    """All samples of the sources, in order."""
    return [sample for source in found.units.values() for sample in source.samples()]
