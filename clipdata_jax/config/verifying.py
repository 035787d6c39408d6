"""Options of `verify`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import NONE, require, require_some

PoolCheck = Literal["digest", "size", "no"]
_Runs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUNS...", help_behavior_hint="(at least one)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Checks that outputs are complete and undamaged, and that inputs are those that were recorded.

    Lists files that are missing, damaged, changed, foreign (without a receipt) or refused, one per line, and then exits
    with status 2. An unfinished run is checked as far as it went.

    Records may come from someone else: local inputs that they name are read, those in buckets and on web servers only
    if the outputs are stored there too, or if --stores allows it.
    """

    runs: tyro.conf.Positional[_Runs]
    """Folders written by embed, score, reshard or train, and files with a .manifest.json next to them."""
    pool: PoolCheck = "digest"
    """How to check a run's inputs: by "digest", which reads all of them, by "size", or "no"."""
    stores: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL..."), NONE] = ()
    """Buckets and web servers, e.g. s3://pool-bucket, that may be read where records name them."""
    threads: int = 0
    """Threads that read and hash; 0 means two per core."""

    def __post_init__(self) -> None:
        require_some(self, "runs", "folder or file that a command wrote")
        for store in self.stores:
            require("://" in store, "stores", store, "an address such as s3://pool-bucket")
        require(self.threads >= 0, "threads", self.threads, "0 or more")
