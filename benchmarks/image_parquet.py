"""From parquet files with the images inside to uint8 squares, against tars of the same images.

    python benchmarks/image_parquet.py [--rounds 5] [--images 400] [--threads 0] [--size 224]

One JSON line a figure. Speeds are medians of turns taken in one run: of reading alone, and of reading with decoding,
which bounds `embed` on the host. Memory is the most anonymous memory of a fresh process while a source is read and
decoded, beyond what it held after the first sample: with row groups of 100 rows, as `datasets` writes images, and with
one row group for all.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _timing import alternate, anonymous_memory, median_ratio, peak_memory, report
from host_pipeline import photograph

from clipdata_jax.embedding.samples import decoded_samples
from clipdata_jax.formats import tars
from clipdata_jax.formats.sources import discovery
from clipdata_jax.formats.sources.source import FirstSamples, Source
from clipdata_jax.models import ImageTransform

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
GROUPS = {"parquet": 100, "parquet, one row group": 1 << 20}


def make_sources(folder: Path, images: int) -> dict[str, Source]:
    """The same images as a tar and as parquet files."""
    rng = np.random.default_rng(0)
    drawn = [photograph(rng, 500, 375) for _ in range(min(images, 50))]
    data = [drawn[i % len(drawn)] for i in range(images)]
    captions = [f"photograph {i}" for i in range(images)]
    members = [(f"{i:06}.{e}", d) for i in range(images) for e, d in (("jpg", data[i]), ("txt", captions[i].encode()))]
    tars.write_tar(str(folder / "tar.tar"), members)
    records = pa.array([{"bytes": one, "path": f"{i}.jpg"} for i, one in enumerate(data)], STRUCT)
    for name, rows in GROUPS.items():
        pq.write_table(
            pa.table({"image": records, "caption": captions}), folder / f"{name}.parquet", row_group_size=rows
        )
    paths = {"tar": "tar.tar", **{name: f"{name}.parquet" for name in GROUPS}}
    found = {name: discovery.find_sources([str(folder / path)], images_only=False) for name, path in paths.items()}
    return {name: next(iter(sources.units.values())) for name, sources in found.items()}


def read(source: Source) -> int:
    """Reads all samples; the number of their bytes."""
    return sum(len(sample.image() or b"") for sample in source.samples())


def decode(source: Source, transform: ImageTransform, threads: int) -> int:
    """Reads and decodes all samples; the sum of some pixels, which must not depend on the source."""
    samples = decoded_samples(source.samples(), [transform], path=source.path, on_bad="stop", decoders=threads)
    return sum(int(sample.pixels[0][0, 0].sum()) for sample in samples)  # type: ignore[union-attr]


def memory(source: Source, size: int, threads: int) -> int:
    """The anonymous memory that reading and decoding a source takes at most, beyond a few samples of it, in bytes."""
    transform = ImageTransform(size=size)
    decode(FirstSamples(source, 1), transform, threads)
    before = anonymous_memory()
    return peak_memory(functools.partial(decode, source, transform, threads)) - before


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 5), ("images", 400), ("threads", 0), ("size", 224)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    transform = ImageTransform(size=options.size)
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(Path(folder), options.images)
        if len({decode(source, transform, options.threads) for source in sources.values()}) > 1:
            raise SystemExit("the sources give other pixels")
        for figure, work in (
            ("reading", read),
            ("reading and decoding", functools.partial(decode, transform=transform, threads=options.threads)),
        ):
            seconds = alternate({name: functools.partial(work, one) for name, one in sources.items()}, options.rounds)
            for name, taken in seconds.items():
                speed = options.images / float(np.median(taken))
                report(f"{figure}, {name}", images_per_s=speed, speed_to_tar=1 / median_ratio(seconds, name, "tar"))
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawned, max_tasks_per_child=1) as fresh:
            for name, source in sources.items():
                report(f"memory, {name}", mb=fresh.submit(memory, source, options.size, options.threads).result() / 1e6)


if __name__ == "__main__":
    main()
