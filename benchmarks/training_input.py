"""Batches of `clipdata train` against the decoding that they can't do without, and the memory that they take.

    python benchmarks/training_input.py [--sizes 224 64] [--workers 2] [--rounds 5] [--pairs 1280]

One JSON line a figure. The decode limit is what the same number of processes does that only read, decode, crop and
scale the same images by Pillow, and give back nothing; the two take turns, and the ratio is the median of the turns'.
On a busy machine the processor's time says more: of a worker against plain decoding, chunk by chunk in turns, and of
the main process beside it. Memory is what no file backs, of this process and its workers, the most in a pass over small
images.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from _timing import anonymous_memory, peak_memory, report
from host_pipeline import SIDES, photograph
from PIL import Image

from clipdata_jax.formats import tars
from clipdata_jax.formats.sources import discovery
from clipdata_jax.runtime.worker_pool import SpawnPool
from clipdata_jax.training import InputPipeline, PairIndex, build_index
from clipdata_jax.training.batch_workers import BatchWorker, Chunk
from clipdata_jax.training.crops import crop_box
from clipdata_jax.training.decoding import PairDecoder

BATCH, CHUNK = 128, 32
IMAGES = 100  # different ones


def write_pool(folder: Path, pairs: int, divisor: int = 1) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    sides = [(width // divisor, height // divisor) for width, height in SIDES]
    images = [photograph(rng, *sides[i % len(sides)]) for i in range(IMAGES)]
    for start in range(0, pairs, 1000):
        members = []
        for i in range(start, min(start + 1000, pairs)):
            members += [(f"{i:08}.jpg", images[i % IMAGES]), (f"{i:08}.txt", f"a photo of thing {i}".encode())]
        tars.write_tar(str(folder / f"{start // 1000:05}.tar"), members)


def index_of(pool: Path, folder: Path) -> PairIndex:
    found = discovery.find_sources([str(pool)], images_only=False)
    return build_index(list(found.units.values()), names=found.names, folder=str(folder), on_bad="stop")


def no_tokens(captions: list[str]) -> np.ndarray:
    return np.zeros((len(captions), 77), np.int32)


def decode_only(paths: list[str], pairs: list[tuple[int, int, int]], size: int) -> float:
    """Reads, decodes, crops and scales by Pillow alone; gives back the processor's seconds."""
    begun = time.process_time()
    pixels = np.empty((len(pairs), size, size, 3), np.uint8)
    uniforms = np.full((10, 4), 0.5)
    for i, (tar, start, length) in enumerate(pairs):
        with open(paths[tar], "rb") as file:
            file.seek(start)
            with Image.open(io.BytesIO(file.read(length))) as opened:
                box = crop_box(*opened.size, uniforms, min_area=0.9)
                image = opened.convert("RGB").crop(box).resize((size, size), Image.Resampling.BICUBIC)
        pixels[i] = np.asarray(image)
    return time.process_time() - begun


def places(index: PairIndex, numbers: np.ndarray) -> list[tuple[int, int, int]]:
    """Tar, offset and length of some pairs' images."""
    rows = index.files.rows()[numbers]
    return list(zip(*(rows[name].tolist() for name in ("source", "image", "image_size")), strict=True))


def limit_rate(index: PairIndex, size: int, workers: int, pairs: int) -> float:
    """Images/s of processes that only decode."""
    import training_input

    pool, ends = SpawnPool(workers), []
    starts = range(0, pairs, CHUNK)
    tasks = [
        pool.submit(
            training_input.decode_only,
            list(index.files.paths),
            places(index, np.arange(start, start + CHUNK) * 7 % len(index)),
            size,
        )
        for start in starts
    ]
    for task in tasks:
        task.result()
        ends.append(time.perf_counter())
    pool.shutdown()
    first, last = 2 * workers, len(ends) - 2 * workers
    return (last - first) * CHUNK / (ends[last] - ends[first])


def input_rate(index: PairIndex, size: int, workers: int, pairs: int) -> tuple[float, float]:
    """Images/s of the batches while others were still begun, and this process's processor seconds an image."""
    import training_input  # the workers can't import this program by its name

    options = {"batch_size": BATCH, "image_size": size, "seed": 0, "workers": workers, "steps": pairs // BATCH}
    with InputPipeline([index], training_input.no_tokens, **options) as pipeline:
        begun = time.process_time()
        ends = [time.perf_counter() for _ in pipeline]
        used = time.process_time() - begun
    last = len(ends) - 1 - pipeline.ahead
    return last * BATCH / (ends[last] - ends[0]), used / len(ends) / BATCH


def chunk_seconds(index: PairIndex, size: int, chunks: int) -> tuple[list[float], list[float]]:
    """Processor seconds an image of plain decoding and of a worker, chunks taking turns."""
    pixels = np.empty((1, CHUNK, size, size, 3), np.uint8)
    worker = BatchWorker([index.files], PairDecoder(no_tokens, image_size=size, seed=0, min_crop=0.9), pixels)
    plain, filled = [], []
    for i in range(chunks):
        rows = np.arange(i * CHUNK, (i + 1) * CHUNK) % len(index)
        for turn in (i, i + 1):
            if turn % 2:
                plain.append(decode_only(list(index.files.paths), places(index, rows), size) / CHUNK)
            else:
                zeros = np.zeros(CHUNK, np.int64)
                begun = time.process_time()
                worker.fill(Chunk(0, 0, zeros, rows, zeros, {}))
                filled.append((time.process_time() - begun) / CHUNK)
    return plain, filled


def tree_memory() -> int:
    """Anonymous bytes of this process and its children."""
    total = anonymous_memory()
    for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        total += anonymous_memory(child)
    return total


def memory(index: PairIndex, size: int, workers: int) -> int:
    """The most anonymous bytes while a pass over the pool goes on, at 64 pixels a side to be done soon."""
    import training_input

    options = {"batch_size": BATCH, "image_size": size, "seed": 0, "workers": workers}

    def read_all() -> None:
        with InputPipeline([index], training_input.no_tokens, steps=len(index) // BATCH, **options) as pipeline:
            for _ in pipeline:
                pass

    return peak_memory(read_all, tree_memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 64])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=1280)
    parser.add_argument("--memory-pairs", type=int, nargs="*", default=[2_000, 20_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        write_pool(at / "pool", 2_000)
        index = index_of(at / "pool", at / "index")
        for size in options.sizes:
            limits, rates, here = [], [], []
            for _ in range(options.rounds):
                limits.append(limit_rate(index, size, options.workers, options.pairs))
                rate, used = input_rate(index, size, options.workers, options.pairs)
                rates.append(rate)
                here.append(used)
            report(
                "images/s",
                size=size,
                workers=options.workers,
                limit=statistics.median(limits),
                input=statistics.median(rates),
                ratio=statistics.median(rate / limit for rate, limit in zip(rates, limits, strict=True)),
            )
            plain, filled = chunk_seconds(index, size, 10 * options.rounds)
            main_process = statistics.median(here)
            report(
                "processor ms an image",
                size=size,
                plain=1000 * statistics.median(plain),
                worker=1000 * statistics.median(filled),
                main_process=1000 * main_process,
                ratio=statistics.median(one / (other + main_process) for one, other in zip(plain, filled, strict=True)),
            )
        for pairs in options.memory_pairs:
            write_pool(at / f"pool{pairs}", pairs, divisor=5)
            begun = time.perf_counter()
            large = index_of(at / f"pool{pairs}", at / f"index{pairs}")
            seconds = time.perf_counter() - begun
            most = memory(large, 64, options.workers)
            report("memory", pairs=pairs, anonymous_bytes=most, index_seconds=seconds)


if __name__ == "__main__":
    main()
