"""Options of `sensitivity`: how far the settings of negCLIPLoss matter on a pool."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from clipdata_jax.config.base import (
    NONE,
    File,
    Folder,
    OnBad,
    require,
    require_positive,
    require_some,
    require_temperature,
)
from clipdata_jax.config.scoring import MOST_RATIO

_Sizes = Annotated[
    tuple[int, ...],
    tyro.conf.arg(metavar="INT [INT ...]", help_behavior_hint="(default: by the pool's size)"),
]
_Temperatures = Annotated[
    tuple[float, ...],
    tyro.conf.arg(
        metavar="FLOAT [FLOAT ...]", help_behavior_hint="(default: the model's, half and twice of it)"
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Shows on a sample of a pool how the settings of negCLIPLoss (K, m, |B|, t) change what is selected."""

    pool: tyro.conf.Positional[Folder]
    """Folder of metadata shards (parquet beside npz, as DataComp's), or a clip-retrieval embedding folder."""
    out: File
    """The .html page to write; its figures go beside it as .csv and .json."""
    fraction: float = 0.3
    """Share of the pairs that is selected, by negCLIPLoss alone."""
    repeats: tuple[int, ...] = (1, 2, 5, 10, 20)
    """Each K to try. While others vary, K is 10 if that is among them, else the largest."""
    group: tuple[int, ...] = (1, 2, 4, 8)
    """Each m to try, as far as the sample goes. While others vary, m is 4 if that is among them, else the largest."""
    batch_size: _Sizes = ()
    """Each |B| to try. While others vary it is the largest; m counts batches of it."""
    temperature: _Temperatures = ()
    """Each t to try. While others vary it is the first."""
    groups: int = 4
    """How large a sample to read: so many groups of the largest m and |B|."""
    tolerance: float = 0.01
    """Share of the selection that may differ between two seeds; decides which m is called enough."""
    tag: Annotated[str | None, tyro.conf.arg(metavar="TAG"), NONE] = None
    """Which model's embeddings, where the pool has several, e.g. b32 or l14."""
    seed: int = 0
    """The first of the two seeds that are compared; the other is the next number."""
    normalize: bool = False
    """Scale embedding rows that are not of unit norm instead of leaving them out."""
    on_bad: OnBad = "stop"
    """A broken shard: "stop" with a message, or "skip" it."""

    def __post_init__(self) -> None:
        require(self.out.endswith(".html"), "out", self.out, "the name of an .html file")
        for name in ("repeats", "group"):
            require_some(self, name, f"number for --{name}")
        require_positive(self, "repeats", "group", "batch_size", "groups")
        require(0 < self.fraction < 1, "fraction", self.fraction, "a share above 0 and below 1")
        require(0 <= self.tolerance <= 1, "tolerance", self.tolerance, "a share between 0 and 1")
        for t in self.temperature:
            require_temperature(t)
        if self.batch_size:
            fits = max(self.batch_size) <= MOST_RATIO * min(self.batch_size)
            require(fits, "batch_size", self.batch_size, f"sizes within a factor of {MOST_RATIO}")
