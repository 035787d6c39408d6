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

    Inputs are looked for on their recorded way from the output, so that both may have moved together, and then by their
    absolute path. Records may come from someone else: local inputs that they name are read, those in buckets and on web
    servers only if the outputs are stored there too, or if --stores allows it.
    """

    runs: tyro.conf.Positional[_Runs]
    """Folders written by embed, score, reshard or train, and files with a .manifest.json next to them."""
    pool: PoolCheck = "digest"
    """How to check a run's inputs: by "digest", which reads all of them, by "size", or "no"."""
    stores: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL..."), NONE] = ()
    """Buckets and web servers, e.g. s3://pool-bucket, that may be read where records name them."""
    moved: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FROM=TO..."), NONE] = ()
    """Folders of inputs that are elsewhere now. Inputs that moved together with the outputs are found without."""
    threads: int = 0
    """Threads that read and hash; 0 means two per core."""

    def __post_init__(self) -> None:
        require_some(self, "runs", "folder or file that a command wrote")
        for store in self.stores:
            require("://" in store, "stores", store, "an address such as s3://pool-bucket")
        for move in self.moved:
            old, _, new = move.partition("=")
            require(bool(old and new), "moved", move, "FROM=TO: a folder as the records name it, and where it is now")
        require(self.threads >= 0, "threads", self.threads, "0 or more")

    def moves(self) -> dict[str, str]:
        """The folders of inputs, as recorded -> where they are now."""
        pairs = (move.partition("=") for move in self.moved)
        return {old.rstrip("/"): new.rstrip("/") for old, _, new in pairs}
