"""Config files: Python whose `get_config()` returns a `Run`; the one kind of input that is executed."""

from __future__ import annotations

import dataclasses
import os
import runpy

from clipdata_jax.config.embedding import Embed
from clipdata_jax.config.exporting import Export
from clipdata_jax.config.filtering import Filter
from clipdata_jax.config.scoring import NormSimD, Score
from clipdata_jax.config.selecting import Report, Reshard, Select, Uids
from clipdata_jax.config.training import Demo, Evaluate, Train
from clipdata_jax.config.verifying import Verify
from clipdata_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The options of each command that a config file sets, as its `get_config()` returns them."""

    embed: Embed | None = None
    score: Score | None = None
    select: Select | None = None
    filter: Filter | None = None
    norm_sim_d: NormSimD | None = None
    uids: Uids | None = None
    reshard: Reshard | None = None
    report: Report | None = None
    export: Export | None = None
    train: Train | None = None
    evaluate: Evaluate | None = None
    verify: Verify | None = None
    demo: Demo | None = None


def load_run(path: str) -> Run:
    """Runs a config file; returns the `Run` of its `get_config()`.

    Raises:
      InputError: it can't be run, or returns something else.
    """
    if os.path.isdir(path):
        raise InputError(f"--config {path}: is a folder, expected a .py file")
    try:
        namespace = runpy.run_path(path)
    except OSError as error:
        raise InputError(f"--config {path}: can't be read ({error.strerror}); check the path") from error
    except (SyntaxError, ImportError) as error:
        raise InputError(f"--config {path}: can't be run ({error}); fix it") from error
    if "get_config" not in namespace:
        raise InputError(f"--config {path}: has no function get_config(); it must return a clipdata_jax.config.Run")
    run = namespace["get_config"]()
    if not isinstance(run, Run):
        raise InputError(f"--config {path}: get_config() returned {type(run).__name__}, expected a config.Run")
    return run
