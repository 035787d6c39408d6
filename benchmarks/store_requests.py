"""What commands ask of an object store: requests a shard, and how far a pass over parts waits for one after another.

    python benchmarks/store_requests.py [--shards 10 40] [--parts 100] [--delay 0.05]

One JSON line a figure. The store is moto's S3 on the loopback. `score` runs on shards of 16 pairs, each a unit, fresh
and then as a resume that finds all done: the requests per shard are the slope between the two numbers of shards, what
is left is the run's own. `select` runs on a table of so many parts while every answer takes the delay.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from _timing import report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import stores
from support.pools import make_pool

from clipdata_jax import storage
from clipdata_jax.cli import main as clipdata
from clipdata_jax.formats import score_tables, uids


class Slow:
    """Answers after a while.

    Attributes:
      seconds: how long each answer takes more.
    """

    def __init__(self, app: Callable) -> None:
        self._app, self.seconds = app, 0.0

    def __call__(self, environ: stores.Environment, start_response: Callable) -> Iterable[bytes]:
        time.sleep(self.seconds)
        return list(self._app(environ, start_response))


def run(*arguments: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        status = clipdata([str(one) for one in arguments])
    if status:
        raise SystemExit(errors.getvalue())


def measure_score(counter: stores.Faults, shards: int, folder: Path) -> dict[str, int]:
    """Requests of a fresh `score` of a pool of so many shards, and of the same command again."""
    make_pool(folder / "pool", sizes=[16] * shards, dim=16)
    pool = f"s3://bucket/pool-{shards}"
    for path in (folder / "pool").iterdir():
        storage.write_bytes(f"{pool}/{path.name}", path.read_bytes())
    found = {}
    for name in ("fresh", "resume"):
        counter.reset()
        run("score", pool, "--batch-size", 8, "--group", 2, "--out", f"s3://bucket/scores-{shards}")
        found[name] = counter.seen.total()
        report(f"requests of score, {name}", shards=shards, requests=found[name], **counter.seen)
    return found


def measure_select(counter: stores.Faults, slow: Slow, parts: int, seconds: float, folder: Path) -> None:
    """Requests and time of `select` on a table of many parts, locally and where each answer takes a while."""
    rng = np.random.default_rng(0)
    (folder / "table").mkdir()
    for part in range(parts):
        uid = uids.join_halves(*rng.integers(0, 2**64, (2, 100), dtype=np.uint64))
        content = score_tables.part_bytes(uid, {"a": rng.standard_normal(100, np.float32)})
        (folder / f"table/{part:08}.parquet").write_bytes(content)
        storage.write_bytes(f"s3://bucket/table/{part:08}.parquet", content)
    outs = []
    for place, table in (("local", folder / "table"), ("store", "s3://bucket/table")):
        outs.append(folder / f"{place}.npy")
        counter.reset()
        slow.seconds = seconds
        start = time.perf_counter()
        run("select", table, "--rule", "top(a, 0.3)", "--out", outs[-1])
        taken, slow.seconds = time.perf_counter() - start, 0.0
        told = {"requests_a_part": counter.seen.total() / parts, "seconds": taken}
        report(f"select, {place}", parts=parts, seconds_an_answer=seconds, **told)
    if outs[0].read_bytes() != outs[1].read_bytes():
        raise SystemExit("the subsets differ")


def measure(shards: Sequence[int], parts: int, delay: float) -> None:
    slow = Slow(stores.s3_app())
    counter = stores.Faults(slow)
    with (
        pytest.MonkeyPatch.context() as patch,
        stores.serving(counter) as address,
        tempfile.TemporaryDirectory() as folder,
    ):
        stores.use_s3(patch, address)
        storage.Folder("s3://bucket").fs.mkdir("bucket")
        found = []
        for count in shards:
            (Path(folder) / str(count)).mkdir()
            found.append(measure_score(counter, count, Path(folder) / str(count)))
        for name in found[0]:
            slope = (found[-1][name] - found[0][name]) / (shards[-1] - shards[0])
            report(f"requests of score a shard, {name}", requests=slope, others=found[0][name] - slope * shards[0])
        measure_select(counter, slow, parts, delay, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs=2, default=[10, 40])
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--delay", type=float, default=0.05)
    options = parser.parse_args()
    measure(options.shards, options.parts, options.delay)


if __name__ == "__main__":
    main()
