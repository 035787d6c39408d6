"""What every command takes, as frozen dataclasses that check themselves. Imports no jax.

The command line is made from these classes, and a `--config` file returns a `Run` of them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Annotated, Literal

import tyro

from clipdata_jax.errors import InputError

OnBad = Literal["stop", "skip"]
Folder = Annotated[str, tyro.conf.arg(metavar="FOLDER")]
File = Annotated[str, tyro.conf.arg(metavar="FILE")]
Tars = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TARS...")]
Tables = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TABLES...")]
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _require(condition: bool, flag: str, found: object, expected: str) -> None:
    if not condition:
        raise InputError(f"--{flag.replace('_', '-')} is {found!r}, expected {expected}")


def _require_positive(options: object, *names: str) -> None:
    for name in names:
        for value in _as_tuple(getattr(options, name)):
            _require(value >= 1, name, value, "a whole number of at least 1")


def _as_tuple(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _require_some(options: object, name: str, what: str) -> None:
    if not getattr(options, name):
        raise InputError(f"nothing to work on: name at least one {what}")


def split_assignment(text: str, flag: str) -> tuple[str, str]:
    """`name=path` in two parts; the name must be an identifier, since it becomes a column's name."""
    name, sign, path = text.partition("=")
    _require(
        bool(sign and path and _IDENTIFIER.fullmatch(name)), flag, text, "NAME=PATH with a plain word as NAME"
    )
    return name, path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """Which share of the work this process takes."""

    worker: str | None = None
    """One of n independent processes, "i/n" with i from 0: each takes every n-th unit (Slurm arrays, spot machines)."""
    coordinator: str | None = None
    """host:port of process 0 of a `jax.distributed` run; found by itself on TPU pods, Slurm and GKE."""
    num_processes: int | None = None
    """How many processes the `jax.distributed` run has."""
    process_id: int | None = None
    """This process's index in it, from 0."""

    def __post_init__(self) -> None:
        if self.worker is not None:
            match = re.fullmatch(r"(\d+)/(\d+)", self.worker)
            _require(
                match is not None and int(match[1]) < int(match[2]),
                "worker",
                self.worker,
                '"i/n" with 0 <= i < n',
            )
            _require(
                self.coordinator is None, "coordinator", self.coordinator, "nothing when --worker is given"
            )
        together = [value is None for value in (self.coordinator, self.num_processes, self.process_id)]
        if any(together) and not all(together):
            raise InputError(
                "--coordinator, --num-processes and --process-id belong together: give all three or none"
            )

    def share(self) -> tuple[int, int] | None:
        """(index, count) of `--worker i/n`, or None."""
        if self.worker is None:
            return None
        index, _, count = self.worker.partition("/")
        return int(index), int(count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
    """Computes the CLIP embeddings of every picture and caption of a pool.

    Writes one metadata shard (parquet and npz, as DataComp's) per tar.
    """

    tars: tyro.conf.Positional[Tars]
    """Webdataset tars: files, folders of tars, "{000..099}.tar" or "*.tar" patterns."""
    model: Folder
    """Folder of a CLIP checkpoint in transformers' layout, its tokenizer files included."""
    out: Folder
    """Folder to write the metadata shards to."""
    images_only: bool = False
    """Embed pictures without captions, for a NormSim target: tars, or plain folders of pictures."""
    tag: str = "clip"
    """Name of the model in the columns: "<tag>_img", "<tag>_txt", "clip_<tag>_similarity_score"."""
    batch_size: int = 256
    """Pictures a device takes at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The number format the towers compute in; embeddings are stored as float16."""
    decoders: int = 0
    """Threads that decode pictures; 0 means one a core. The result does not depend on it."""
    on_bad: OnBad = "stop"
    """A broken tar, picture or caption: "stop" with a message, or "skip" it and list it in the manifest."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        _require_some(self, "tars", "tar or folder of tars")
        _require(bool(_IDENTIFIER.fullmatch(self.tag)), "tag", self.tag, "a plain word")
        _require_positive(self, "batch_size")
        _require(self.decoders >= 0, "decoders", self.decoders, "0 or more")


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
        _require_positive(self, "batch_size", "repeats", "group")
        if self.temperature is not None:
            good = math.isfinite(self.temperature) and self.temperature > 0
            _require(good, "temperature", self.temperature, "a number above 0 (OpenAI's CLIP models: 0.01)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormSim:
    """NormSim: the p-norm of a picture's cosines with a set of target pictures."""

    target: tuple[str, ...] = ()
    """Target picture embeddings, NAME=FILE with FILE a .npy (rows, dim) or a metadata shard's .npz."""
    p: tuple[float, ...] = (math.inf,)
    """The norms to compute, each a column: inf (nearest target), 2 (second moment), any number of at least 1."""

    def __post_init__(self) -> None:
        for p in self.p:
            _require(p >= 1, "p", p, "a number of at least 1, or inf")
        names = [split_assignment(text, "target")[0] for text in self.target]
        _require(len(set(names)) == len(names), "target", self.target, "each name once")

    def targets(self) -> dict[str, str]:
        """Name -> path."""
        return dict(split_assignment(text, "target") for text in self.target)


ScoreName = Literal["clip_score", "neg_clip_loss", "norm_sim"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Scores every pair of a pool from its embeddings, once; any subset is cut from the scores later."""

    pool: tyro.conf.Positional[Folder]
    """Folder of metadata shards (parquet beside npz, as DataComp's), or a clip-retrieval embedding folder."""
    out: Folder
    """Folder to write the score table to: one parquet part per shard, one row per pair."""
    scores: tuple[ScoreName, ...] = ()
    """Which scores; default: clip_score, neg_clip_loss, and norm_sim where a target is given."""
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
        _require(0 <= self.max_bad_rows <= 1, "max_bad_rows", self.max_bad_rows, "a share between 0 and 1")
        if "norm_sim" in self.scores and not self.norm_sim.target:
            raise InputError("--scores norm_sim needs a target: add --target NAME=FILE")

    def chosen(self) -> tuple[str, ...]:
        """The scores to compute."""
        if self.scores:
            return self.scores
        return ("clip_score", "neg_clip_loss", *(("norm_sim",) if self.norm_sim.target else ()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Select:
    """Cuts a subset from score tables by a rule, and writes its uids in DataComp's form."""

    scores: tyro.conf.Positional[Tables]
    """Score tables (folders that `score` wrote) of one pool; several join by part name and position."""
    rule: str
    """What to keep, e.g. "top(neg_clip_loss, 0.3) >> top(norm_sim_inf_in1k, 0.2)"."""
    out: File
    """The .npy file to write: uids as u8,u8, sorted, unique."""

    def __post_init__(self) -> None:
        _require_some(self, "scores", "score table")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reshard:
    """Writes tars that hold only the selected pairs, their members byte for byte as they were."""

    tars: tyro.conf.Positional[Tars]
    """The pool's webdataset tars: files, folders of tars, "{000..099}.tar" or "*.tar" patterns."""
    subset: File
    """The .npy file of selected uids (`select` writes it; DataComp's subset files work too)."""
    out: Folder
    """Folder to write the tars to."""
    on_bad: OnBad = "stop"
    """A broken tar: "stop" with a message, or "skip" it and list it in the manifest."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        _require_some(self, "tars", "tar or folder of tars")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Makes one HTML page that shows what was kept and dropped: counts, histograms, quadrants, pictures."""

    scores: tyro.conf.Positional[Tables]
    """Score tables of one pool."""
    subset: File
    """The .npy file of selected uids."""
    out: File
    """The .html file to write; it opens offline."""
    tars: Tars = ()
    """The pool's tars, for pictures and captions; without them the page has figures only."""
    title: str = "Data selection report"
    """The page's heading."""
    pictures: int = 6
    """Pictures in each row of the grids."""
    seed: int = 0
    """Seed of the choice of pictures."""

    def __post_init__(self) -> None:
        _require_some(self, "scores", "score table")
        _require_positive(self, "pictures")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a small CLIP contrastively on webdataset tars; a stopped run continues exactly where it was."""

    tars: tyro.conf.Positional[Tars]
    """Webdataset tars to train on: files, folders of tars, or patterns."""
    out: Folder
    """Folder for checkpoints and, at the end, the model in transformers' layout."""
    tokenizer: Folder
    """Folder with CLIP tokenizer files, e.g. a checkpoint's."""
    subset: str | None = None
    """A .npy file of uids: train on these pairs only."""
    steps: int = 2_000
    """Optimiser steps."""
    batch_size: int = 256
    """Pairs in one contrastive batch, over all devices."""
    learning_rate: float = 1e-3
    """Peak of the schedule: linear warm-up, then a cosine to zero."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices (not of gains, biases and the logit scale)."""
    image_size: int = 64
    """Side of the square pictures in pixels."""
    patch_size: int = 8
    """Side of a patch in pixels; it must divide the image size."""
    width: int = 128
    """Width of both towers."""
    layers: int = 4
    """Layers of each tower."""
    heads: int = 4
    """Attention heads of each tower."""
    embed_dim: int = 128
    """Dimension of the shared embedding space."""
    context_length: int = 32
    """Tokens of a caption, the start and end included; longer captions are cut."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the weights and of the order of the pairs."""
    on_bad: OnBad = "stop"
    """A broken tar, picture or caption: "stop" with a message, or "skip" it and list it in the manifest."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        _require_some(self, "tars", "tar or folder of tars")
        _require_positive(
            self, "steps", "batch_size", "image_size", "patch_size", "width", "layers", "heads", "embed_dim",
            "checkpoint_every",
        )  # fmt: skip
        _require(
            self.image_size % self.patch_size == 0, "patch_size", self.patch_size, "a divisor of --image-size"
        )
        _require(self.width % self.heads == 0, "heads", self.heads, "a divisor of --width")
        _require(self.context_length >= 3, "context_length", self.context_length, "at least 3")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2: the loss contrasts pairs")
        _require(0 <= self.warmup < self.steps, "warmup", self.warmup, "fewer steps than --steps")
        good = math.isfinite(self.learning_rate) and self.learning_rate > 0
        _require(good, "learning_rate", self.learning_rate, "a number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measures a CLIP model: zero-shot classification and image-text retrieval on webdataset tars."""

    model: tyro.conf.Positional[Folder]
    """Folder of a CLIP checkpoint, its tokenizer files included."""
    out: File
    """The .json file to write the figures to."""
    retrieval: Tars = ()
    """Tars of pictures with captions (.txt, or the list "captions" in .json): recall at 1, 5 and 10, both ways."""
    classification: Tars = ()
    """Tars of labelled pictures: class index in .cls, or class name as the folder of the member."""
    classnames: str | None = None
    """A .json file with the list of class names, for --classification."""
    templates: str | None = None
    """A .json file with the list of prompts, "{c}" standing for the class; default: "a photo of a {c}."."""
    batch_size: int = 256
    """Pictures a device takes at a time."""
    on_bad: OnBad = "stop"
    """A broken tar or picture: "stop" with a message, or "skip" it and list it in the result."""

    def __post_init__(self) -> None:
        _require_positive(self, "batch_size")
        if not (self.retrieval or self.classification):
            raise InputError(
                "nothing to evaluate: give --retrieval TARS, or --classification TARS --classnames FILE"
            )
        if self.classification and not self.classnames:
            raise InputError("--classification needs --classnames FILE, a JSON list of class names")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Draws a pool of pictures with sound and spoiled captions, and runs the whole job on it."""

    out: Folder = "demo-output"
    """Folder for everything the demo makes."""
    pairs: int = 6_000
    """Pairs in the pool."""
    keep: float = 0.5
    """Share of the pool that every method keeps; half of the drawn pairs are sound."""
    seed: int = 0
    """Seed of the drawn pool and of the scores."""
    train: bool = False
    """Afterwards train small models on random and on selected pairs, three seeds each, and compare them."""
    train_steps: int = 400
    """Optimiser steps of each of these models."""

    def __post_init__(self) -> None:
        _require(self.pairs >= 200, "pairs", self.pairs, "at least 200")
        _require(0 < self.keep <= 1, "keep", self.keep, "a share above 0, at most 1")
        _require_positive(self, "train_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a config file returns from `get_config()`: the options of each command that it sets."""

    embed: Embed | None = None
    score: Score | None = None
    select: Select | None = None
    reshard: Reshard | None = None
    report: Report | None = None
    train: Train | None = None
    evaluate: Evaluate | None = None
    demo: Demo | None = None
