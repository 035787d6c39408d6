"""`clipdata reshard` against plain copying of exactly the bytes that it keeps.

    python benchmarks/reshard.py [--rounds 5] [--tars 16] [--samples 10000] [--kilobytes 35] [--processes N]
        [--shares 0.3 1.0] [--kept-gigabytes N]

Tars as DataComp's downloads have them: 10,000 samples each; an image's bytes (--kilobytes), a caption, a json with
uid, url and sizes, each with an extended header, as webdataset's writer makes them. One JSON line a figure, medians
of turns taken in one run, all tars in the page cache. Two peers copy the kept runs of bytes, known beforehand, to one
file a tar: one thread, and one a core. Both sides write alike, through `files.open_write`, and end with the files on
the disk (fsync); `reshard` finds out what to keep, and writes receipts and manifest besides. Its processes, one a core
unless --processes says otherwise, begin at each turn, which counts.

What was written is kept, up to --kept-gigabytes of disk (by default as much as the machine has memory), and turns
begin when the page cache is full, as it is on a machine that works. Were it removed at once, a virtual machine would
give the memory back to its host: who takes longer gets less of it again, and taking it anew costs more than the copy.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import shutil
import statistics
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from clipdata_jax import config, storage
from clipdata_jax.commands import reshard
from clipdata_jax.formats import tar_index, tars, uids
from clipdata_jax.formats.copying import tar_copy
from clipdata_jax.formats.tar_index import open_tar
from clipdata_jax.runtime import threads


def members(number: int, samples: int, kilobytes: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(number)
    noise = rng.bytes(2048 * kilobytes)
    for i in range(samples):
        key = f"{number:05d}{i:05d}"
        size, start = rng.integers(512 * kilobytes, 1536 * kilobytes), rng.integers(0, 512 * kilobytes)
        fields = {
            "uid": rng.bytes(16).hex(),
            "url": f"https://images.example/{rng.bytes(24).hex()}.jpg",
            "caption": f"image {i} of tar {number}",
            "width": 500,
            "height": 375,
            "original_width": 1000,
            "original_height": 750,
            "key": key,
            "status": "success",
            "error_message": None,
            "exif": "{}",
        }
        yield f"{key}.jpg", noise[start : start + size]
        yield f"{key}.txt", fields["caption"].encode()
        yield f"{key}.json", json.dumps(fields).encode()


def write_tar(path: str, of: Iterable[tuple[str, bytes]]) -> None:
    """As webdataset writes: the time of a member is a fraction, for which it has an extended header."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, (name, data) in enumerate(of):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.7e9 + i / 7
            tar.addfile(info, io.BytesIO(data))


def make_pool(folder: Path, options: argparse.Namespace) -> tuple[list[str], np.ndarray]:
    """The tars, and the uids of all samples."""
    paths, found = [], []
    for number in range(options.tars):
        path = str(folder / "pool" / f"{number:05d}.tar")
        write_tar(path, members(number, options.samples, options.kilobytes))
        paths.append(path)
        found += [json.loads(sample.members["json"])["uid"] for sample in tars.read_tar(path)]
    return paths, uids.from_hex(found)


def kept_runs(path: str, subset: np.ndarray) -> list[tuple[int, int]]:
    """Where the kept samples of a tar lie, neighbours joined."""
    runs: list[tuple[int, int]] = []
    texts = [json.loads(sample.members["json"])["uid"] for sample in tars.read_tar(path)]
    with open_tar(path) as tar:
        index = tar_index.index_tar(tar)
    for i in np.flatnonzero(uids.find(subset, uids.from_hex(texts)) >= 0).tolist():
        first, *_, last = index.sample(i).members
        start, end = index.starts[first], index.data[last] + -(-index.sizes[last] // 512) * 512
        if runs and runs[-1][1] == start:
            start = runs.pop()[0]
        runs.append((start, end))
    return runs


def copy_runs(path: str, runs: Iterable[tuple[int, int]], out: str) -> None:
    with open_tar(path) as tar, storage.open_write(out) as target:
        room = tar_copy.CopyBuffer(target)
        for start, end in runs:
            room.copy(tar, start, end)
        room.flush()


class Kept:
    """Folders to write to, each new; the oldest goes when all hold more than so many bytes, which fill the page cache.

    Attributes:
      folder: in which they are.
      most: bytes.
      each: bytes that is written to each.
    """

    def __init__(self, folder: Path, most: float, each: int) -> None:
        self.folder, self.most, self.each = folder, most, each
        self._there: collections.deque[Path] = collections.deque()
        self._number = 0

    def full(self) -> bool:
        return self.each * (len(self._there) + 1) > self.most

    def next(self) -> Path:
        while self._there and self.full():
            shutil.rmtree(self._there.popleft())
        self._number += 1
        self._there.append(self.folder / str(self._number))
        return self._there[-1]


def measure(folder: Path, paths: list[str], subset: np.ndarray, share: float, options: argparse.Namespace) -> None:
    chosen = str(folder / "subset.npy")
    uids.write_subset(chosen, subset)
    runs = {path: kept_runs(path, subset) for path in paths}
    size = sum(end - start for of_tar in runs.values() for start, end in of_tar)
    kept = Kept(folder / "kept", options.kept_gigabytes * 1e9, size)

    def copy(count: int) -> None:
        out = kept.next()
        names = {path: str(out / Path(path).name) for path in paths}
        list(threads.prefetch(lambda path: copy_runs(path, runs[path], names[path]), paths, threads=count))

    def ours() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            reshard.run(
                config.Reshard(sources=tuple(paths), subset=chosen, out=str(kept.next()), processes=options.processes)
            )

    # Here, since it loads jax, which reshard does without.
    from _timing import alternate, median_ratio, report

    while not kept.full():
        copy(0)
    calls = {"copying": lambda: copy(1), "copying in threads": lambda: copy(0), "reshard": ours}
    seconds = alternate(calls, options.rounds)
    shutil.rmtree(kept.folder)
    report("kept", share=share, megabytes=size / 1e6, runs=sum(map(len, runs.values())))
    for name in seconds:
        took = statistics.median(seconds[name])
        report(name, share=share, seconds=took, megabytes_per_second=size / 1e6 / took)
    for name in ("copying", "copying in threads"):
        report(f"speed of reshard to {name}", share=share, ratio=median_ratio(seconds, name, "reshard"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tars", type=int, default=16)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--kilobytes", type=int, default=35)
    parser.add_argument("--processes", type=int, help="default: one a core")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 1.0], help="of the samples to keep")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    parser.add_argument("--kept-gigabytes", type=float, default=memory, help="default: all memory, %(default).0f")
    parser.add_argument("--folder", help="where to make the tars; default: the folder for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        paths, pool = make_pool(folder, options)
        for share in options.shares:
            chosen = np.random.default_rng(0).random(len(pool)) < share
            measure(folder, paths, uids.sort_unique(pool[chosen]), share, options)


if __name__ == "__main__":
    main()
