"""`clipdata compare`: results of `evaluate` in, one page that compares models out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipdata_jax import storage
from clipdata_jax.config import CompareModels
from clipdata_jax.errors import InputError
from clipdata_jax.evaluation import results
from clipdata_jax.evaluation.tasks import TASKS
from clipdata_jax.report import task_comparison, text
from clipdata_jax.report.task_comparison import Method, TaskComparison, TaskLabel, TaskScore
from clipdata_jax.runs import file_output, manifest, telemetry
from clipdata_jax.runs.records import FileEntry, Manifest
from clipdata_jax.runtime import console

_MOST_IN_TABLE = 10  # tasks, printed one by one
# Tasks of the files that `evaluate` writes of single sets: where the figure is, its metric, and over how many.
_SINGLE = {
    "classification": (("classification", "top1"), "top-1", ("classification", "images")),
    "image to caption": (("retrieval", "image_to_text", "r1"), "R@1", ("retrieval", "images")),
    "caption to image": (("retrieval", "text_to_image", "r1"), "R@1", ("retrieval", "captions")),
}


def run(options: CompareModels) -> Manifest:
    """Writes the page and its manifest; returns that.

    Raises:
      InputError: results are missing, damaged or of something else, or `out` holds something else.
    """
    sources = options.methods()
    files = {path: _results_file(path) for _, paths in sources for path in paths}
    plan = manifest.describe("compare", options, inputs=dict.fromkeys(files.values()))
    file_output.check_replaceable(options.out, plan, overwrite=options.overwrite)
    labels: dict[str, TaskLabel] = {}
    methods = [
        Method(name, [_scores(files[path], labels) for path in paths], [*filter(None, map(_losses, paths))])
        for name, paths in sources
    ]
    order = {key: place for place, key in enumerate((*TASKS, *_SINGLE))}
    tasks = sorted(labels.values(), key=lambda task: order.get(task.key, len(order)))
    compared = task_comparison.compare(methods, tasks)
    storage.sweep_beside(options.out)
    html = task_comparison.render(compared, options.title, sources).encode()
    storage.write_bytes(options.out, html)
    made = manifest.write_beside(options.out, plan, _facts(compared))
    print(_summary(compared, options.out))
    return made


def _results_file(path: str) -> str:
    """The file of results in a folder, or the file itself."""
    if not storage.is_folder(path):
        return path
    storage.check_finished(storage.Folder(path))
    return storage.join(path, results.NAME)


def _scores(path: str, labels: dict[str, TaskLabel]) -> dict[str, TaskScore]:
    """The figures of a file of results by task; adds the tasks' labels."""
    found: dict[str, TaskScore] = {}
    for label, score in _single_sets(path) if path.endswith(".json") else _of_suite(path):
        if label.key in found:
            raise InputError(f"{path}: has two results of {label.name}; keep one")
        labels.setdefault(label.key, label)
        found[label.key] = score
    if not found:
        raise InputError(f"{path}: holds no figure to compare")
    return found


def _of_suite(path: str) -> Iterator[tuple[TaskLabel, TaskScore]]:
    for one in results.read(path):
        if one.main is None:
            continue
        task = TASKS.get(one.key)
        metric = (task.main_metric if task else None) or "main metric"
        images = one.images or (task.images if task else None)
        if images is None:
            raise InputError(f"{path}: {one.key} is not a task of DataComp, and the number of its images is missing")
        group = (task.group if task else None) or ""
        yield TaskLabel(one.key, one.dataset, metric, group), TaskScore(one.main, _worst_group(one) or images)


def _worst_group(result: results.TaskResult) -> int | None:
    """The number of images of the worst group, if the main metric is that group's; of several, of the smallest."""
    counts = [
        value
        for name, value in result.metrics.items()
        if name.startswith("count_") and value and _is_worst(result, name.removeprefix("count_"))
    ]
    task = TASKS.get(result.key)
    is_of_groups = (
        task is not None
        and task.main_metric is not None
        and ("worst" in task.main_metric or task.main_metric.endswith("_wg"))
    )
    return int(min(counts)) if is_of_groups and counts else None


def _is_worst(result: results.TaskResult, group: str) -> bool:
    return any(result.metrics.get(f"{name}_{group}") == result.main for name in ("acc", "acc_top5"))


def _single_sets(path: str) -> Iterator[tuple[TaskLabel, TaskScore]]:
    try:
        content = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); expected figures of evaluate") from error
    for name, (place, metric, count) in _SINGLE.items():
        value, images = _at(content, place), _at(content, count)
        if isinstance(value, (int, float)) and 0 <= value <= 1 and isinstance(images, int) and images > 0:
            yield TaskLabel(name, name.capitalize(), metric), TaskScore(float(value), images)


def _at(content: Any, place: Sequence[str]) -> Any:
    for name in place:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _losses(path: str) -> dict[int, float]:
    """The losses by step of the training that a result's model comes from; {} if that is not known or not there."""
    held = manifest.read_facts(path).get("options")
    model = held.get("model") if isinstance(held, dict) else None
    if model is None:
        return {}
    for place in FileEntry.from_json(model).paths(storage.parent(storage.absolute(path))):
        lines = storage.join(storage.parent(place), storage.TIMES)
        if storage.Folder(place).is_local and storage.exists(lines):
            return {
                one.step: loss
                for one in telemetry.read(lines)
                if one.step is not None and (loss := one.metrics.get("loss")) is not None
            }
    return {}


def _facts(compared: TaskComparison) -> dict[str, Any]:
    def figures(row: task_comparison.FigureRow) -> Mapping[str, Any]:
        several = zip(compared.names, row.figures, strict=True)
        return {
            name: {key: None if value != value else value for key, value in vars(one).items()} for name, one in several
        }

    return {
        "methods": dict(zip(compared.names, compared.seeds, strict=True)),
        "tasks": {row.label.key: figures(row) for row in compared.tasks},
        "means": {row.label.key: figures(row) for row in compared.groups},
        "left_out": list(compared.left_out),
    }


def _summary(compared: TaskComparison, out: str) -> str:
    """A table of the tasks, of many the means of their groups."""
    rows = compared.groups if len(compared.tasks) > _MOST_IN_TABLE else [*compared.tasks, *compared.groups[-1:]]
    first, *others = compared.names
    head = ["", first, *(cell for name in others for cell in (name, f"to {first}"))]
    lines = [console.table([head, *(_cells(row) for row in rows)])]
    if compared.left_out:
        lines.append(f"not in all results, so in no mean: {', '.join(compared.left_out)}")
    if len(compared.names) > 1:
        lines.append("* a difference of more than two of its standard errors")
    return "\n".join([*lines, f"page: {out}"])


def _cells(row: task_comparison.FigureRow) -> list[str]:
    cells = [f"{row.label.name}, {row.label.metric}"]
    for number, one in enumerate(row.figures):
        cells.append(text.percent(one.mean) + ("" if one.spread is None else f" ± {100 * one.spread:.1f}"))
        if number:
            change = ""
            if one.difference is not None and one.error is not None:
                change = f"{100 * one.difference:+.1f} ± {100 * one.error:.1f}{' *' * one.is_beyond}"
            cells.append(change)
    return cells
