"""NormSim_2-D out of core: its time per step beside that of the products it needs, and its memory.

    python benchmarks/norm_sim_d.py [--rows 1000000] [--dim 512] [--steps 50] [--fraction 0.2] [--folder DIR]

Makes a pool of metadata shards (kept in --folder for another time) and runs the real command on it. One JSON line a
figure; a step's time stands over that of plain products of 2 n d^2 operations for the n rows that it scored, which
run in turn with the steps. The memory is the most anonymous memory of this process, jax and all included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _timing import peak_memory, report, unit_rows

from clipdata_jax import config
from clipdata_jax.commands import norm_sim_d
from clipdata_jax.scoring import norm_sim_d_steps

_SHARD = 50_000
_BLOCK = 8_192


def make_pool(folder: Path, rows: int, dim: int) -> None:
    """Shards of random images that lie mostly along some directions; captions are of no use here."""
    folder.mkdir(parents=True, exist_ok=True)
    scale = np.geomspace(4, 0.25, dim, dtype=np.float32)
    for index, start in enumerate(range(0, rows, _SHARD)):
        path = folder / f"{index:08d}.npz"
        if path.exists():
            continue
        count = min(_SHARD, rows - start)
        emb = unit_rows(index, count, dim) * scale
        emb = (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float16)
        uid = [f"{number:032x}" for number in range(start, start + count)]
        pq.write_table(pa.table({"uid": uid}), path.with_suffix(".parquet"))
        np.savez(path, b32_img=emb, b32_txt=emb[:0])


class Timed:
    """`take_step` that also times itself, and after each step the plain product of as many rows with S."""

    def __init__(self, dim: int) -> None:
        self._step = norm_sim_d.take_step
        self._rows = jnp.asarray(unit_rows(0, _BLOCK, dim))
        self._square = jnp.asarray(unit_rows(1, dim, dim))
        self._product = jax.jit(lambda f, s: jnp.einsum("bd,de->be", f, s, precision="highest"))
        jax.block_until_ready(self._product(self._rows, self._square))
        self.steps: list[float] = []
        self.products: list[float] = []

    def __call__(self, rows: Any, state: Any, **options: Any) -> Any:
        start = time.perf_counter()
        after = self._step(rows, state, **options)
        middle = time.perf_counter()
        for _ in range(0, state.trace[-1]["rows"], _BLOCK):
            done = self._product(self._rows, self._square)
        jax.block_until_ready(done)
        self.steps.append(middle - start)
        self.products.append(time.perf_counter() - middle)
        return after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--fraction", type=float, default=0.2)
    parser.add_argument("--folder", type=Path, help="where the pool is made and kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        make_pool(folder / f"pool-{options.rows}-{options.dim}", options.rows, options.dim)
        measure(options, folder / f"pool-{options.rows}-{options.dim}", Path(temporary) / "subset.npy")


def measure(options: argparse.Namespace, pool: Path, out: Path) -> None:
    timed = norm_sim_d.take_step = Timed(options.dim)
    chosen = config.NormSimD(pool=str(pool), out=str(out), fraction=options.fraction, steps=options.steps, tag="b32")
    start = time.perf_counter()
    memory = peak_memory(lambda: norm_sim_d.run(chosen))
    total = time.perf_counter() - start - sum(timed.products)
    operations = 2 * options.dim**2 * sum(norm_sim_d_steps.rows_scored(*_counts(options)))
    ratios = [step / product for step, product in zip(timed.steps, timed.products, strict=True)]
    report("plain products", gflop_per_second=operations / sum(timed.products) / 1e9)
    report("whole run", rows=options.rows, steps=len(ratios), seconds=total)
    report("a step", seconds=statistics.median(timed.steps))
    report("a step's time over the products'", median=statistics.median(ratios), worst=max(ratios))
    report("all steps' time over the products'", ratio=sum(timed.steps) / sum(timed.products))
    report("memory", anonymous_megabytes=memory / 1e6)


def _counts(options: argparse.Namespace) -> tuple[int, int, int]:
    keep = int(options.fraction * options.rows)
    return options.rows, keep, -(-(options.rows - keep) // options.steps)


if __name__ == "__main__":
    main()
