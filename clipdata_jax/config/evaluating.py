"""Options of `evaluate`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import (
    NONE,
    Folder,
    StopAfter,
    Tars,
    Workers,
    require,
    require_positive,
    require_stop_after,
    unset,
)
from clipdata_jax.errors import InputError, OnBad

_Output = Annotated[str, tyro.conf.arg(metavar="FOLDER|FILE")]
_Tasks = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASKS...", help_behavior_hint="(default: all in --data)")]
_Suite = Annotated[str | None, tyro.conf.arg(metavar="{datacomp}"), NONE]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluates a CLIP model: on DataComp's suite of tasks, or by zero-shot classification and retrieval on tars.

    With --suite, every task is a unit of a run that resumes: the results go into a folder, as eval_results.jsonl with
    DataComp's metrics. Without it, in retrieval a caption of the same text as one of the image's own is right too; any
    other tie with a wrong answer counts as wrong, and the result has their number. In a folder whose dataset_type.txt
    says "retrieval", as in CLIP_benchmark, each line of a .txt is a caption.
    """

    model: tyro.conf.Positional[Folder]
    """Folder of a CLIP checkpoint with its tokenizer files."""
    out: _Output
    """Folder for the results of --suite; otherwise the output .json file of the metrics."""
    suite: _Suite = None
    """Suite of tasks: "datacomp" has 40, of which 38 count in its average."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), NONE] = None
    """Folder of the suite's data sets, as DataComp's download_evalsets.py or the hub's cache leaves them."""
    tasks: _Tasks = ()
    """Tasks of the suite, by key or name: vtab/caltech101,cifar10,Flickr."""
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
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the towers."""
    on_bad: OnBad = "stop"
    """Broken tars, images and tasks: "stop" with a message, or "skip" and list them in the result."""
    overwrite: bool = False
    """Replace the output file, whatever it is. Otherwise only one of the same command and options is replaced."""
    stop_after: StopAfter = None
    """Do N tasks, then stop with status 75. Run the command without it to continue; `plan` extrapolates from them."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")
        require_stop_after(self.stop_after)
        alone = self.retrieval or self.classification
        if self.suite is not None:
            require(self.suite == "datacomp", "suite", self.suite, "datacomp")
            require(self.data is not None, "data", self.data, "the folder of the suite's data sets")
            require(not alone, "suite", self.suite, "no value with --retrieval or --classification")
            require(not self.out.endswith(".json"), "out", self.out, "a folder for the results of --suite")
            return
        for name, value in (("data", self.data), ("tasks", self.tasks), ("stop_after", self.stop_after)):
            require(not value, name, value, "no value without --suite datacomp")
        if not alone:
            raise InputError(
                "nothing to evaluate: give --suite datacomp --data FOLDER, --retrieval TARS, or --classification TARS"
                " --classnames FILE"
            )
        if self.classification and not self.classnames:
            raise InputError("--classification needs --classnames FILE, a JSON list of class names")

    def task_words(self) -> tuple[str, ...]:
        """The tasks as given, separated by commas or blanks."""
        return tuple(word.strip() for text in self.tasks for word in text.split(",") if word.strip())
