"""What an output that is one file should be: from the manifest beside it. Opens no part."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import manifest, verify_contents
from clipdata_jax.pipeline.records import Check, Run, entries, input_checks, read_json


def open_file(path: str, *, inputs: bool, digests: bool, stores: tuple[str, ...] = ()) -> Run:
    """Reads the manifest beside a file.

    Args:
      path: of the file. (The manifest names it too, but a file may be moved with its manifest, and a name that a
        stranger wrote is not to be opened.)
      inputs: whether the run's inputs are to be checked.
      digests: whether they are to be read whole for it.
      stores: where they may lie, see `Run.stores`.

    Raises:
      InputError: the manifest is missing or can't be read.
    """
    beside = f"{path}.{manifest.NAME}"
    content = read_json(beside)
    run = Run(path, str(content.get("command", "?")), stores=stores)
    outputs = list(entries(content.get("outputs")).items())
    if len(outputs) != 1:
        raise InputError(f"{beside}: names {len(outputs)} outputs, expected the file beside it")
    name, (size, digest) = outputs[0]
    if name.rpartition("/")[2] != path.rpartition("/")[2]:
        run.add("damaged", beside, f"is the manifest of {name[:200]!r}")
    if storage.exists(path):
        run.checks.append(Check(path, size, digest, look=_look(path, content)))
    else:
        run.add("missing", path, "its manifest is there, the file is not")
    if inputs:
        for key in ("inputs", "pool", "pool_files"):
            input_checks(run, content.get(key), digests=digests)
    return run


def _look(path: str, content: dict[str, Any]) -> Callable[[], str] | None:
    """What to look at in a file whose bytes are right."""
    options = content.get("options")
    multiset = bool(options.get("multiset")) if isinstance(options, dict) else False
    count = content.get("uids")
    command = content.get("command")
    if command in ("select", "filter", "norm-sim-d", "uids") and path.endswith(".npy"):
        rows = count if isinstance(count, int) else None
        return functools.partial(verify_contents.subset_differs, path, rows=rows, multiset=multiset)
    if command == "embed" and path.endswith(".npz") and isinstance(content.get("pairs"), int):
        return functools.partial(verify_contents.npz_differs, path, content["pairs"])
    if command == "evaluate":
        return functools.partial(_figures_differ, path, content.get("figures"))
    return None


def _figures_differ(path: str, figures: object) -> str:
    try:
        found = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return "" if found == figures else "its figures are not those of its manifest"
