"""`clipdata train` end to end: images a second, the share of time without input, and the peak of anonymous memory.

    python benchmarks/train.py [--pairs 2000 20000] [--steps 30] [--batch-size 128] [-- --microbatch 64 --width 64 ...]

One JSON line for each number of pairs. The drawn pool's images have 64 pixels a side; what follows "--" goes to the
command. A first run, which compiles, is not counted. Rates are those of its own lines after the first step. Memory is
that of the process and those that it starts, without mapped files, looked at every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _commands import MODEL, start
from _timing import report

from clipdata_jax.demo.pool import make_clean_tars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    own, _, others = " ".join(sys.argv[1:]).partition("-- ")
    options, flags = parser.parse_args(own.split()), others.split()
    with tempfile.TemporaryDirectory() as folder:
        for pairs in options.pairs:
            make_clean_tars(str(Path(folder) / f"pool-{pairs}"), pairs=pairs, seed=0, shards=8)
            fixed = ["--steps", str(options.steps), "--batch-size", str(options.batch_size), *flags]
            if pairs == options.pairs[0]:  # later runs take its programs: compiling takes more memory than training
                measure(Path(folder), f"pool-{pairs}", "first", fixed)
            figures = measure(Path(folder), f"pool-{pairs}", f"run-{pairs}", fixed)
            report("train", pairs=pairs, batch_size=options.batch_size, flags=" ".join(flags), **figures)


def measure(folder: Path, pool: str, out: str, flags: list[str]) -> dict[str, float]:
    """Trains, and returns the figures."""
    process = start(["train", pool, "--tokenizer", str(MODEL), "--out", out, "--quiet", *flags], folder)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(anonymous_memory, [process.pid, *children(process.pid)])))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"clipdata train ended with {process.returncode}: {process.communicate()[1][-2000:]}")
    lines = [json.loads(line) for line in (folder / out / "_run.jsonl").read_text().splitlines()][1:]
    return {
        "images_per_second": statistics.median(line["rows_per_second"] for line in lines),
        "input_wait_share": statistics.median(line["input_wait_share"] for line in lines),
        "anonymous_mb": round(peak / 1e6),
    }


def children(process: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, timeout=10, check=False)
    own = list(map(int, found.stdout.split()))
    return [*own, *(below for child in own for below in children(child))]


def anonymous_memory(process: int) -> int:
    """The bytes that a process holds besides mapped files; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
