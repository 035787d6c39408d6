"""Options of `compare`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from clipdata_jax.config.base import File, require
from clipdata_jax.errors import InputError

_Results = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]RESULTS...", help_behavior_hint="(at least one)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareModels:
    """Makes an HTML page that compares the results of several models, task by task.

    Seeds of one method are given together, as NAME=RESULTS,RESULTS: the page shows their mean and spread. Differences
    are from the first method, with their standard errors.
    """

    results: tyro.conf.Positional[_Results]
    """Results of `evaluate`: folders of a suite, eval_results.jsonl of DataComp, or .json files of single sets."""
    out: File
    """The .html file to write; self-contained, opens offline."""
    title: str = "Comparison of models"
    """Heading of the page."""
    overwrite: bool = False
    """Replace the output file, whatever it is. Otherwise only one of the same command and options is replaced."""

    def __post_init__(self) -> None:
        if not self.results:
            raise InputError("nothing to compare: give results of evaluate, such as random=r0,r1 selected=s0,s1")
        names = [name for name, _ in self.methods()]
        repeated = next((name for name in names if names.count(name) > 1), None)
        require(repeated is None, "results", repeated, "names that differ: give each as NAME=RESULTS")
        require(self.out.endswith(".html"), "out", self.out, "a file name that ends in .html")

    def methods(self) -> list[tuple[str, tuple[str, ...]]]:
        """The name and the results of each method, one for each seed."""
        found = []
        for given in self.results:
            name, sign, paths = given.partition("=")
            if not sign or "/" in name:  # an equals sign after a slash belongs to a path
                last = given.rstrip("/").rpartition("/")[2]
                name, paths = last.removesuffix(".json").removesuffix(".jsonl"), given
            several = tuple(path for path in paths.split(",") if path)
            require(bool(name.strip() and several), "results", given, "RESULTS, NAME=RESULTS or NAME=RESULTS,RESULTS")
            found.append((name.strip(), several))
        return found
