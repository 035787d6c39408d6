"""From a tar of photographs to uint8 squares, against the same images made plainly with Pillow and NumPy.

    python benchmarks/host_pipeline.py [--rounds 5] [--images 200] [--size 224] [--tar photographs.tar]

One JSON line a figure, medians of turns taken in one run, each on one core (`os.sched_setaffinity`, Linux) and
by that core's own clock, so that what else runs on the machine counts little; two threads by the wall's. The floor
is Pillow's decoding of the same JPEGs: what makes these very pixels with Pillow can't be faster. Two plain forms
of open_clip's transform: one as NumPy is first written, one that normalises in place. Stops if a pixel differs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _timing import alternate, median_ratio, report
from PIL import Image

from clipdata_jax.formats import tars
from clipdata_jax.models import ImageTransform, open_image
from clipdata_jax.models.clip_config import OPENAI_MEAN, OPENAI_STD

SIDES = ((500, 375), (375, 500), (500, 333), (500, 500))
MEAN, STD = np.float32(OPENAI_MEAN), np.float32(OPENAI_STD)


def photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG with detail on every scale, of about the size of a real one."""
    pixels, strength, cells = np.full((height, width, 3), 120.0, np.float32), 64.0, 4
    while cells <= 512:
        rough = rng.standard_normal((4, 2 + height * cells // 512, 2 + width * cells // 512)).astype(np.float32)
        light, *tints = (np.asarray(Image.fromarray(grid).resize((width, height))) for grid in rough)
        pixels += strength * (0.85 * light[..., None] + 0.3 * np.stack(tints, axis=-1))
        strength, cells = 0.78 * strength, 2 * cells
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=88)
    return stream.getvalue()


def plain_square(data: bytes, size: int) -> Image.Image:
    """open_clip's steps, as its documentation lists them."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = size / min(image.size)
    width, height = (size if side == min(image.size) else int(scale * side) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def normalised(pixels: np.ndarray) -> np.ndarray:
    """As first written: (pixels / 255 - mean) / std, channels first."""
    return np.ascontiguousarray(((np.asarray(pixels, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1))


def normalised_in_place(pixels: np.ndarray) -> np.ndarray:
    """The same numbers with one float array, channels first from the start."""
    values = np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1)).astype(np.float32)
    values /= 255
    values -= MEAN[:, None, None]
    values /= STD[:, None, None]
    return values


def over_tar(path: str, work: Callable[[bytes], Any], threads: int) -> Callable[[], int]:
    """Does the work for each image of the tar on that many threads and as many cores; gives their number."""
    cores = sorted(os.sched_getaffinity(0))

    def call() -> int:
        os.sched_setaffinity(0, cores[:threads])  # threads started below inherit it
        try:
            images = [data for sample in tars.read_tar(path) if (data := sample.image()) is not None]
            if threads == 1:
                return sum(work(data) is not None for data in images)
            with ThreadPoolExecutor(threads) as pool:
                return sum(result is not None for result in pool.map(work, images))
        finally:
            os.sched_setaffinity(0, cores)

    return call


def on_core_clock(call: Callable[[], Any], seconds: list[float]) -> Callable[[], None]:
    """The call, noting the processor's time that it takes."""

    def noting() -> None:
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)

    return noting


def check_pixels(path: str, transform: ImageTransform) -> None:
    for sample in tars.read_tar(path):
        data = sample.image() or b""
        theirs = plain_square(data, transform.size)
        for form in (normalised, normalised_in_place):
            if not np.array_equal(form(transform(data)), form(theirs)):
                raise SystemExit(f"{path}: sample {sample.key!r}: the pixels differ from the plain form's")


def works_on_a_image(transform: ImageTransform) -> dict[str, Callable[[bytes], Any]]:
    return {
        # Without Python's lock all the while: how many cores the machine really has free.
        "hashing": lambda data: hashlib.sha256(data * 32).digest(),
        "decode": lambda data: open_image(data).load(),
        "ours": transform,
        "plain": lambda data: normalised(plain_square(data, transform.size)),
        "plain, in place": lambda data: normalised_in_place(plain_square(data, transform.size)),
    }


def measure(path: str, size: int, rounds: int, what: str) -> None:
    transform = ImageTransform(size=size, convention="open_clip")
    check_pixels(path, transform)
    works = works_on_a_image(transform)
    core_seconds: dict[str, list[float]] = {name: [] for name in works}
    calls: dict[str, Callable[[], Any]] = {
        name: on_core_clock(over_tar(path, work, 1), core_seconds[name]) for name, work in works.items()
    }
    twice = ("hashing", "decode", "ours") if len(os.sched_getaffinity(0)) > 1 else ()
    calls |= {f"{name}, 2 threads": over_tar(path, works[name], 2) for name in twice}
    sizes = [len(sample.image() or b"") for sample in tars.read_tar(path)]
    report("images", source=what, number=len(sizes), median_kb=statistics.median(sizes) / 1024)
    wall = alternate(calls, rounds)
    core = {name: seconds[1:] for name, seconds in core_seconds.items()}  # without the turn that warms up
    rates = {name: len(sizes) / statistics.median(seconds) for name, seconds in (wall | core).items()}
    report("JPEG decoding alone, the floor", source=what, images_per_second=rates["decode"])
    ratio = median_ratio(core, "ours", "decode")
    report("tar to uint8", source=what, images_per_second=rates["ours"], times_decoding=ratio)
    for name in ("plain", "plain, in place"):
        ratio = median_ratio(core, name, "ours")
        report(name, source=what, images_per_second=rates[name], speed_of_ours_to_it=ratio)
    for name in twice:
        both, ratio = f"{name}, 2 threads", median_ratio(wall, name, f"{name}, 2 threads")
        report(f"{both} on 2 cores", source=what, images_per_second=rates[both], speed_to_one=ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--tar", help="a webdataset tar of photographs to measure as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rng, path = np.random.default_rng(0), str(Path(folder) / "made.tar")
        made = (photograph(rng, *SIDES[i % len(SIDES)]) for i in range(options.images))
        tars.write_tar(path, ((f"{i:06d}.jpg", data) for i, data in enumerate(made)))
        measure(path, options.size, options.rounds, "made")
    if options.tar:
        measure(options.tar, options.size, options.rounds, Path(options.tar).name)


if __name__ == "__main__":
    main()
