"""Folders that a command fills, and whether one is finished."""

from __future__ import annotations

import json

from clipdata_jax.errors import InputError
from clipdata_jax.storage.paths import Folder

# In a folder they begin with "_": readers of parquet folders (pandas, pyarrow, Spark) pass over such names.
PLAN, MANIFEST, TIMES, TRACE = "_plan.json", "_manifest.json", "_run.jsonl", "_trace.jsonl"


def beside(path: str, record: str) -> str:
    """Returns the name of a record of a file, which lies beside it.

    >>> beside("subset.npy", MANIFEST)
    'subset.npy.manifest.json'
    """
    return f"{path}.{record.removeprefix('_')}"


def check_finished(folder: Folder) -> None:
    """Checks that no run began a folder without finishing it; folders of other tools pass.

    Raises:
      InputError: it has a plan and no manifest, so part of the results may be missing.

    >>> check_finished(Folder("anything"))
    """
    if folder.exists(PLAN) and not folder.exists(MANIFEST):
        raise InputError(
            f"{folder}: the run that fills it isn't finished; run its command again to finish it, then this one"
        )


def recorded_sizes(folder: Folder) -> dict[str, int]:
    """Returns the sizes in bytes that a run's manifest records for its files; {} without a valid manifest.

    >>> recorded_sizes(Folder("anything"))
    {}
    """
    if not folder.exists(MANIFEST):
        return {}
    try:
        outputs = json.loads(folder.read_bytes(MANIFEST))["outputs"]
        return {name: entry["bytes"] for name, entry in outputs.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
