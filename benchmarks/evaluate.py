"""`evaluate --suite` against `embed --images-only` of the same images, as whole processes in turn.

    python benchmarks/evaluate.py [--rounds 3] [--images 500] [--classes 10] [--tasks 4] [--model FOLDER]

One JSON line a figure. Both commands read, decode and embed the same tars with the same model; `evaluate` also embeds
prompts and computes metrics. Compiled programs are kept from a first turn that is not counted. Memory is the most that
each process held.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import tempfile
from pathlib import Path

import _commands
import numpy as np
from _timing import alternate, median_ratio, report
from host_pipeline import photograph

from clipdata_jax.evaluation.tasks import TASKS
from clipdata_jax.formats import tars


def draw(data: Path, tasks: int, images: int, classes: int) -> None:
    """Classification tasks of photographs, two tars each."""
    rng = np.random.default_rng(0)
    drawn = [photograph(rng, 500, 375) for _ in range(40)]
    chosen = [task for task in TASKS.values() if task.kind == "classification" and not task.columns][:tasks]
    for number, task in enumerate(chosen):
        folder = data / task.folder
        (folder / "test").mkdir(parents=True)
        (folder / "classnames.txt").write_text("".join(f"thing {number} {i}\n" for i in range(classes)))
        (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na drawing of a {c}.\n")
        (folder / "test" / "nshards.txt").write_text("2")
        for shard in range(2):
            members = [
                (f"s{i:07}.{extension}", content)
                for i in range(shard, images, 2)
                for extension, content in (("cls", f"{i % classes}".encode()), ("jpg", drawn[i % len(drawn)]))
            ]
            tars.write_tar(str(folder / "test" / f"{shard}.tar"), members)


def turn(folder: Path, command: str, model: str) -> None:
    """One run of a command from nothing."""
    shutil.rmtree(folder / command, ignore_errors=True)
    arguments = {
        "evaluate": ["evaluate", model, "--suite", "datacomp", "--data", "data"],
        "embed": ["embed", "data", "--model", model, "--images-only"],
    }[command]
    _commands.run([*arguments, "--out", command, "--batch-size", "64"], folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 3), ("images", 500), ("classes", 10), ("tasks", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default=str(_commands.MODEL))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "data", options.tasks, options.images, options.classes)
        turns = {one: functools.partial(turn, folder, one, options.model) for one in ("evaluate", "embed")}
        for one in turns.values():
            one()
        seconds = alternate(turns, options.rounds)
        for command, taken in seconds.items():
            lines = [json.loads(line) for line in (folder / command / "_run.jsonl").read_text().splitlines()]
            report(
                command,
                seconds=float(np.median(taken)),
                images_per_s=options.tasks * options.images / float(np.median(taken)),
                peak_gb=max(line["resident_bytes"] for line in lines) / 1e9,
                speed_to_embed=1 / median_ratio(seconds, command, "embed"),
            )


if __name__ == "__main__":
    main()
