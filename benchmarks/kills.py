"""SIGKILLs at random times, of one or two processes, during `embed`, `score` and `reshard`; then the run goes on.

Its outputs must have the bytes of a run that nobody disturbed: no unit lost, none doubled, no temporary file; else it
ends with what is wrong. One line for each command. Four of five kills come when a random number of units is done.
    python benchmarks/kills.py [--kills 20] [--commands embed score reshard] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

from _commands import MODEL, digests, draw, independent, run, start
from _timing import report

SHARDS = 24
COMMANDS = {
    "embed": ["embed", "pool", "--model", f"demo={MODEL}", "--batch-size", "16", "--out"],
    "score": ["score", "metadata", "--batch-size", "16", "--group", "2", "--out"],
    "reshard": ["reshard", "pool", "--subset", "subset.npy", "--out"],
}


def main() -> None:
    """Kills each command so often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    _prepare(folder)
    for name in options.commands:
        _kill_often(name, options.kills, random.Random(f"{options.seed} {name}"), folder)


def _prepare(folder: Path) -> None:
    """The pool, and what the later commands read."""
    if (folder / "subset.npy").exists():
        return
    draw(folder, 20 * SHARDS, shards=SHARDS)
    run([*COMMANDS["embed"], "metadata"], folder)
    run([*COMMANDS["score"], "scores"], folder)
    run(["select", "scores", "--rule", "top(neg_clip_loss, 0.5)", "--out", "subset.npy"], folder)


def _kill_often(name: str, kills: int, random_: random.Random, folder: Path) -> None:
    run([*COMMANDS[name], f"whole-{name}"], folder)  # it compiles
    shutil.rmtree(folder / f"whole-{name}")
    begin = time.perf_counter()
    run([*COMMANDS[name], f"whole-{name}"], folder)
    span = time.perf_counter() - begin
    whole = digests(folder / f"whole-{name}")
    done, midway, left = 0, 0, 0
    while done < kills:
        output = folder / f"killed-{name}"
        shutil.rmtree(output, ignore_errors=True)
        # Some runs are killed several times, by other numbers of processes, before they may end.
        for _ in range(random_.choice((1, 1, 2, 3))):
            killed = _kill(name, random_, folder, span)
            done += killed
            finished = _finished(output)
            midway += killed if 0 < finished < SHARDS and not (output / "_manifest.json").exists() else 0
            left += len(list(output.rglob(".*.tmp")))
        processes = random_.choice((1, 2, 3))
        run([*COMMANDS[name], output.name], folder, independent(processes))
        _check(name, whole, output)
    report(
        "kills", command=name, kills=done, amid_work=midway, temporary_files_swept=left, lost=0, doubled=0,
        same_bytes=True, undisturbed_seconds=span,
    )  # fmt: skip


def _kill(name: str, random_: random.Random, folder: Path, span: float) -> int:
    """Kills one or two processes at one random moment of their work; returns how many it met alive."""
    output, count = folder / f"killed-{name}", random_.choice((1, 2))
    processes = [start([*COMMANDS[name], output.name, *own], folder) for own in independent(count)]
    if random_.random() < 0.2:
        time.sleep(span * random_.random())  # at any moment, most of them before the work begins
    else:
        units = random_.randrange(_finished(output), SHARDS + 1)
        while _finished(output) < units and any(process.poll() is None for process in processes):
            time.sleep(0.001)
        time.sleep(random_.uniform(0, 0.02))
    alive = sum(process.poll() is None for process in processes)
    for process in processes:
        process.kill()
        process.communicate()
    return alive


def _finished(output: Path) -> int:
    return len(list(output.glob("_receipts/*.json")))


def _check(name: str, whole: dict[str, str], output: Path) -> None:
    """Raises where the output differs from the undisturbed one."""
    found = digests(output)
    units = [json.loads(path.read_text())["unit"] for path in (output / "_receipts").glob("*.json")]
    wrong = {
        "lost": sorted(whole.keys() - found.keys()),
        "other files": sorted(found.keys() - whole.keys()),
        "other bytes": sorted(file for file in found.keys() & whole.keys() if found[file] != whole[file]),
        "doubled units": sorted({unit for unit in units if units.count(unit) > 1}),
        "temporary files": [str(path) for path in output.rglob(".*.tmp")],
    }
    if any(wrong.values()):
        raise SystemExit(f"{name}: {wrong} in {output}")


if __name__ == "__main__":
    main()
