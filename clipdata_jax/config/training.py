"""Options of `train` and `demo`."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import tyro

from clipdata_jax.config.base import (
    NONE,
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
from clipdata_jax.config.model_sizes import ModelSizes, TowerSizes, named_sizes
from clipdata_jax.config.reading import Reading, Sources
from clipdata_jax.config.recipes import RECIPES, Initial, Precision, Recipe, RecipeName, Sampling, datacomp_steps
from clipdata_jax.errors import InputError, OnBad

_INT = tyro.conf.arg(metavar="INT")
_Size = Annotated[int | None, _INT, unset("that of --arch")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """The model: a named architecture, a checkpoint to start from, or two towers of the same sizes."""

    arch: Annotated[str | None, tyro.conf.arg(metavar="NAME"), unset("the recipe's, else the sizes below")] = None
    """open_clip's name of an architecture, such as ViT-B-32 or ViT-B-32-quickgelu, of its own sizes."""
    init: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), unset("new weights")] = None
    """Start from the weights of this checkpoint, with its sizes, tokenizer and image settings."""
    initial: Annotated[Initial | None, tyro.conf.arg(metavar="{clip,open_clip}"), unset("the recipe's, else clip")] = (
        None
    )
    """New weights as CLIP's paper initialises them, or as open_clip does: its vision layers are PyTorch's."""
    image_size: _Size = None
    """Side of the square images, in pixels; 64 without --arch."""
    patch_size: _Size = None
    """Side of a patch, in pixels, a divisor of --image-size; 8 without --arch."""
    context_length: _Size = None
    """Tokens per caption, start and end tokens included; longer captions are cut. 32 without --arch."""
    width: Annotated[int | None, _INT, unset("128")] = None
    """Width of both towers."""
    layers: Annotated[int | None, _INT, unset("4")] = None
    """Layers of each tower."""
    heads: Annotated[int | None, _INT, unset("4")] = None
    """Attention heads of each tower."""
    embed_dim: Annotated[int | None, _INT, unset("128")] = None
    """Dimension of the shared embedding space."""

    def __post_init__(self) -> None:
        given = self.given_sizes()
        require_positive(self, *given)
        own = [name for name in ("width", "layers", "heads", "embed_dim") if name in given]
        if self.arch is not None:
            named_sizes(self.arch)
            for name in own:
                require(False, name, given[name], f"no value with --arch {self.arch}, which has its own")
        require((self.context_length or 3) >= 3, "context_length", self.context_length, "at least 3")
        require(self.init is None or self.initial is None, "initial", self.initial, "no value with --init")

    def given_sizes(self) -> dict[str, Any]:
        """The sizes that were given, by the names of their options."""
        names = ("image_size", "patch_size", "context_length", "width", "layers", "heads", "embed_dim")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def check_checkpoint(self, sizes: ModelSizes) -> None:
        """Raises InputError where the sizes that were given are not those of the checkpoint `--init`."""
        advice = "leave it out, or train new weights without --init"
        there: dict[str, set[int]] = {
            name: {getattr(sizes.vision, name), getattr(sizes.text, name)} for name in ("width", "layers", "heads")
        }
        for name, value in self.given_sizes().items():
            found = there.get(name) or {getattr(sizes, name)}
            if found != {value}:
                has = " and ".join(map(str, sorted(found)))
                raise InputError(f"--{name.replace('_', '-')} is {value}, but {self.init} has {has}; {advice}")
        if self.arch is not None and (lines := _differences(sizes, named_sizes(self.arch))):
            raise InputError(f"--arch is {self.arch!r}, but {self.init} has {', '.join(lines)}; {advice}")

    def sizes(self, recipe: Recipe | None) -> ModelSizes | None:
        """The sizes as given, the recipe's or by default; None if they are those of the checkpoint `--init`."""
        if self.init is not None:
            return None
        given = self.given_sizes()
        # Sizes that were given replace the recipe's architecture.
        own = not {"width", "layers", "heads", "embed_dim"}.isdisjoint(given)
        arch = self.arch or (None if recipe is None or own else recipe.arch)
        if arch is not None:
            return dataclasses.replace(named_sizes(arch), **given)
        width = given.pop("width", 128)
        tower = TowerSizes(width=width, layers=given.pop("layers", 4), heads=given.pop("heads", 4), mlp_width=4 * width)
        others = {"embed_dim": 128, "image_size": 64, "patch_size": 8, "context_length": 32, **given}
        return ModelSizes(vision=tower, text=tower, activation="quick_gelu", **others)


def _differences(sizes: ModelSizes, others: ModelSizes) -> list[str]:
    """The sizes that are not those of another model, apart from the images' and captions', in words."""
    ours, theirs = dataclasses.asdict(sizes), dataclasses.asdict(others)
    found = [
        f"{tower} {name} {ours[tower][name]}"
        for tower in ("vision", "text")
        for name in ours[tower]
        if ours[tower][name] != theirs[tower][name]
    ]
    alone = ("embed_dim", "patch_size", "activation")
    return found + [f"{name} {ours[name]}" for name in alone if ours[name] != theirs[name]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW on the contrastive loss: linear warm-up, then cosine decay to zero; the temperature stays above 0.01."""

    batch_size: Annotated[int | None, _INT, unset("the recipe's, else 256")] = None
    """Pairs per contrastive batch, over all devices."""
    steps: Annotated[int | None, _INT, unset("by --samples-seen or the recipe, else 2000")] = None
    """Optimiser steps."""
    samples_seen: Annotated[int | None, _INT, unset("the recipe's")] = None
    """Pairs to train on, repeats counted, instead of --steps: over --batch-size, rounded up."""
    learning_rate: Annotated[float | None, tyro.conf.arg(metavar="FLOAT"), unset("the recipe's, else 0.001")] = None
    """Peak learning rate."""
    warmup: Annotated[int | None, _INT, unset("the recipe's, else 100, at most a tenth of --steps")] = None
    """Steps of linear warm-up."""
    weight_decay: float = 0.2
    """Weight decay of matrices; gains, biases and the logit scale have none."""
    beta2: Annotated[float | None, tyro.conf.arg(metavar="FLOAT"), unset("the recipe's, else 0.98")] = None
    """Decay rate of the second moment."""
    clip_norm: Annotated[float | None, tyro.conf.arg(metavar="FLOAT"), unset("no clipping")] = None
    """Clip gradients to this global norm."""
    loss: Literal["contrastive", "sigmoid"] = "contrastive"
    """CLIP's softmax over the batch, or SigLIP's sigmoid of each pair, with a learnt bias."""

    def __post_init__(self) -> None:
        names = ("batch_size", "steps", "samples_seen")
        require_positive(self, *(name for name in names if getattr(self, name) is not None))
        if self.steps is not None and self.samples_seen is not None:
            raise InputError("--steps and --samples-seen both say how long to train; give one of them")
        require((self.batch_size or 2) >= 2, "batch_size", self.batch_size, "at least 2: the loss contrasts pairs")
        require((self.warmup or 0) >= 0, "warmup", self.warmup, "0 or more")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "a number above 0")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        require(self.beta2 is None or 0 <= self.beta2 < 1, "beta2", self.beta2, "at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingInput:
    """Order and reading of the pairs."""

    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT..."), unset("all pairs alike")] = ()
    """Shares of the batches that come from each of SOURCES, in their order; any positive numbers."""
    sampling: Annotated[
        Sampling | None, tyro.conf.arg(metavar="{epochs,replacement}"), unset("the recipe's, else epochs")
    ] = None
    """Take each pair once an epoch, or draw pairs with replacement, as DataComp does."""
    shuffle_window: Annotated[int | None, tyro.conf.arg(metavar="N"), unset("whole pools on a disk")] = None
    """Pairs of neighbouring tars that are shuffled together."""
    min_crop: float = 0.9
    """Smallest share of an image's area that a random crop keeps; 1 takes the centre, as in evaluation."""
    input_workers: int = 0
    """Processes that read and decode images; 0 does it in threads of this one."""

    def __post_init__(self) -> None:
        for weight in self.weights:
            require(0 < weight < math.inf, "weights", weight, "numbers above 0")
        require_positive(self, *(["shuffle_window"] if self.shuffle_window is not None else []))
        require(0 < self.min_crop <= 1, "min_crop", self.min_crop, "a share above 0 and at most 1")
        require(self.input_workers >= 0, "input_workers", self.input_workers, "0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Precision, and what makes large models and batches fit."""

    precision: Annotated[
        Precision | None, tyro.conf.arg(metavar="{float32,bfloat16}"), unset("the recipe's, else float32")
    ] = None
    """Compute in bfloat16 or float32; parameters and moments are float32."""
    remat: bool = False
    """Compute the layers' activations a second time in the backward pass instead of keeping them."""
    microbatch: Annotated[int | None, tyro.conf.arg(metavar="N"), unset("the whole batch")] = None
    """Embed this many pairs at a time, twice; the loss is still that of the whole batch."""
    fsdp: bool = False
    """Shard parameters and moments over the devices, as the batch is, instead of a copy on each."""

    def __post_init__(self) -> None:
        require_positive(self, *(["microbatch"] if self.microbatch is not None else []))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationDuring:
    """Evaluations while training, as `evaluate` does them, into _run.jsonl."""

    eval_every: Annotated[int | None, tyro.conf.arg(metavar="N"), NONE] = None
    """Evaluate every N steps and at the end."""
    eval_retrieval: Tars = ()
    """Tars of images with captions."""
    eval_classification: Tars = ()
    """Tars of labelled images; needs --classnames."""
    classnames: Annotated[str | None, tyro.conf.arg(metavar="FILE"), NONE] = None
    """A .json list of class names, or a .txt of one a line."""
    templates: Annotated[str | None, tyro.conf.arg(metavar="FILE"), unset('"a photo of a {c}."')] = None
    """A .json list of prompts, or a .txt of one a line, with "{c}" for the class."""

    def __post_init__(self) -> None:
        require_positive(self, *(["eval_every"] if self.eval_every is not None else []))
        tars = self.eval_retrieval or self.eval_classification
        if (self.eval_every is None) != (not tars):
            raise InputError("--eval-every N needs --eval-retrieval or --eval-classification TARS, and they need it")
        if bool(self.eval_classification) != (self.classnames is not None):
            raise InputError("--eval-classification and --classnames belong together: give both or neither")
        if self.templates is not None and not self.eval_classification:
            raise InputError("--templates has no use without --eval-classification TARS")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The values that a recipe may set, settled: as given, the recipe's, or by default.

    Attributes:
      sizes: of the model; None if they are those of the checkpoint `--init`.
    """

    sizes: ModelSizes | None
    initial: Initial
    batch_size: int
    steps: int
    learning_rate: float
    warmup: int
    beta2: float
    sampling: Sampling
    precision: Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a CLIP on image-text pairs; a stopped run resumes exactly where it was.

    A recipe of DataComp sets the model, the batch, the samples seen, the rates, the initial weights, precision and
    sampling; what is given besides takes the place of the recipe's.
    """

    sources: tyro.conf.Positional[Sources]
    """Pairs to train on: tars ("{000..099}.tar", "*.tar", folders), parquet, tables, tfds:name/split, as for embed."""
    out: Folder
    """Folder for checkpoints and the final model, in transformers' layout and in open_clip's."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), unset("that of --init")] = None
    """Folder with CLIP tokenizer files, such as a checkpoint."""
    subset: Annotated[str | None, tyro.conf.arg(metavar="FILE"), unset("all pairs")] = None
    """Subset file (.npy) of the pairs to train on."""
    recipe: Annotated[RecipeName | None, tyro.conf.arg(metavar="NAME"), NONE] = None
    """DataComp's for a scale: datacomp-small, -medium, -large, -xlarge or -debug."""
    seed: int = 0
    """Seed of the initial weights and the order of the pairs."""
    checkpoint_every: int = 200
    """Steps between checkpoints; the last two are kept."""
    keep_every: Annotated[int | None, tyro.conf.arg(metavar="N"), unset("a fifth of a recipe's steps, else none")] = (
        None
    )
    """Keep the checkpoint of every N-th step for good."""
    on_bad: OnBad = "stop"
    """Broken tars, images and captions: "stop" with a message, or "skip" and list them in the manifest."""
    log: Annotated[
        tuple[Literal["tensorboard", "wandb"], ...],
        tyro.conf.arg(metavar="{tensorboard,wandb}...", help_behavior_hint="(default: none)"),
    ] = ()
    """Write the figures of _run.jsonl there too."""
    profile: Profile = None
    """Trace a few steps with `jax.profiler` into this local folder, for TensorBoard or Perfetto."""
    stop_after: StopAfter = None
    """Do N steps, then stop with status 75. Run the command without it to continue; `plan` extrapolates from them."""
    model: ModelChoice = ModelChoice()
    optimiser: Optimiser = Optimiser()
    input: TrainingInput = TrainingInput()
    compute: Compute = Compute()
    evaluation: EvaluationDuring = EvaluationDuring()
    reading: Reading = Reading()
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_stop_after(self.stop_after)
        require_some(self, "sources", "tar, folder of tars, table or tfds:name/split")
        if self.tokenizer is None and self.model.init is None:
            raise InputError("--tokenizer is missing: give a folder with CLIP tokenizer files, such as a checkpoint")
        if self.tokenizer is not None and self.model.init is not None:
            raise InputError("--tokenizer has no use with --init, whose own tokenizer the model goes with")
        require_positive(self, "checkpoint_every", *(["keep_every"] if self.keep_every is not None else []))
        count, expected = len(self.input.weights), f"a number for each of the {len(self.sources)} sources"
        require(count in (0, len(self.sources)), "weights", self.input.weights, expected)
        settings = self.settings()
        warmup = self.optimiser.warmup
        require(warmup is None or warmup < settings.steps, "warmup", warmup, "fewer steps than --steps")
        part = self.compute.microbatch
        expected = f"a divisor of --batch-size {settings.batch_size}"
        require(part is None or settings.batch_size % part == 0, "microbatch", part, expected)

    def settings(self) -> Settings:
        """The values that the recipe may set: as given, the recipe's, or by default."""
        recipe = None if self.recipe is None else RECIPES[self.recipe]
        given, batch_size = self.optimiser, self._settle("batch_size", self.optimiser, 256)
        steps = given.steps
        if steps is None:
            samples = self._settle("samples_seen", given, None)
            if samples is None:
                steps = 2_000
            else:
                steps = -(-samples // batch_size) if recipe is None else datacomp_steps(samples, batch_size)
        return Settings(
            sizes=self.model.sizes(recipe),
            initial=self._settle("initial", self.model, "clip"),
            batch_size=batch_size,
            steps=steps,
            learning_rate=self._settle("learning_rate", given, 1e-3),
            warmup=self._settle("warmup", given, min(100, steps // 10)),
            beta2=self._settle("beta2", given, 0.98),
            sampling=self._settle("sampling", self.input, "epochs"),
            precision=self._settle("precision", self.compute, "float32"),
        )

    def keep_interval(self) -> int | None:
        """The steps between checkpoints that are kept for good: as given or, in a recipe, a fifth of all."""
        if self.keep_every is not None or self.recipe is None:
            return self.keep_every
        return max(1, self.settings().steps // 5)

    def _settle(self, name: str, group: object, default: Any) -> Any:
        given = getattr(group, name)
        if given is not None:
            return given
        return default if self.recipe is None else getattr(RECIPES[self.recipe], name)


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
