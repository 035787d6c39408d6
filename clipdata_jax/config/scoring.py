"""Options of `score` and `norm-sim-d`, which work on a pool's embeddings."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from typing import Annotated, Literal, get_args

import tyro

from clipdata_jax.config.base import (
    IDENTIFIER,
    NONE,
    File,
    Folder,
    Profile,
    StopAfter,
    Workers,
    as_tuple,
    name_advice,
    require,
    require_positive,
    require_stop_after,
    require_temperature,
    split_assignment,
    unset,
)
from clipdata_jax.errors import InputError, OnBad

ScoreName = Literal["clip_score", "neg_clip_loss", "norm_sim", "head"]
_OF_IMAGES = ("norm_sim", "head")
Division = Literal["group", "shard"]
Sizes = Annotated[int | tuple[int, ...], tyro.conf.arg(metavar="INT [INT ...]")]
Temperatures = Annotated[
    float | tuple[float, ...] | None,
    tyro.conf.arg(metavar="FLOAT [FLOAT ...]"),
    unset("from the pool's manifest, else 0.01"),
]
_MAX_RATIO = 16  # of the largest |B| to the smallest in one pass: beyond it, cells take too much memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegClipLoss:
    """negCLIPLoss (s-CLIPLoss): the cosine, minus how well image and caption match the rest of their batch."""

    batch_size: Sizes = 32_768
    """Pairs per batch, |B|; several values give a column each, from one pass. A smaller pool is one batch."""
    repeats: int = 40
    """Random divisions into batches to average over, K."""
    group: int = 8
    """Distinct pairs compared in one pass, in batches of the largest |B|, m: more lowers the noise and costs time."""
    temperature: Temperatures = None
    """1/exp(logit scale) of the model, 0.01 for OpenAI's CLIP; several values give a column each."""
    division: Division = "group"
    """"group": all K from one pass over m batches; "shard": K divisions per file in K passes, as in the paper."""
    mix_shards: Annotated[int | None, tyro.conf.arg(metavar="INT"), NONE] = None
    """For shards of one topic each: mix the pairs of this many shards into groups at random; costs memory."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "repeats", "group")
        sizes, temperatures = self.batch_sizes(), self.temperatures() or (1.0,)
        for values, flag in ((sizes, "batch_size"), (temperatures, "temperature")):
            require(bool(values), flag, values, "at least one number")
        require(len(set(sizes)) == len(sizes), "batch_size", self.batch_size, "each size once")
        for t in temperatures:
            require_temperature(t)
        named = {in_thousandths(t) for t in temperatures}
        require(len(named) == len(temperatures), "temperature", self.temperature, "each temperature once")
        require(self.division in get_args(Division), "division", self.division, '"group" or "shard"')
        if self.division == "group":
            fits = max(sizes) <= _MAX_RATIO * min(sizes)
            least = f"sizes within a factor of {_MAX_RATIO}; score the others in a run of their own"
            require(fits, "batch_size", self.batch_size, least)
        if self.mix_shards is not None:
            require_positive(self, "mix_shards")
            only = "no value with --division shard, which cuts each file by itself"
            require(self.division == "group", "mix_shards", self.mix_shards, only)

    def batch_sizes(self) -> tuple[int, ...]:
        """Each |B|."""
        return as_tuple(self.batch_size)

    def temperatures(self) -> tuple[float, ...] | None:
        """Each temperature, or None to take the one in the embeddings' manifest."""
        return None if self.temperature is None else as_tuple(self.temperature)


def in_thousandths(temperature: float) -> str:
    """1,000 times a temperature, as in a column's name: 10 for 0.01, 12p5 for 0.0125."""
    return f"{1000 * temperature:.6f}".rstrip("0").rstrip(".").replace(".", "p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormSim:
    """NormSim: the p-norm of an image's cosines with a set of target images."""

    target: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=PATH..."), NONE] = ()
    """Target sets: embeddings (.npy, .npz, output of `embed`) or images (a folder, tars, tfds:name/split)."""
    target_model: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), NONE] = None
    """The pool's model, to embed target images with."""
    target_cache: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), unset("~/.cache/clipdata/targets")] = None
    """Cache for embeddings of target images."""
    union: Annotated[str | None, tyro.conf.arg(metavar="NAME"), NONE] = None
    """Name of a further column: NormSim to all targets together."""
    p: tuple[float, ...] = (math.inf,)
    """Norms to compute, a column each: inf (nearest target), 2 (second moment), or any number of at least 1."""
    signed: bool = False
    """For p = inf: the largest cosine instead of the largest absolute one."""
    nearest: bool = False
    """For p = inf: a further column norm_sim_inf_NAME_row, the row of the nearest target image."""

    def __post_init__(self) -> None:
        for p in self.p:
            require(1 <= p < 1e6 or p == math.inf, "p", p, "a number from 1 to 999,999, or inf")
        # Six digits are in a column's name.
        require(len({f"{p:g}" for p in self.p}) == len(self.p), "p", self.p, "each number once")
        names = [split_assignment(text, "target")[0] for text in self.target]
        require(len(set(names)) == len(names), "target", self.target, "each name once")
        if self.nearest:
            good = not {f"{name}_row" for name in names} & {*names, self.union}
            require(good, "target", self.target, "names that don't collide with the columns NAME_row of --nearest")
        if self.union is not None:
            good = bool(IDENTIFIER.fullmatch(self.union)) and self.union not in names
            expected = "letters, digits and _, and not the name of a target"
            require(good, "union", self.union, f"{expected}{name_advice(self.union)}")
        for name in ("signed", "nearest"):
            if getattr(self, name):
                require(math.inf in self.p, "p", self.p, f"inf among the norms, for --{name}")

    def targets(self) -> dict[str, str]:
        """Name -> path."""
        return dict(split_assignment(text, "target") for text in self.target)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Scores every pair of a pool from its embeddings, once; any rule can be applied to the scores later."""

    pool: tyro.conf.Positional[Folder]
    """Folder of metadata shards (parquet and npz, as in DataComp), or of clip-retrieval embeddings."""
    out: Folder
    """Output folder of the score table: one .parquet file per shard, one row per pair."""
    scores: Annotated[tuple[ScoreName, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Scores to compute; by default clip_score, neg_clip_loss, and norm_sim and head if a target or a head is given."""
    tag: Annotated[str | None, tyro.conf.arg(metavar="TAG"), NONE] = None
    """The model whose embeddings to use, if the pool has several, e.g. b32 or l14."""
    image_key: Annotated[str | None, tyro.conf.arg(metavar="NAME"), unset("<tag>_img")] = None
    """The array of image embeddings in each .npz, if it has another name than <tag>_img."""
    text_key: Annotated[str | None, tyro.conf.arg(metavar="NAME"), unset("<tag>_txt")] = None
    """The array of caption embeddings, likewise; needed with --image-key, but for norm_sim alone."""
    uid_column: Annotated[str, tyro.conf.arg(metavar="NAME")] = "uid"
    """The metadata's column of ids, of which uids are made: text, integers or UUIDs."""
    neg_clip_loss: NegClipLoss = NegClipLoss()
    norm_sim: NormSim = NormSim()
    head: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE..."), NONE] = ()
    """Columns of linear or small MLP heads on image embeddings: .safetensors, .npz, such as LAION's aesthetic one."""
    seed: int = 0
    """Seed of the random divisions into batches."""
    normalize: bool = False
    """Scale embeddings to unit norm instead of masking those that aren't."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N"), NONE] = None
    """Score only the first N pairs of the pool, for a quick try."""
    where: Annotated[str | None, tyro.conf.arg(metavar="FILE"), NONE] = None
    """Score only the pairs of a subset file; the others get null. Not with neg_clip_loss, which needs all pairs."""
    force: bool = False
    """Score even if a target was embedded by another model than the pool."""
    max_bad_rows: float = 0.01
    """Largest share of bad embeddings (not finite, zero, not unit) to mask before the run stops."""
    on_bad: OnBad = "stop"
    """Broken shards: "stop" with a message, or "skip" and list them in the manifest."""
    profile: Profile = None
    """Trace a few units with `jax.profiler` into this local folder, for TensorBoard or Perfetto."""
    stop_after: StopAfter = None
    """Do N units, then stop with status 75. Run the command without it to continue; `plan` extrapolates from them."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_stop_after(self.stop_after)
        require(0 <= self.max_bad_rows <= 1, "max_bad_rows", self.max_bad_rows, "a share between 0 and 1")
        if self.limit is not None:
            require_positive(self, "limit")
        if self.text_key is not None:
            require(self.image_key is not None, "text_key", self.text_key, "no value without --image-key")
        if "norm_sim" in self.scores and not self.norm_sim.target:
            raise InputError("--scores norm_sim needs a target: add --target NAME=PATH")
        if "head" in self.scores and not self.head:
            raise InputError("--scores head needs a head: add --head NAME=FILE")
        names = [split_assignment(text, "head")[0] for text in self.head]
        good = len(set(names)) == len(names) and not {"clip_score", "neg_clip_loss"} & set(names)
        good &= all(IDENTIFIER.fullmatch(name) and not name.startswith("norm_sim_") for name in names)
        require(good, "head", self.head, "each name once: letters, digits and _, and not that of another column")
        if self.where is not None and "neg_clip_loss" in self.chosen():
            raise InputError(
                "--where doesn't work with neg_clip_loss, whose negatives are the whole pool; add --scores norm_sim"
            )

    @property
    def by_text(self) -> bool:
        """Whether a score looks at the captions' embeddings."""
        return not set(self.chosen()) <= set(_OF_IMAGES)

    def chosen(self) -> tuple[str, ...]:
        """The scores to compute."""
        if self.scores:
            return self.scores
        given = {"norm_sim": self.norm_sim.target, "head": self.head}
        return ("clip_score", "neg_clip_loss", *(name for name, values in given.items() if values))

    def heads(self) -> dict[str, str]:
        """Name of the column -> path of the head."""
        return dict(split_assignment(text, "head") for text in self.head)


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
    """Number of pairs to keep; or give --fraction."""
    steps: int = 500
    """Number of steps in which to drop the others, equally many in each, rounded up."""
    init: Literal["pool", "survivors"] = "pool"
    """The pairs whose second moment the first step uses: the whole pool, as in the paper's code, or the survivors."""
    tag: Annotated[str | None, tyro.conf.arg(metavar="TAG"), NONE] = None
    """The model whose embeddings to use, if the pool has several, e.g. b32 or l14."""
    image_key: Annotated[str | None, tyro.conf.arg(metavar="NAME"), unset("<tag>_img")] = None
    """The array of image embeddings in each .npz, if it has another name than <tag>_img."""
    uid_column: Annotated[str, tyro.conf.arg(metavar="NAME")] = "uid"
    """The metadata's column of ids, of which uids are made: text, integers or UUIDs."""
    normalize: bool = False
    """Scale embeddings to unit norm instead of leaving out those that aren't."""
    max_bad_rows: float = 0.01
    """Largest share of bad embeddings (not finite, zero, not unit) to leave out before the run stops."""
    on_bad: OnBad = "stop"
    """Broken shards: "stop" with a message, or "skip" and list them in the manifest."""
    profile: Profile = None
    """Trace a few steps with `jax.profiler` into this local folder, for TensorBoard or Perfetto."""
    stop_after: StopAfter = None
    """Do N steps, then stop with status 75. Run the command without it to continue; `plan` extrapolates from them."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_stop_after(self.stop_after)
        if (self.fraction is None) == (self.count is None):
            raise InputError("give either --fraction or --count, the pairs to keep")
        if self.fraction is not None:
            require(0 < self.fraction < 1, "fraction", self.fraction, "a share above 0 and below 1")
        if self.count is not None:
            require_positive(self, "count")
        require_positive(self, "steps")
        if self.workers.worker is not None:
            raise InputError("--worker: the steps of norm-sim-d need all processes at once; use --coordinator")
        require(0 <= self.max_bad_rows <= 1, "max_bad_rows", self.max_bad_rows, "a share between 0 and 1")

    def keep(self, pairs: int) -> int:
        """Number of pairs to keep of a pool of `pairs`; a share is rounded down."""
        return self.count if self.count is not None else int(Decimal(str(self.fraction)) * pairs)
