"""One, two and four processes on this machine: whether every command's outputs have the same bytes.

`clipdata_jax` must be importable; CPU will do. A line for each command and number of processes.
    python benchmarks/processes.py [--pairs 1200] [--only score select] [--folder DIR]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _commands import MODEL, digests, draw, independent, joined, run
from _timing import report

NAMES = ("embed", "score", "select", "norm-sim-d", "reshard", "train")
TRAIN = ["--steps", "20", "--warmup", "4", "--batch-size", "64", "--patch-size", "16", "--width", "32", "--layers", "1"]


def commands(out: str) -> dict[str, list[str]]:
    """Command -> its arguments; each reads what one process made before it."""
    return {
        "embed": ["embed", "pool", "--model", f"demo={MODEL}", "--batch-size", "64", "--out", f"embed-{out}"],
        "score": ["score", "embed-1", "--batch-size", "64", "--group", "2", "--out", f"score-{out}"],
        "select": ["select", f"score-{out}", "--rule", "top(neg_clip_loss, 0.3)", "--out", f"select-{out}.npy"],
        "norm-sim-d": [
            *("norm-sim-d", "embed-1", "--fraction", "0.3", "--steps", "20", "--out"),
            f"norm-sim-d-{out}.npy",
        ],
        "reshard": ["reshard", "pool", "--subset", "select-1.npy", "--out", f"reshard-{out}"],
        "train": ["train", "pool", "--tokenizer", str(MODEL), *TRAIN, "--out", f"train-{out}"],
    }


def flags(name: str, count: int) -> list[list[str]]:
    """The flags of each process; `select` is done by one, from the score table that several made."""
    if count == 1 or name == "select":
        return [[]]
    return joined(count) if name in ("norm-sim-d", "train") else independent(count)


def main() -> None:
    """Runs every command with 1, 2 and 4 processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_200)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    if not (folder / "pool").exists():
        draw(folder, options.pairs, shards=6)
    for name in options.only:
        alone: dict[str, str] = {}
        for count in (1, 2, 4):
            start = time.perf_counter()
            printed = run(commands(str(count))[name], folder, flags(name, count))
            output = commands(str(count))[name][-1]
            found = digests(folder / output, [f"{name}-{count}", f"score-{count}"])
            alone = alone or found
            other = sorted(file for file in {*found, *alone} if found.get(file) != alone.get(file))
            report(
                "the same bytes", command=name, processes=count, files=len(found), same=not other, other=other[:4],
                manifests=sum("_manifest.json" in file for file in found),
                summaries=sum(" is done" not in out for out in printed),
                seconds=time.perf_counter() - start,
            )  # fmt: skip


if __name__ == "__main__":
    main()
