"""Options of `score`: what is computed of a pool's embeddings."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import (
    NONE,
    Folder,
    OnBad,
    Workers,
    require,
    require_positive,
    split_assignment,
)
from clipdata_jax.errors import InputError

ScoreName = Literal["clip_score", "neg_clip_loss", "norm_sim"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegClipLoss:
    """negCLIPLoss (s-CLIPLoss): the cosine less how well picture and caption match the rest of their batch."""

    batch_size: int = 32_768
    """Pairs in one batch, |B|. A smaller pool is one batch."""
    repeats: int = 10
    """Random divisions into batches that are averaged, K."""
    group: int = 4
    """Batches' worth of distinct pairs that one pass compares, m: what lowers the noise, and what costs."""
    temperature: float | None = None
    """The teacher's temperature 1/exp(logit_scale); default: the embeddings' manifest says it, else 0.01."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "repeats", "group")
        if self.temperature is not None:
            good = math.isfinite(self.temperature) and self.temperature > 0
            require(good, "temperature", self.temperature, "a number above 0 (OpenAI's CLIP models: 0.01)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormSim:
    """NormSim: the p-norm of a picture's cosines with a set of target pictures."""

    target: Annotated[tuple[str, ...], NONE] = ()
    """Target picture embeddings, NAME=PATH: a .npy (rows, dim), a .npz, or what `embed --images-only` wrote."""
    p: tuple[float, ...] = (math.inf,)
    """The norms to compute, each a column: inf (nearest target), 2 (second moment), any number of at least 1."""

    def __post_init__(self) -> None:
        for p in self.p:
            require(p >= 1, "p", p, "a number of at least 1, or inf")
        names = [split_assignment(text, "target")[0] for text in self.target]
        require(len(set(names)) == len(names), "target", self.target, "each name once")

    def targets(self) -> dict[str, str]:
        """Name -> path."""
        return dict(split_assignment(text, "target") for text in self.target)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Scores every pair of a pool from its embeddings, once; any subset is cut from the scores later."""

    pool: tyro.conf.Positional[Folder]
    """Folder of metadata shards (parquet beside npz, as DataComp's), or a clip-retrieval embedding folder."""
    out: Folder
    """Folder to write the score table to: one parquet part per shard, one row per pair."""
    scores: Annotated[tuple[ScoreName, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Which scores; by default clip_score, neg_clip_loss, and norm_sim where a target is given."""
    tag: str | None = None
    """Which model's embeddings, where the pool has several, e.g. b32 or l14."""
    neg_clip_loss: NegClipLoss = NegClipLoss()
    norm_sim: NormSim = NormSim()
    seed: int = 0
    """Seed of the random divisions."""
    normalize: bool = False
    """Scale embedding rows that are not of unit norm instead of masking them out."""
    max_bad_rows: float = 0.01
    """Share of rows that may be masked (not finite, zero, not unit) before the run stops."""
    on_bad: OnBad = "stop"
    """A broken shard: "stop" with a message, or "skip" it and list it in the manifest."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require(0 <= self.max_bad_rows <= 1, "max_bad_rows", self.max_bad_rows, "a share between 0 and 1")
        if "norm_sim" in self.scores and not self.norm_sim.target:
            raise InputError("--scores norm_sim needs a target: add --target NAME=PATH")

    def chosen(self) -> tuple[str, ...]:
        """The scores to compute."""
        if self.scores:
            return self.scores
        return ("clip_score", "neg_clip_loss", *(("norm_sim",) if self.norm_sim.target else ()))
