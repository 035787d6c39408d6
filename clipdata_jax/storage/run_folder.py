"""Folders that a command of ours fills: whether one is finished."""

from __future__ import annotations

import json

from clipdata_jax.errors import InputError
from clipdata_jax.storage import paths

PLAN, MANIFEST, TRACE, TIMES = "plan.json", "manifest.json", "trace.jsonl", "run.jsonl"


def check_finished(folder: str) -> None:
    """Refuses a folder that a run of ours began and has not finished; other tools' folders pass.

    Raises:
      InputError: there is a plan and no manifest yet, so part of the results may be missing.
    """
    if paths.exists(paths.join(folder, PLAN)) and not paths.exists(paths.join(folder, MANIFEST)):
        raise InputError(
            f"{folder}: the run that fills it isn't finished; give its command again to finish it, then this one"
        )


def recorded_sizes(folder: str) -> dict[str, int]:
    """File -> bytes, as the manifest of a folder that a run filled has them; {} where there is no such manifest."""
    path = paths.join(folder, MANIFEST)
    if not paths.exists(path):
        return {}
    try:
        outputs = json.loads(paths.read_bytes(path))["outputs"]
        return {name: entry["bytes"] for name, entry in outputs.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
