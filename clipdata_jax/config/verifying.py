"""Options of `verify`: whether what runs wrote is still what they wrote."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import NONE, require, require_some

PoolCheck = Literal["digest", "size", "no"]
_Runs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUNS...", help_behavior_hint="(at least one)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Checks that outputs are whole: parts against receipts and manifest, inputs against what was recorded of them.

    Names what is missing, doubled, damaged, changed, or foreign (files that no receipt knows), one a line, and exits
    with status 2 if there is anything. A run that isn't finished is checked as far as it went.

    Records may be a stranger's: inputs that they name on this machine are read, those in buckets and on web servers
    only where the outputs lie there too, or where --stores allows it.
    """

    runs: tyro.conf.Positional[_Runs]
    """Folders that embed, score, reshard or train wrote, and files with a .manifest.json beside them."""
    pool: PoolCheck = "digest"
    """How to compare the inputs of a run with its records: by "digest", which reads all of them, by "size", or "no"."""
    stores: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL..."), NONE] = ()
    """Buckets and web servers, e.g. s3://pool-bucket, whose files may be asked for where records name them."""
    threads: int = 0
    """Threads that read and take digests; 0 means two a core."""

    def __post_init__(self) -> None:
        require_some(self, "runs", "folder or file that a command wrote")
        for store in self.stores:
            require("://" in store, "stores", store, "an address such as s3://pool-bucket")
        require(self.threads >= 0, "threads", self.threads, "0 or more")
