"""Options of `norm-sim-d`: the selection that needs no target."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import (
    NONE,
    File,
    Folder,
    OnBad,
    Profile,
    Workers,
    require,
    require_positive,
    unset,
)
from clipdata_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormSimD:
    """Selects a subset by NormSim_2-D, which needs no target: drops, step by step, the pairs least like the rest.

    Each step scores the remaining pairs by f'Sf, S being the second moment of their image embeddings, and drops the
    lowest. Pass the pairs that a first rule kept (`select`) as --survivors.
    """

    pool: tyro.conf.Positional[Folder]
    """Folder of metadata shards (parquet and npz, as in DataComp; image embeddings suffice), or of clip-retrieval."""
    out: File
    """The .npy file to write: uids as u8,u8, sorted, unique. Work files are kept next to it until it is done."""
    survivors: Annotated[str | None, tyro.conf.arg(metavar="FILE"), unset("the whole pool")] = None
    """A .npy file of uids to start from, usually selected by negCLIPLoss."""
    fraction: Annotated[float | None, tyro.conf.arg(metavar="FLOAT"), NONE] = None
    """Share of the pool (not of the survivors) to keep, e.g. 0.2. Give this or --count."""
    count: Annotated[int | None, tyro.conf.arg(metavar="INT"), NONE] = None
    """Number of pairs to keep. Give this or --fraction."""
    steps: int = 500
    """Number of steps in which to drop the others, equally many in each, rounded up."""
    init: Literal["pool", "survivors"] = "pool"
    """The pairs whose second moment the first step uses: the whole pool, as in the paper's code, or the survivors."""
    tag: Annotated[str | None, tyro.conf.arg(metavar="TAG"), NONE] = None
    """The model whose embeddings to use, if the pool has several, e.g. b32 or l14."""
    normalize: bool = False
    """Scale embedding rows that are not of unit norm instead of leaving them out."""
    max_bad_rows: float = 0.01
    """Share of rows that may be left out (not finite, zero, not unit) before the run stops."""
    on_bad: OnBad = "stop"
    """A broken shard: "stop" with a message, or "skip" it and list it in the manifest."""
    profile: Profile = None
    """Trace a few steps with `jax.profiler` into this local folder, for TensorBoard or Perfetto."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise InputError("how much to keep: give either --fraction or --count")
        if self.fraction is not None:
            require(0 < self.fraction < 1, "fraction", self.fraction, "a share above 0 and below 1")
        if self.count is not None:
            require_positive(self, "count")
        require_positive(self, "steps")
        if self.workers.worker is not None:
            raise InputError("--worker: a step needs all processes at once; use --coordinator instead")
        require(0 <= self.max_bad_rows <= 1, "max_bad_rows", self.max_bad_rows, "a share between 0 and 1")

    def keep(self, pairs: int) -> int:
        """How many pairs to keep of a pool of so many: a share is rounded down."""
        return self.count if self.count is not None else int(Decimal(str(self.fraction)) * pairs)
