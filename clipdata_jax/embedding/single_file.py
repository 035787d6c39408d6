"""Embeddings of images in a single file: embedded in parts, from which a stopped run continues, then joined."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays
from clipdata_jax.runs import manifest, records
from clipdata_jax.runs.output import Output, is_done
from clipdata_jax.runs.records import Facts, Manifest, Receipt, RunPlan
from clipdata_jax.runtime import console, parallel


def is_file(out: str) -> bool:
    """Whether an output path means a single file."""
    return out.endswith((".npz", ".npy"))


def parts_folder(out: str) -> str:
    """The folder of a single file's parts until it is complete."""
    return f"{out}.parts"


def tidy(out: str) -> None:
    """Removes the parts of a complete file, left by a process that was killed."""
    with contextlib.suppress(InputError, OSError):  # another process may be removing them
        if storage.exists(parts_folder(out)):
            storage.remove(parts_folder(out))


def finished(out: str, plan: RunPlan) -> Manifest | None:
    """The manifest of a file that this very run has made before, of inputs that are still the same; else None.

    Raises:
      InputError: there is a file that another run made, or something else.
    """
    made = manifest.beside(out)
    if storage.exists(parts_folder(out)) and not storage.exists(made):
        return None  # stopped before its manifest was written
    return records.read(Manifest, made) if is_done(out, plan) else None


def finish(
    out: str,
    output: Output,
    plan: RunPlan,
    facts: Callable[[list[Receipt]], Facts],
    share: parallel.Share = parallel.ALONE,
) -> Manifest | None:
    """Joins a run's parts if all are there, writes the manifest beside the file, and removes the parts.

    Args:
      out: a .npz with `<tag>_img` for each model, or a .npy for the only one.
      output: the parts.
      plan: of the run.
      facts: as for `Output.finish`.
      share: this process's.

    Returns:
      The manifest, or None if another process reports the run.
    """
    try:
        result = output.finish(facts, share)
        if result is not None:
            _write_single(out, str(output.folder), result)
            output.folder.remove()
    except (InputError, OSError):
        # Another process may have done it, and removed the parts while this one was reading them.
        if finished(out, plan) is None:
            raise
        tidy(out)
        console.say(f"{out}: process {share.index + 1} of {share.count} is done, and so is the run")
        return None
    return result


def _write_single(out: str, folder: str, result: Manifest) -> None:
    parts = [storage.join(folder, name) for name in result.outputs if name.endswith(".npz")]

    def pieces(name: str) -> Iterator[np.ndarray]:
        for part in parts:
            yield arrays.read_array(part, name)

    written = {
        f"{tag}_img": arrays.RowChunks((result.facts["pairs"], model["dim"]), pieces(f"{tag}_img"))
        for tag, model in result.facts["models"].items()
    }
    with storage.open_write(out) as file:
        if out.endswith(".npz"):
            arrays.write_npz(file, written)
        else:
            (rows,) = written.values()
            arrays.write_npy(file, rows)
    manifest.write_beside(out, result, {})
