"""Config files: Python whose `get_config()` returns a `Run`; the one kind of input that is executed."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import sys
import traceback

from clipdata_jax.config.base import did_you_mean
from clipdata_jax.config.comparing import CompareModels
from clipdata_jax.config.deduplicating import Dedup
from clipdata_jax.config.embedding import Embed
from clipdata_jax.config.evaluating import Evaluate
from clipdata_jax.config.exporting import Export
from clipdata_jax.config.filtering import Entries, Filter
from clipdata_jax.config.scoring import NormSimD, Score
from clipdata_jax.config.selecting import Report, Reshard, Select, Uids
from clipdata_jax.config.training import Demo, Train
from clipdata_jax.config.verifying import Verify
from clipdata_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The options of each command that a config file sets, as its `get_config()` returns them."""

    embed: Embed | None = None
    score: Score | None = None
    entries: Entries | None = None
    dedup: Dedup | None = None
    select: Select | None = None
    filter: Filter | None = None
    norm_sim_d: NormSimD | None = None
    uids: Uids | None = None
    reshard: Reshard | None = None
    report: Report | None = None
    export: Export | None = None
    train: Train | None = None
    evaluate: Evaluate | None = None
    compare: CompareModels | None = None
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
        made = namespace["get_config"]() if "get_config" in namespace else None
    except InputError as error:
        raise InputError(f"--config {path}: {error}") from error
    except OSError as error:
        raise InputError(f"--config {path}: can't be read ({error.strerror}); check the path") from error
    except (SyntaxError, ImportError) as error:
        raise InputError(f"--config {path}: can't be run ({error}); fix it") from error
    except Exception as error:
        raise InputError(f"--config {path}: {_in_words(path, error)}") from error
    if "get_config" not in namespace:
        raise InputError(f"--config {path}: has no function get_config(); it must return a clipdata_jax.config.Run")
    if not isinstance(made, Run):
        raise InputError(f"--config {path}: get_config() returned {type(made).__name__}, expected a config.Run")
    return made


def _in_words(path: str, error: Exception) -> str:
    """What went wrong in a config file, with its line."""
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = f"line {own[-1]}: " if own else ""
    if match := re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)):
        kind = getattr(sys.modules["clipdata_jax.config"], match[1], None)
        known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        return f"{line}{match[1]} has no option {match[2]!r}{did_you_mean(match[2], known)}"
    if match := re.match(r"(\w+)\.__init__\(\) missing \d+ required keyword-only arguments?: (.*)", str(error)):
        return f"{line}{match[1]} needs {match[2]}"
    return f"{line}{type(error).__name__}: {error}; fix it"
