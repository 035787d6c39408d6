"""What grows with the number of shards and units: planning, receipts, the manifest, selection, verification.

    python benchmarks/scale.py [--shards 10000] [--rounds 3] [--folder made]

Makes a pool of so many tiny shards, each a unit, the receipts of a whole run, and its score table; one JSON line a
figure, the median of some rounds, per shard too. The files are in the page cache of a local disk; on an object store
every listing is a request a thousand names, and every file that is opened another.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _timing import report

from clipdata_jax import config, storage
from clipdata_jax.commands import score, select, verify
from clipdata_jax.formats import embedding_shards, score_tables, uids
from clipdata_jax.runs import manifest, output
from clipdata_jax.runtime import parallel
from clipdata_jax.scoring import groups
from clipdata_jax.scoring.units import shard_files

_ROWS, _DIM = 32, 8


def make_pool(folder: Path, shards: int) -> None:
    """Shards of 32 pairs each, all with the same embeddings."""
    folder.mkdir(parents=True)
    rows = np.ones((_ROWS, _DIM), np.float16) / np.float16(np.sqrt(_DIM))
    buffer = io.BytesIO()
    np.savez(buffer, b32_img=rows, b32_txt=rows)
    for shard in range(shards):
        packed = b"".join(hashlib.sha256(f"{shard}/{row}".encode()).digest()[:16] for row in range(_ROWS))
        text = [packed[start : start + 16].hex() for start in range(0, len(packed), 16)]
        pq.write_table(pa.table({"uid": text}), folder / f"{shard:08d}.parquet")
        (folder / f"{shard:08d}.npz").write_bytes(buffer.getvalue())


class Run:
    """The steps of `score` that grow with the units, without the scores themselves."""

    def __init__(self, folder: Path) -> None:
        self.options = config.Score(
            pool=str(folder / "pool"),
            out=str(folder / "scores"),
            neg_clip_loss=config.NegClipLoss(batch_size=16, group=2),
        )

    def open_pool(self) -> None:
        """Listing, and the footers."""
        self.pool = embedding_shards.open_pool(self.options.pool)

    def plan(self) -> None:
        """Units, groups, and _plan.json."""
        settings = self.options.neg_clip_loss
        units = groups.plan_units(self.pool.shards, _ROWS)
        self.units = {f"unit-{index:05d}": unit for index, unit in enumerate(units)}
        plan = manifest.describe(
            "score",
            self.options,
            pool=[path for shard in self.pool.shards for path in shard_files(shard)],
            plan={name: [[shard.name, shard.rows] for shard in unit] for name, unit in self.units.items()},
            groups=groups.describe([_ROWS] * len(units), batch_sizes=settings.batch_sizes(), group=settings.group),
        )
        self.output = output.open_output(self.options.out, plan=plan, units=list(self.units))

    def complete(self) -> None:
        """Parts and receipts, one unit after the other; flushing them to the disk takes most of it."""
        random = np.random.default_rng(0)
        for name, unit in self.units.items():
            uid = uids.join_halves(*random.integers(0, 2**64, (2, _ROWS), dtype=np.uint64))
            scores = {"clip_score": random.standard_normal(_ROWS, np.float32)}
            facts = {"rows": _ROWS, "scored": _ROWS, "masked": {}, "masked_rows": [], "skipped": []}
            inputs = [manifest.file_entry(path) for path in shard_files(unit[0])]
            part = {f"{unit[0].name}.parquet": score_tables.part_bytes(uid, scores)}
            self.output.complete(name, part, {**facts, "repeated_uids": 0, "inputs": inputs}, inputs=inputs)

    def remaining(self) -> None:
        """What a process that is started again looks through."""
        self.output = output.Output(self.output.folder, self.output.units)
        assert not self.output.remaining(parallel.Share())

    def finish(self) -> None:
        """The manifest, by whoever comes last."""
        assert self.output.finish(score._summarise) is not None

    def select(self) -> None:
        """A rule over all parts."""
        rule = "top(clip_score, 0.3)"
        options = config.Select(scores=(self.options.out,), rule=rule, out=f"{self.options.out}.npy")
        with contextlib.redirect_stdout(io.StringIO()):
            select.run(options)

    def verify(self) -> None:
        """Every part's digest, and the sizes of the pool's files."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            verify.run(config.Verify(runs=(self.options.out,), pool="size"))


def timed(call: Callable[[], Any], rounds: int) -> float:
    """The median of some rounds, in seconds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to make the files; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, n = Path(name), options.shards
        make_pool(folder / "pool", n)
        run = Run(folder)
        steps = [(run.open_pool, options.rounds), (run.plan, 1), (run.complete, 1), (run.plan, options.rounds)]
        steps += [(step, options.rounds) for step in (run.remaining, run.finish, run.select, run.verify)]
        for step, rounds in steps:
            again = " again" if step == run.plan and rounds > 1 else ""
            seconds = timed(step, rounds)
            report(f"{step.__name__}{again}", shards=n, seconds=seconds, us_per_shard=seconds / n * 1e6, rounds=rounds)
        for file in ("_plan.json", "_manifest.json"):
            size = storage.size(f"{run.options.out}/{file}")
            report(file, shards=n, mb=size / 1e6, bytes_per_shard=size / n)


if __name__ == "__main__":
    main()
