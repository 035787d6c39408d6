"""What `plan` tells beside what the commands take: time, memory, bytes written.

    python benchmarks/plan.py [--commands norm-sim-d filter ...] [--folder DIR]

Draws a small pool (kept in --folder for another time), plans each command on it, then runs it as a process. One JSON
line a command, each figure over the estimate of it: 1 is what was told. The memory is the most anonymous memory of the
process; of norm-sim-d the copy of the embeddings, gone at the end, isn't among the bytes written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _commands import MODEL, draw, start
from _timing import PRODUCT_GFLOP, alternate, anonymous_memory, plain_product, report, unit_rows

from clipdata_jax import cli, config
from clipdata_jax.pipeline import plan

_ROWS, _SHARDS, _DIM = 50_000, 6, 256
_CAPTIONS = (
    "a photograph of a red house beside the river, number {}",
    "ein kleines rotes Haus am Fluss, Nummer {}",
)
_TRAIN = "--steps 40 --batch-size 128 --warmup 5 --checkpoint-every 20"
_COMMANDS = {
    "embed": f"pool --model {MODEL} --out out",
    "score": "metadata --batch-size 8192 --group 2 --out out",
    "sensitivity": "metadata --batch-size 4096 2048 --group 1 2 4 --groups 2 --out out.html",
    "filter": "metadata --preset image_based --target target.npy --clusters 2000 --steps 5 --out out.npy",
    "norm-sim-d": "metadata --fraction 0.2 --steps 60 --out out.npy",
    "train": f"pool --tokenizer {MODEL} {_TRAIN} --out out",
    "evaluate": f"{MODEL} --retrieval pool --out out.json",
}


def make_metadata(folder: Path) -> None:
    """Embeddings, and captions of which half are English."""
    folder.mkdir()
    for index in range(_SHARDS):
        emb = unit_rows(index, _ROWS, _DIM).astype(np.float16)
        digits = np.random.default_rng(index).bytes(16 * _ROWS).hex()
        uid = [digits[at : at + 32] for at in range(0, len(digits), 32)]
        text = [_CAPTIONS[row % 2].format(row) for row in range(_ROWS)]
        pq.write_table(pa.table({"uid": uid, "text": text}), folder / f"{index:08d}.parquet")
        np.savez(folder / f"{index:08d}.npz", l14_img=emb, l14_txt=emb)
    np.save(folder.parent / "target.npy", emb[:200])


def take(name: str, folder: Path) -> dict[str, float]:
    """Seconds, bytes of memory, and bytes written of a command."""
    for path in folder.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    began = time.monotonic()
    process = start([name, *_COMMANDS[name].split()], folder)
    memory = 0
    while process.poll() is None:
        memory = max(memory, anonymous_memory(process.pid))
        time.sleep(0.02)
    seconds = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}: {process.communicate()[1][-2000:]}")
    found = [path for top in folder.glob("out*") for path in (top.rglob("*") if top.is_dir() else [top])]
    return {"seconds": seconds, "memory": memory, "written": sum(path.stat().st_size for path in found)}


def compare(name: str, folder: Path) -> None:
    """Prints how a run compares with its plan."""
    os.chdir(folder)
    options: Any = cli._parse(name, _COMMANDS[name].split())
    (told,) = plan.run(config.Plan(), config.Run(**{name.replace("-", "_"): options}))
    assert told.times is not None
    found = take(name, folder)
    report(
        name,
        seconds=found["seconds"],
        time=found["seconds"] / told.times.total,
        memory=found["memory"] / told.memory,
        written=found["written"] / told.written,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commands", nargs="+", default=list(_COMMANDS), choices=_COMMANDS)
    parser.add_argument("--folder", type=Path, help="where the pool is made and kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(exist_ok=True)
        if not (folder / "pool").exists():
            draw(folder, pairs=4_000, shards=4)
        if not (folder / "metadata").exists():
            make_metadata(folder / "metadata")
        for name in options.commands:
            compare(name, folder)
    seconds = min(alternate({"product": plain_product()}, rounds=5)["product"])
    report("plain product", gflop_per_second=PRODUCT_GFLOP / seconds)


if __name__ == "__main__":
    main()
