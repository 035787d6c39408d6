"""`clipdata score` end to end against its kernel alone, and its memory against the pool's size.

    python benchmarks/score.py [--pairs 2000000 500000] [--dim 512] [--batch-size 2048] [--group 4] [--pool FOLDER]

One JSON line a figure. The command runs in a process of its own, which is halted every 15 seconds while this one
times the same groups' kernel on arrays in memory: a machine's speed wanders, and only turns can be compared. 2 M pairs
take 4 GB on disk and some five minutes on 2 cores; Linux.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _timing import PRODUCT_GFLOP, anonymous_memory, plain_product, report, unit_rows

from clipdata_jax.formats import uids
from clipdata_jax.runtime import parallel
from clipdata_jax.scoring import group_scores, groups

_SHARD, _TEMPERATURE, _REPEATS = 100_000, 0.01, 10
_EVERY, _GROUPS = 15.0, 3  # seconds of the command between turns of the kernel; groups that a turn takes


def make_pool(folder: Path, pairs: int, dim: int) -> None:
    """Shards of 100,000 pairs; each is the first with its dimensions in another order: as random, and fast to make."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    images = unit_rows(0, min(pairs, _SHARD), dim)
    texts = unit_rows(1, len(images), dim, noise_of=images).astype(np.float16)
    images = images.astype(np.float16)
    for index, start in enumerate(range(0, pairs, _SHARD)):
        rows, order = min(_SHARD, pairs - start), random.permutation(dim)
        uid = np.empty(rows, uids.DTYPE)
        uid["f0"], uid["f1"] = random.integers(0, 2**64, (2, rows), np.uint64)
        pq.write_table(pa.table({"uid": uids.to_hex(uid)}), folder / f"{index:08d}.parquet")
        np.savez(folder / f"{index:08d}.npz", l14_img=images[:rows, order], l14_txt=texts[:rows, order])


class Kernel:
    """The command's groups on arrays that are on the device already."""

    def __init__(self, pool: Path, batch_size: int, group: int) -> None:
        with np.load(pool / "00000000.npz") as file:
            images, texts = file["l14_img"], file["l14_txt"]
        planned = groups.plan_groups(len(images), batch_sizes=(batch_size,), group=group)
        self.groups_a_shard = len(planned)
        mesh = parallel.local_mesh()
        pairs = group_scores.Pairs(images, texts, np.ones(len(images), bool))
        self._calls: list[Callable[[], Any]] = []
        for one in planned[:_GROUPS]:
            rows = np.arange(one.start, one.start + one.rows)
            cell, within = np.divmod(np.arange(one.rows), one.slots)
            dealt = groups.deal_cells(one, repeats=_REPEATS, seed=0, name=one.start)
            job = group_scores.Job(rows, cell * one.slots + within, one.cells * one.slots, dealt)
            placed = jax.block_until_ready(group_scores._place([job], pairs, mesh))
            temperature = np.asarray([_TEMPERATURE], np.float32)
            self._calls.append(functools.partial(group_scores.program(mesh), *placed, temperature))
        self.turn()

    def turn(self) -> list[float]:
        """Seconds of each group."""
        seconds = []
        for call in self._calls:
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - start)
        return seconds


def run_in_turns(command: list[str], turn: Callable[[], list[float]]) -> tuple[float, int, list[float]]:
    """Seconds that a command takes, its peak of anonymous memory, and the kernel's seconds a group in between."""
    seconds, halted, most = turn(), 0.0, 0
    start = last = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.02)
        most = max(most, anonymous_memory(process.pid))
        if time.perf_counter() - last > _EVERY:
            begin = time.perf_counter()
            process.send_signal(signal.SIGSTOP)
            seconds += turn()
            process.send_signal(signal.SIGCONT)
            last = time.perf_counter()
            halted += last - begin
    took = time.perf_counter() - start - halted
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return took, most, seconds + turn()


def measure(pairs: int, options: argparse.Namespace, folder: Path) -> int:
    """Scores a pool; reports times, and returns the peak of memory."""
    pool = (Path(options.pool) if options.pool else folder) / str(pairs)
    if not pool.exists():
        make_pool(pool, pairs, options.dim)
    kernel = Kernel(pool, options.batch_size, options.group)
    out = folder / f"scores{pairs}"
    sizes = ["--batch-size", str(options.batch_size), "--group", str(options.group)]
    command = ["score", str(pool), "--out", str(out), "--temperature", str(_TEMPERATURE), *sizes]
    took, most, seconds = run_in_turns([sys.executable, "-m", "clipdata_jax", *command], kernel.turn)
    alone = statistics.mean(seconds) * kernel.groups_a_shard * pairs / min(pairs, _SHARD)
    report(
        "score",
        pairs=pairs,
        seconds=took,
        kernel_seconds=alone,
        ratio=took / alone,
        pairs_per_second=pairs / took,
        kernel_turns=len(seconds) // _GROUPS,
        anonymous_megabytes=most / 1e6,
    )
    lines = [json.loads(line) for line in (out / "_run.jsonl").read_text().splitlines()]
    keys = sorted({key for line in lines for key in line if key.endswith("_seconds")})
    report("units of it", **{key: sum(line.get(key, 0.0) for line in lines) for key in keys})
    shutil.rmtree(out)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2_000_000, 500_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2_048)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--pool", help="where pools are made, and kept for the next time")
    options = parser.parse_args()
    product = plain_product()
    jax.block_until_ready(product())
    start = time.perf_counter()
    jax.block_until_ready([product() for _ in range(5)])
    report("plain product", gflop_per_second=5 * PRODUCT_GFLOP / (time.perf_counter() - start))
    with tempfile.TemporaryDirectory(prefix="score-") as folder:
        peaks = [measure(pairs, options, Path(folder)) for pairs in options.pairs]
    if len(peaks) > 1:
        report("memory between the pools", megabytes=(max(peaks) - min(peaks)) / 1e6)


if __name__ == "__main__":
    main()
