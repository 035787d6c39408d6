"""A NormSim target as a single file: embedded in parts that a stopped run goes on from, then gathered."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays
from clipdata_jax.runs import manifest
from clipdata_jax.runs.output import Output
from clipdata_jax.runtime import parallel


def is_file(out: str) -> bool:
    """Whether an output is to be a single file."""
    return out.endswith((".npz", ".npy"))


def parts_folder(out: str) -> str:
    """Where the parts of a single file are kept until it is whole."""
    return f"{out}.parts"


def tidy(out: str) -> None:
    """Removes the parts of a file that is whole, where a process was killed before it did so."""
    with contextlib.suppress(InputError, OSError):  # another process is at it
        if storage.exists(parts_folder(out)):
            storage.remove(parts_folder(out))


def finished(out: str, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a file that this very run has made before, of inputs that are still the same; else None.

    Raises:
      InputError: there is a file that another run made, or something else.
    """
    if not storage.exists(out):
        return None
    before = manifest.read_beside(out)
    if not before and storage.exists(parts_folder(out)):
        return None  # stopped before its manifest was written
    if not before or storage.is_folder(out):
        raise InputError(
            f"{out}: is there, and not by a run of this command; choose another --out, or remove it"
        )
    wanted = json.loads(manifest.to_json(plan))
    # The pool's sizes and digests came when its files were read.
    pool = before.get("pool", [])
    found = {**{key: before.get(key) for key in wanted}, "pool": [entry["name"] for entry in pool]}
    if found != wanted:
        raise InputError(
            f"{out}: already holds the results of another run ({manifest.first_difference(found, wanted)}); choose"
            " another --out, or delete the file"
        )
    whole = [entry["bytes"] for entry in before["outputs"].values()] == [storage.size(out)]
    return before if whole and all(map(_is_unchanged, pool)) else None


def _is_unchanged(entry: dict[str, Any]) -> bool:
    name = entry["name"]
    return storage.size(name) == entry["bytes"] and storage.digest(name) == entry["digest"]


def finish(
    out: str,
    output: Output,
    plan: dict[str, Any],
    facts: Callable[[list[dict[str, Any]]], dict[str, Any]],
    share: parallel.Share = parallel.ALONE,
) -> dict[str, Any] | None:
    """Makes one file of a run's parts if all are there, with its manifest beside it, and removes the parts.

    Args:
      out: a .npz with `<tag>_img` for each model, or a .npy for the only one.
      output: the parts.
      plan: of the run.
      facts: as for `work.Output.finish`.
      share: this process's.

    Returns:
      the manifest, or None where another process tells of the run.
    """
    try:
        result = output.finish(facts, share)
        if result is not None:
            _write_single(out, str(output.folder), result)
            output.folder.remove()
    except (InputError, OSError):
        # Another process, begun later, may have done it and taken away what this one was just reading.
        if finished(out, plan) is None:
            raise
        tidy(out)
        print(f"{out}: process {share.index + 1} of {share.count} is done, and so is the run")
        return None
    return result


def _write_single(out: str, folder: str, result: dict[str, Any]) -> None:
    parts = [storage.join(folder, name) for name in result["outputs"] if name.endswith(".npz")]

    def pieces(name: str) -> Iterator[np.ndarray]:
        for part in parts:
            yield arrays.read_array(part, name)

    written = {
        f"{tag}_img": arrays.RowChunks((result["pairs"], model["dim"]), pieces(f"{tag}_img"))
        for tag, model in result["models"].items()
    }
    with storage.open_write(out) as file:
        if out.endswith(".npz"):
            arrays.write_npz(file, written)
        else:
            (rows,) = written.values()
            arrays.write_npy(file, rows)
    manifest.write_beside(out, result)
