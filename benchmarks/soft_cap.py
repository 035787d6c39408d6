"""`soft_cap` and `hard_cap` over a score table: as many draws as pairs, by `clipdata select` as a command.

    python benchmarks/soft_cap.py [--rows 10000000] [--draws 10000000] [--rounds 3] [--folder made]

One JSON line a rule: the median time of the command, and the most resident memory of all of them. Scores are normal
with a standard deviation of 2.5, in 50 parts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from clipdata_jax.formats import score_tables, uids

PARTS = 50


def make(folder: Path, rows: int) -> None:
    """Random uids and scores, as a score table."""
    folder.mkdir(parents=True)
    for part in range(PARTS):
        rng, count = np.random.default_rng(part), rows // PARTS
        uid = uids.join_halves(*rng.integers(0, 2**64, (2, count), dtype=np.uint64))
        scores = {"x": rng.normal(0, 2.5, count).astype(np.float32)}
        (folder / f"{part:08d}.parquet").write_bytes(score_tables.part_bytes(uid, scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--draws", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)) / "scores"
        if not folder.exists():
            make(folder, options.rows)
        for rule in (f"soft_cap(x, {options.draws}, penalty=0.15)", f"hard_cap(x, {options.draws}, cap=15)"):
            words = [sys.executable, "-m", "clipdata_jax", "select", str(folder), "--rule", rule]
            words += ["--out", str(Path(scratch) / "subset.npy"), "--overwrite", "--quiet"]
            seconds = []
            for _ in range(options.rounds):
                start = time.monotonic()
                subprocess.run(words, check=True)
                seconds.append(time.monotonic() - start)
            most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(json.dumps({"rule": rule, "rows": options.rows, "seconds": median(seconds), "gib": round(most, 2)}))


if __name__ == "__main__":
    main()
