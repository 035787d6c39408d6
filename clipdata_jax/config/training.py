"""Options of `train`, `evaluate` and `demo`."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import tyro

from clipdata_jax.config.base import (
    NONE,
    File,
    Folder,
    Profile,
    StopAfter,
    Tars,
    Workers,
    require,
    require_positive,
    require_some,
    require_stop_after,
    unset,
)
from clipdata_jax.config.reading import Reading, Sources
from clipdata_jax.errors import InputError, OnBad


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a small CLIP on image-text pairs; a stopped run resumes exactly where it was."""

    sources: tyro.conf.Positional[Sources]
    """Pairs to train on: tars ("{000..099}.tar", "*.tar", folders), parquet, tables, tfds:name/split, as for embed."""
    out: Folder
    """Folder for checkpoints and the final model, in transformers' layout."""
    tokenizer: Folder
    """Folder with CLIP tokenizer files, such as a checkpoint."""
    subset: Annotated[str | None, tyro.conf.arg(metavar="FILE"), unset("all pairs")] = None
    """Subset file (.npy) of the pairs to train on."""
    reading: Reading = Reading()
    steps: int = 2_000
    """Optimiser steps."""
    batch_size: int = 256
    """Pairs per contrastive batch, over all devices."""
    learning_rate: float = 1e-3
    """Peak learning rate: linear warm-up, then cosine decay to zero."""
    warmup: Annotated[int | None, tyro.conf.arg(metavar="INT"), unset("100, at most a tenth of --steps")] = None
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """AdamW weight decay of matrices; gains, biases and the logit scale have none."""
    image_size: int = 64
    """Side of the square images, in pixels."""
    patch_size: int = 8
    """Side of a patch, in pixels; must divide --image-size."""
    width: int = 128
    """Width of both towers."""
    layers: int = 4
    """Layers of each tower."""
    heads: int = 4
    """Attention heads of each tower."""
    embed_dim: int = 128
    """Dimension of the shared embedding space."""
    context_length: int = 32
    """Tokens per caption, start and end tokens included; longer captions are cut."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the initial weights and the order of the pairs."""
    on_bad: OnBad = "stop"
    """Broken tars, images and captions: "stop" with a message, or "skip" and list them in the manifest."""
    profile: Profile = None
    """Trace a few steps with `jax.profiler` into this local folder, for TensorBoard or Perfetto."""
    stop_after: StopAfter = None
    """Do N steps, then stop with status 75. Run the command without it to continue; `plan` extrapolates from them."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_stop_after(self.stop_after)
        require_some(self, "sources", "tar, folder of tars, table or tfds:name/split")
        require_positive(
            self, "steps", "batch_size", "image_size", "patch_size", "width", "layers", "heads", "embed_dim",
            "checkpoint_every",
        )  # fmt: skip
        require(self.image_size % self.patch_size == 0, "patch_size", self.patch_size, "a divisor of --image-size")
        require(self.width % self.heads == 0, "heads", self.heads, "a divisor of --width")
        require(self.context_length >= 3, "context_length", self.context_length, "at least 3")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2: the loss contrasts pairs")
        require(0 <= self.warmup_steps() < self.steps, "warmup", self.warmup, "fewer steps than --steps")
        good = math.isfinite(self.learning_rate) and self.learning_rate > 0
        require(good, "learning_rate", self.learning_rate, "a number above 0")

    def warmup_steps(self) -> int:
        """The steps of linear warm-up, as given or by default."""
        return min(100, self.steps // 10) if self.warmup is None else self.warmup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluates a CLIP model on webdataset tars: zero-shot classification and image-text retrieval.

    In retrieval a caption of the same text as one of the image's own is right too. Any other tie with a wrong answer
    counts as wrong, and the result has their number. In a folder whose dataset_type.txt says "retrieval", as in
    CLIP_benchmark, each line of a .txt is a caption.
    """

    model: tyro.conf.Positional[Folder]
    """Folder of a CLIP checkpoint with its tokenizer files."""
    out: File
    """Output .json file of the metrics."""
    retrieval: Tars = ()
    """Tars of images with captions (.txt, or the list "captions" in .json): recall@1, 5 and 10; ties count as wrong."""
    classification: Tars = ()
    """Tars of labelled images: the class index in .cls, or the class name as the folder of the member."""
    classnames: Annotated[str | None, tyro.conf.arg(metavar="FILE"), NONE] = None
    """A .json list of class names, or a .txt of one a line, for --classification."""
    templates: Annotated[str | None, tyro.conf.arg(metavar="FILE"), unset('"a photo of a {c}."')] = None
    """A .json list of prompts, or a .txt of one a line, with "{c}" for the class."""
    batch_size: int = 256
    """Images per device and step."""
    on_bad: OnBad = "stop"
    """Broken tars and images: "stop" with a message, or "skip" and list them in the result."""
    overwrite: bool = False
    """Replace the output file, whatever it is. Otherwise only one of the same command and options is replaced."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")
        if not (self.retrieval or self.classification):
            raise InputError("nothing to evaluate: give --retrieval TARS, or --classification TARS --classnames FILE")
        if self.classification and not self.classnames:
            raise InputError("--classification needs --classnames FILE, a JSON list of class names")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Draws a pool of images with good and bad captions, and runs the whole pipeline on it."""

    out: Folder = "demo-output"
    """Folder for everything the demo writes."""
    pairs: int = 6_000
    """Pairs in the pool."""
    keep: float = 0.5
    """Share of the pool that each method keeps; half of the drawn pairs are sound."""
    seed: int = 0
    """Seed of the drawn pool and the scores."""
    train: bool = False
    """Then train small models on random and on selected pairs, three seeds each, and compare them."""
    train_steps: int = 300
    """Optimiser steps for each of these models."""

    def __post_init__(self) -> None:
        require(self.pairs >= 200, "pairs", self.pairs, "at least 200")
        good = 0 < self.keep <= 1 and int(self.keep * self.pairs) >= 1
        require(good, "keep", self.keep, "a share above 0, at most 1, that keeps at least one pair")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require_positive(self, "train_steps")
