"""Outputs that are one file with its manifest beside it: when they are replaced, and when they are done."""

from __future__ import annotations

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.runs.output import is_done
from clipdata_jax.runs.records import RunPlan


def check_replaceable(out: str, plan: RunPlan, *, overwrite: bool) -> None:
    """Checks that the one file that a command writes may be written: the rule for all commands that write one.

    Args:
      out: the file.
      plan: of this run.
      overwrite: whether it may replace any file, and not only what the same command wrote with the same options.

    Raises:
      InputError: something else is there.
    """
    if storage.is_folder(out):
        raise InputError(f"{out}: is a folder; --out names the file to write")
    if not overwrite:
        is_done(out, plan, ignore_inputs=True)
