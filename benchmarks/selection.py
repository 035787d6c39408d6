"""`top(a, 0.3) >> top(b, 0.2)` over score tables, against the plain way: whole columns, full sorts, a loop over uids.

    python benchmarks/selection.py [--rows 10000000] [--parts 50] [--rounds 5] [--without-plain] [--folder made]

One JSON line a figure: medians of turns taken in one run, inside one process and as commands, the files being in the
page cache; and the most anonymous memory of the commands. The plain way reads a parquet of uids as text and scores, as
DataComp's metadata is, sorts all rows by each score, and makes `u8,u8` of the uids one by one. Stops if the subsets
differ. 100,000,000 rows take 2.5 GB of disk (and as much again and more for the plain way's own files).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _plain_select import plain_select
from _timing import alternate, median_ratio, report

from clipdata_jax import config
from clipdata_jax.commands import select
from clipdata_jax.formats import score_tables, uids

RULE = "top(a, 0.3) >> top(b, 0.2)"


def make(folder: Path, rows: int, parts: int, plain: bool) -> None:
    """Random uids and scores, as a score table and as metadata with the same scores."""
    for name in ("scores", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        rng, count = np.random.default_rng(part), rows // parts
        uid = uids.join_halves(*rng.integers(0, 2**64, (2, count), dtype=np.uint64))
        scores = {name: rng.standard_normal(count, np.float32) for name in "ab"}
        (folder / f"scores/{part:08d}.parquet").write_bytes(score_tables.part_bytes(uid, scores))
        if plain:
            text = pa.array(uids.to_hex(uid))
            pq.write_table(pa.table({"uid": text, **scores}), folder / f"metadata/{part:08d}.parquet")


def ours(folder: Path) -> None:
    options = config.Select(scores=(str(folder / "scores"),), rule=RULE, out=str(folder / "ours.npy"))
    with contextlib.redirect_stdout(io.StringIO()):
        select.run(options)


def command(words: list[str], memory: list[int]) -> Callable[[], None]:
    """Runs a command, noting the most anonymous memory that it has."""

    def run() -> None:
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, env=os.environ)
        most = 0
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError):  # it may just have ended
                status = Path(f"/proc/{process.pid}/status").read_text()
                most = max(most, int(status.split("RssAnon:")[1].split()[0]) * 1024)
            time.sleep(0.01)
        if process.returncode:
            raise SystemExit(f"{words} ended with status {process.returncode}")
        memory.append(most)

    return run


def measure(folder: Path, rows: int, rounds: int, plain: bool) -> None:
    scores, metadata = str(folder / "scores"), str(folder / "metadata")
    memory: dict[str, list[int]] = {"select": [], "plain": []}
    words = ["-m", "clipdata_jax", "select", scores, "--rule", RULE, "--out", str(folder / "ours.npy")]
    inside = {"select": lambda: ours(folder)}
    commands = {"select": command(words, memory["select"])}
    if plain:
        out = str(folder / "plain.npy")
        inside["plain"] = lambda: plain_select(metadata, out)
        commands["plain"] = command([plain_select.__code__.co_filename, metadata, out], memory["plain"])
    for what, calls in (("inside the process", inside), ("as a command", commands)):
        seconds = alternate(calls, rounds)
        for name, values in seconds.items():
            report(f"{name}, {what}", rows=rows, seconds=median(values), rounds=rounds)
        if plain:
            faster = median_ratio(seconds, "plain", "select")
            report(f"select is faster than the plain way, {what}", rows=rows, times=faster)
    for name in commands:
        report(f"{name}, anonymous memory of the command", rows=rows, mb=max(memory[name]) / 2**20)
    if plain and not np.array_equal(np.load(folder / "ours.npy"), np.load(folder / "plain.npy")):
        raise SystemExit("the subsets differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--parts", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-plain", action="store_true", help="measure select alone")
    parser.add_argument("--folder", type=Path, help="where to make the tables; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make(Path(folder), options.rows, options.parts, not options.without_plain)
        measure(Path(folder), options.rows, options.rounds, not options.without_plain)


if __name__ == "__main__":
    main()
