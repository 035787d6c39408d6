"""Results of a suite: DataComp's lines, and the means of groups of tasks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.evaluation.tasks import GROUPS, TASKS

NAME = "eval_results.jsonl"
"""The file of a suite's results, as DataComp's tools expect it."""


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """The result of one task.

    Attributes:
      key: of the task.
      dataset: its name.
      metrics: by name, with "main_metric", which is None if the task has none.
      images: that the figures are means over, of WinoGAViL the instances; None where another tool wrote the result.
      skipped: how many inputs were left out.
    """

    key: str
    dataset: str
    metrics: Mapping[str, float | int | None]
    images: int | None = None
    skipped: int = 0

    @property
    def main(self) -> float | None:
        """The value of the main metric."""
        return self.metrics.get("main_metric")

    def to_json(self) -> dict[str, Any]:
        """The result as a line of `NAME` has it."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class GroupMean:
    """The mean of the main metrics of a group of tasks.

    Attributes:
      name: of the group, "average" for all.
      mean: of those that were measured; None if none was.
      measured: how many were.
      tasks: how many it has.
    """

    name: str
    mean: float | None
    measured: int
    tasks: int


def group_means(values: Mapping[str, float | None]) -> list[GroupMean]:
    """Computes the means of DataComp's groups, and of all tasks with a main metric.

    Args:
      values: the main metrics by the task's key.

    >>> [found] = [one for one in group_means({"imagenet1k": 0.5, "mnist": 0.1}) if one.name == "average"]
    >>> round(found.mean, 3), found.measured, found.tasks
    (0.3, 2, 38)
    """
    found = []
    for group in (*GROUPS, "average"):
        tasks = [task for task in TASKS.values() if task.main_metric and group in (task.group, "average")]
        held = [values.get(task.key) for task in tasks]
        measured = [value for value in held if value is not None]
        found.append(GroupMean(group, float(np.mean(measured)) if measured else None, len(measured), len(tasks)))
    return found


def to_lines(results: Sequence[TaskResult]) -> bytes:
    """The bytes of `NAME`."""
    return "".join(f"{json.dumps(one.to_json(), ensure_ascii=False)}\n" for one in results).encode()


def from_json(content: object, where: str) -> TaskResult:
    """Reads a result from a line of `NAME`.

    Raises:
      InputError: it is something else.
    """
    held = content if isinstance(content, dict) else {}
    key, name, found = (held.get(field) for field in ("key", "dataset", "metrics"))
    images, skipped = held.get("images"), held.get("skipped", 0)
    if not (isinstance(key, str) and isinstance(name, str) and isinstance(found, dict) and isinstance(skipped, int)):
        raise InputError(f"{where}: is not the result of a task; expected key, dataset and metrics")
    if not (images is None or (isinstance(images, int) and images > 0)):
        raise InputError(f"{where}: has {images!r:.40} images, expected a number above 0")
    numbers = {one: value for one, value in found.items() if value is None or _is_number(value)}
    return TaskResult(key, name, numbers, images, skipped)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read(path: str) -> list[TaskResult]:
    """Reads an `eval_results.jsonl`, ours or DataComp's.

    Raises:
      InputError: it is missing, has no line, or a line is not a result.
    """
    found = []
    for number, line in enumerate(storage.read_bytes(path).splitlines(), start=1):
        where = f"{path}: line {number}"
        if line.strip():
            try:
                found.append(from_json(json.loads(line), where))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: is not JSON ({error}); expected a result a line") from error
    if not found:
        raise InputError(f"{path}: is empty; expected a result a line")
    return found
