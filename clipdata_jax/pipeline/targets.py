"""A NormSim target as a single file: embedded in parts that a stopped run goes on from, then gathered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from clipdata_jax.data import embeddings, files
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import manifest


def is_file(out: str) -> bool:
    """Whether an output is to be a single file."""
    return out.endswith((".npz", ".npy"))


def parts_folder(out: str) -> str:
    """Where the parts of a single file are kept until it is whole."""
    return f"{out}.parts"


def finished(out: str, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a file that this very run has made before, else None."""
    path = f"{out}.{manifest.NAME}"
    if not (files.exists(out) and files.exists(path)):
        return None
    content = json.loads(files.read_bytes(path))
    wanted = json.loads(manifest.to_json(plan))
    # The pool's sizes and digests came when its files were read.
    same = all(content.get(key) == value for key, value in wanted.items() if key != "pool")
    return content if same and [entry["name"] for entry in content["pool"]] == plan["pool"] else None


def gather(out: str, folder: str, result: dict[str, Any]) -> None:
    """Makes one file of a finished run's parts, with its manifest beside it, and removes the parts.

    Args:
      out: a .npz with `<tag>_img` for each model, or a .npy for the only one.
      folder: the run's.
      result: the run's manifest.
    """
    try:
        _write_single(out, folder, result)
        files.remove_folder(folder)
    except (InputError, OSError):
        # Of two workers that finish at one time, the first may have done it all and removed the parts.
        if files.exists(folder) or not files.exists(f"{out}.{manifest.NAME}"):
            raise


def _write_single(out: str, folder: str, result: dict[str, Any]) -> None:
    parts = [files.join(folder, name) for name in result["outputs"] if name.endswith(".npz")]

    def pieces(name: str) -> Iterator[np.ndarray]:
        for part in parts:
            yield embeddings.read_array(part, name)

    arrays = {
        f"{tag}_img": embeddings.Rows((result["pairs"], model["dim"]), pieces(f"{tag}_img"))
        for tag, model in result["models"].items()
    }
    with files.open_write(out) as file:
        if out.endswith(".npz"):
            embeddings.write_npz(file, arrays)
        else:
            (rows,) = arrays.values()
            embeddings.write_npy(file, rows)
    manifest.write_beside(out, result)
