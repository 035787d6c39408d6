"""`clipdata entries`: 500,000 entries in captions of a dozen words, on one core, as a command.

    python benchmarks/entries.py [--captions 500000] [--entries 500000] [--rounds 3]

One JSON line: captions a minute of processor time, the automaton's building included and left out, by the difference
to a run on a thousand captions. Words are drawn by Zipf's law; an entry is a word or two.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax.formats import uids

WORDS, SHARD = 200_000, 100_000


def make(folder: Path, captions: int, entries: int) -> None:
    """A list of entries, and metadata of two sizes."""
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (WORDS, 10), dtype=np.uint8)
    words = [bytes(row[:length]).decode() for row, length in zip(letters, rng.integers(2, 10, WORDS), strict=True)]
    chances = np.cumsum(1 / np.arange(1, WORDS + 1))

    def draw(*shape: int) -> np.ndarray:
        return np.searchsorted(chances, rng.random(shape) * chances[-1])

    pairs = (f"{words[one]} {words[other]}" for one, other in draw(3 * entries, 2))
    listed = list(dict.fromkeys([*words[:150_000], *pairs]))[:entries]
    (folder / "list.txt").write_text("\n".join(listed))
    for name, rows in (("few", 1000), ("many", captions)):
        (folder / name).mkdir()
        for part, start in enumerate(range(0, rows, SHARD)):
            here = min(SHARD, rows - start)
            uid = uids.to_hex(uids.join_halves(*rng.integers(0, 2**64, (2, here), dtype=np.uint64)))
            text = [" ".join(words[number] for number in row) + "." for row in draw(here, 12)]
            pq.write_table(pa.table({"uid": uid, "text": text}), folder / f"{name}/{part:08d}.parquet")


def processor_seconds(folder: Path, name: str, out: str) -> float:
    """The processor time of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "clipdata_jax", "entries", str(folder / name), "--list", str(folder / "list.txt")]
    subprocess.run([*words, "--out", str(folder / out), "--quiet"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=500_000)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, options.captions, options.entries)
        whole, alone = [], []
        for turn in range(options.rounds):
            few = processor_seconds(folder, "few", f"few-{turn}.out")
            many = processor_seconds(folder, "many", f"many-{turn}.out")
            whole.append(options.captions / many * 60)
            alone.append((options.captions - 1000) / (many - few) * 60)
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        figures = {"captions_per_minute": round(median(whole)), "without_building": round(median(alone))}
        print(json.dumps({"captions": options.captions, "entries": options.entries, **figures, "gib": round(most, 2)}))


if __name__ == "__main__":
    main()
