"""Real `clipdata` processes for the benchmarks of many-process runs, and what tells their outputs apart."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from clipdata_jax.demo.pool import make_pool

MODEL = Path(__file__).parents[1] / "clipdata_jax" / "demo" / "model"


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Starts `clipdata` in a folder; compiled programs are kept there, or compiling would be most of the time."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(MODEL.parents[2]),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "clipdata_jax", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)


def run(arguments: Sequence[str], folder: Path, flags: Sequence[Sequence[str]] = ((),)) -> list[str]:
    """Runs a command as processes at one time, each with flags of its own; returns what each printed."""
    processes = [start([*arguments, *own], folder) for own in flags]
    printed = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        if process.returncode:
            raise RuntimeError(f"clipdata {' '.join(arguments)} ended with {process.returncode}: {errors[-2000:]}")
    return [out for out, _ in printed]


def independent(count: int) -> list[list[str]]:
    """Flags of processes that need no other."""
    return [["--worker", f"{index}/{count}"] for index in range(count)]


def joined(count: int) -> list[list[str]]:
    """Flags of processes that work together."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    shared = ["--coordinator", address, "--num-processes", str(count), "--process-id"]
    return [[*shared, str(index)] for index in range(count)]


def digests(output: Path, names: Sequence[str] = ()) -> dict[str, str]:
    """The files of an output, a folder or one file with its manifest, by name; without times, and checkpoints.

    Args:
      output: its path.
      names: of outputs, which tell runs apart; manifests that differ in them alone are alike.
    """
    if output.is_dir():
        found = [path for path in output.rglob("*") if path.is_file()]
    else:
        found = list(output.parent.glob(f"{output.name}*"))
    return {
        str(path.relative_to(output.parent)).replace(output.name, "OUT"): _digest(path, names)
        for path in found
        if not path.name.endswith("run.jsonl") and not {"_receipts", "checkpoints"} & set(path.parts)
    }


def _digest(path: Path, names: Sequence[str]) -> str:
    content = path.read_bytes()
    for name in names if path.suffix == ".json" else ():
        content = content.replace(name.encode(), b"OUT")
    return hashlib.sha256(content).hexdigest()


def draw(folder: Path, pairs: int, shards: int) -> None:
    """Draws the demo's pool as folder/pool."""
    make_pool(str(folder / "pool"), pairs=pairs, seed=0, shards=shards)
