"""Runs a command on damaged input, and says how it ended."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from support.corruptions import COMMANDS, Case, make_inputs

from clipdata_jax.cli import main
from clipdata_jax.formats import tars, uids


class Judge:
    """Good inputs of every kind, and what the commands make of them."""

    def __init__(self, folder: Path) -> None:
        self.good, self._folder = folder / "good", folder
        self.good.mkdir()
        make_inputs(self.good, lambda argv: _run(argv, self.good))
        self._references: dict[str, dict[str, object]] = {}

    def reference(self, route: str) -> dict[str, object]:
        """What a route's command makes of the good inputs."""
        if route not in self._references:
            folder = self._folder / f"reference {route}"
            shutil.copytree(self.good, folder, copy_function=os.link)
            status, said = _run(COMMANDS[route].split(), folder)
            if status:
                raise AssertionError(f"{route} fails on good inputs: {said}")
            self._references[route] = results(route, folder)
        return self._references[route]

    def judge(self, case: Case, around: Callable[[], contextlib.AbstractContextManager[object]]) -> tuple[str, str]:
        """Runs a case.

        Args:
          case: what to run.
          around: entered while the command runs, to limit and measure it.

        Returns:
          "error" (one sentence, status 2), "skipped" or "harmless", which are good, or else what is wrong, and what
          the command said.
        """
        reference = self.reference(case.route)
        folder = self._folder / "case"
        case.place(self.good, folder)
        try:
            with around():
                status, said = _run(case.argv(), folder)
            return _outcome(case, status, said, folder, reference), said
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"traceback: {type(error).__name__}", traceback.format_exc()
        finally:
            shutil.rmtree(folder)


def _run(argv: list[str], folder: Path) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as stop:
            status = int(stop.code or 0)
    # A progress bar is no message.
    told = [line for line in err.getvalue().splitlines() if not re.match(r"[\w ]+: +\d+%\|", line)]
    return status, out.getvalue() + "\n".join(told)


def _outcome(case: Case, status: int, said: str, folder: Path, reference: dict[str, object]) -> str:
    if any((folder / name).exists() for name in ("owned", "escaped.png", "../escaped.png", "../../escaped.png")):
        return "wrong: something escaped"
    if any(not char.isprintable() and char != "\n" for char in said):
        return "wrong: control characters were printed"
    if status == 2:
        lines = said.strip().partition("; see where\n")[0].splitlines()
        return "error" if len(lines) == 1 and lines[0].startswith("clipdata ") else "wrong: not one sentence"
    if status:
        return f"wrong: status {status}"
    made = results(case.route, folder)
    if odd := [key for key, value in made.items() if reference.get(key) != value]:
        return f"wrong result: {odd[0]}"
    missing = set(reference) - set(made)
    listed = re.search("skipped|masked|without a value|in no tar", said, re.IGNORECASE)
    if not missing:
        return "skipped" if listed else "harmless"
    if case.route in ("select", "uids", "npy columns", "parquet columns"):
        return "wrong result: pairs are missing"
    return "skipped" if listed else "wrong: pairs are missing, nothing says so"


def results(route: str, folder: Path) -> dict[str, object]:
    """What a command made, item by item, so that it can be compared with what it makes of the good inputs."""
    out = folder / "out"
    if route in ("score", "folders", "npy target", "npz target"):
        return dict(_scores(out))
    if route in ("embed", "table"):
        return dict(_embeddings(out))
    if route == "reshard":
        return {
            f"{sample.key}.{name}": data
            for path in sorted(out.glob("*.tar"))
            for sample in tars.read_tar(str(path))
            for name, data in sample.members.items()
        }
    if route == "report":
        return {"page": (folder / "out.html").exists()}
    return dict.fromkeys(uids.to_hex(np.load(folder / "out.npy")), True)


def _scores(out: Path) -> Iterator[tuple[str, object]]:
    """Scores that are no nulls; those that depend on other pairs only of whole shards, the others being whole too."""
    parts = {path.stem[-1]: pq.read_table(path).to_pylist() for path in sorted(out.glob("*.parquet"))}
    for stem, rows in parts.items():
        for row in rows:
            for name, value in row.items():
                alone = name.startswith(("clip_score", "norm_sim"))
                whole = stem != "1" and len(parts.get("1", rows)) == len(rows)
                if value is not None and name[:4] != "uid_" and (alone or whole):
                    yield f"{row['uid_hi']:x} {row['uid_lo']:x} {name}", value


def _embeddings(out: Path) -> Iterator[tuple[str, object]]:
    for path in sorted(out.glob("*.npz")):
        uid = pq.read_table(path.with_suffix(".parquet"))["uid"].to_pylist()
        with np.load(path) as arrays:
            for name in arrays.files:
                yield from ((f"{u} {name}", row.tobytes()) for u, row in zip(uid, arrays[name], strict=True))
