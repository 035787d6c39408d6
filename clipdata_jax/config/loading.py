"""Config files: Python whose `get_config()` returns a `Run`. The one kind of input that is code."""

from __future__ import annotations

import os
import runpy

from clipdata_jax.config.run import Run
from clipdata_jax.errors import InputError


def load_run(path: str) -> Run:
    """What a config file's `get_config()` returns.

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
        raise InputError(
            f"--config {path}: has no function get_config(); it must return a clipdata_jax.config.Run"
        )
    run = namespace["get_config"]()
    if not isinstance(run, Run):
        raise InputError(
            f"--config {path}: get_config() returned {type(run).__name__}, expected a config.Run"
        )
    return run
