"""Options of `verify`: whether what runs wrote is still what they wrote."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import require, require_some

PoolCheck = Literal["digest", "size", "no"]
_Runs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUNS...", help_behavior_hint="(at least one)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Checks that outputs are whole: parts against receipts and manifest, inputs against what was recorded of them.

    Names what is missing, doubled, damaged, changed, or foreign (files that no receipt knows), one a line, and exits
    with status 2 if there is anything. A run that isn't finished is checked as far as it went.
    """

    runs: tyro.conf.Positional[_Runs]
    """Folders that embed, score, reshard or train wrote, and files with a .manifest.json beside them."""
    pool: PoolCheck = "digest"
    """How to compare the inputs of a run with its records: by "digest", which reads all of them, by "size", or "no"."""
    stores: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL...")] = ()
    """Buckets and web servers whose files may be asked for where records name them as inputs, besides the outputs'
    own: s3://pool-bucket. Records may be a stranger's; files of this machine are read without."""
    threads: int = 0
    """Threads that read and take digests; 0 means two a core."""

    def __post_init__(self) -> None:
        require_some(self, "runs", "folder or file that a command wrote")
        require(self.threads >= 0, "threads", self.threads, "0 or more")
