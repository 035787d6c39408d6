"""Results of several models side by side: means over seeds, differences and their standard errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from clipdata_jax.report import lines, page, text

_POINTS = 9  # as many as a chart can label
_BEYOND = 2.0  # standard errors


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """The figure of a task in one run.

    Attributes:
      value: in [0, 1].
      images: that it is a mean over.
    """

    value: float
    images: int


@dataclasses.dataclass(frozen=True)
class Method:
    """What is compared.

    Attributes:
      name: of the method.
      runs: the figures by task of each seed's model.
      losses: of each seed's training: step -> loss.
    """

    name: str
    runs: Sequence[Mapping[str, TaskScore]]
    losses: Sequence[Mapping[int, float]] = ()


@dataclasses.dataclass(frozen=True)
class TaskLabel:
    """How the page names a task: its key in the results, its name, its metric, and its group ("" for none)."""

    key: str
    name: str
    metric: str
    group: str = ""


@dataclasses.dataclass(frozen=True)
class MethodFigure:
    """A method's figure of a task or a group.

    Attributes:
      mean: over the seeds; NaN if a seed lacks it.
      spread: their standard deviation; None of one seed.
      difference: of the mean from the first method's; None for that itself, or where one is unknown.
      error: the standard error of the difference.
      is_beyond: whether the difference is more than two standard errors.
    """

    mean: float
    spread: float | None
    difference: float | None = None
    error: float | None = None
    is_beyond: bool = False


@dataclasses.dataclass(frozen=True)
class FigureRow:
    """A row of the page: a task or a group, and what the methods reach there, in their order."""

    label: TaskLabel
    figures: tuple[MethodFigure, ...]


@dataclasses.dataclass(frozen=True)
class TaskComparison:
    """All that the page shows.

    Attributes:
      names: of the methods.
      seeds: of each.
      tasks: a row a task.
      groups: a row a group, over the tasks that every run has.
      left_out: tasks that some run lacks, which count in no group.
      curves: title and chart of the losses of each method beside those of the first.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    tasks: tuple[FigureRow, ...]
    groups: tuple[FigureRow, ...]
    left_out: tuple[str, ...]
    curves: tuple[tuple[str, lines.LineChart], ...]


def compare(methods: Sequence[Method], tasks: Sequence[TaskLabel]) -> TaskComparison:
    """Compares methods with the first one.

    The standard error of a difference is the larger of two: the binomial one, of the images, and, where both methods
    have several seeds, that of the seeds.

        binomial^2 = sum over both methods of p (1 - p) / n,   of seeds^2 = sum over both of s^2 / k

    with p the mean share right of n images (an approximation for metrics that are no accuracy), and s the standard
    deviation of k seeds. Of the mean of T tasks, binomial^2 is the sum over the tasks, divided by T^2.

    Args:
      methods: at least one, each of at least one run.
      tasks: in the order of the page.

    >>> runs = [{"mnist": TaskScore(0.5, 100)}], [{"mnist": TaskScore(0.75, 100)}]
    >>> found = compare([Method("a", runs[0]), Method("b", runs[1])], [TaskLabel("mnist", "MNIST", "acc1")])
    >>> one = found.tasks[0].figures[1]
    >>> one.difference, round(one.error, 3), one.is_beyond
    (0.25, 0.066, True)
    """
    rows = [_row(methods, task, [task.key]) for task in tasks]
    whole = [task for task in tasks if all(task.key in run for method in methods for run in method.runs)]
    groups = {
        group: [task.key for task in whole if task.group == group] for group in dict.fromkeys(t.group for t in tasks)
    }
    groups.pop("", None)
    of_groups = [
        _row(methods, TaskLabel(name, name, f"mean of {len(keys)} task{'' if len(keys) == 1 else 's'}"), keys)
        for name, keys in {**groups, "average": [task.key for task in whole]}.items()
        if keys
    ]
    return TaskComparison(
        tuple(method.name for method in methods),
        tuple(len(method.runs) for method in methods),
        tuple(rows),
        tuple(of_groups),
        tuple(task.name for task in tasks if task not in whole),
        tuple(_curves(methods)),
    )


def _row(methods: Sequence[Method], label: TaskLabel, keys: Sequence[str]) -> FigureRow:
    first = methods[0]
    figures = [_figure(method, keys) for method in methods]
    compared = [figures[0]]
    for method, figure in zip(methods[1:], figures[1:], strict=True):
        difference = figure.mean - figures[0].mean
        if math.isnan(difference):
            compared.append(figure)
            continue
        error = math.hypot(_binomial_error(first, keys), _binomial_error(method, keys))
        if figure.spread is not None and figures[0].spread is not None:
            parts = (
                one.spread / math.sqrt(len(of.runs))
                for one, of in ((figures[0], first), (figure, method))
                if one.spread
            )
            error = max(error, math.hypot(*parts))
        is_beyond = abs(difference) > _BEYOND * error
        compared.append(dataclasses.replace(figure, difference=difference, error=error, is_beyond=is_beyond))
    return FigureRow(label, tuple(compared))


def _figure(method: Method, keys: Sequence[str]) -> MethodFigure:
    means = [
        float(np.mean([run[key].value for key in keys])) if all(key in run for key in keys) else math.nan
        for run in method.runs
    ]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 and not any(map(math.isnan, means)) else None
    return MethodFigure(float(np.mean(means)), spread)


def _binomial_error(method: Method, keys: Sequence[str]) -> float:
    """The standard error of the mean over tasks that comes from the number of images; seeds share the images."""
    variance = 0.0
    for key in keys:
        p = float(np.mean([run[key].value for run in method.runs]))
        variance += p * (1 - p) / min(run[key].images for run in method.runs)
    return math.sqrt(variance) / len(keys)


def _curves(methods: Sequence[Method]) -> list[tuple[str, lines.LineChart]]:
    """A chart of each method's losses, means over seeds, beside those of the first; none if a method has no losses."""
    first, *others = methods
    if not first.losses:
        return []
    drawn = []
    for method in others or [first]:
        if not method.losses:
            continue
        last = min(max(losses) for losses in (*first.losses, *method.losses))
        begin = max(min(losses) for losses in (*first.losses, *method.losses))
        steps = (
            sorted({round(begin + i * (last - begin) / (_POINTS - 1)) for i in range(_POINTS)}) if last >= begin else []
        )
        series = {"main": [_mean_loss(method, step) for step in steps]}
        if method is not first:
            series["other"] = [_mean_loss(first, step) for step in steps]
        chart = lines.draw(
            [text.compact(step) for step in steps], -1, series, show=_shown_loss, from_zero=False, least_span=0.01
        )
        drawn.append((f"{method.name} (dashed: {first.name})" if method is not first else method.name, chart))
    return drawn


def _mean_loss(method: Method, step: int) -> float:
    """The mean over seeds of the loss at the logged step that is nearest."""
    return float(np.mean([losses[min(losses, key=lambda one: abs(one - step))] for losses in method.losses]))


def _shown_loss(loss: float) -> str:
    return text.value(loss, 3)


def render(comparison: TaskComparison, title: str, sources: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Renders the page.

    Args:
      comparison: from `compare`.
      title: its heading.
      sources: the results that each method was read from.

    Returns:
      HTML, the same for the same arguments.
    """
    shown: Callable[..., str] = page.environment().get_template("tasks.html.j2").render
    return shown(
        comparison=comparison,
        title=title,
        sources=sources,
        box={"width": lines.WIDTH, "height": lines.HEIGHT},
        percent_points=_points,
    )


def _points(share: float) -> str:
    """A difference in percentage points with its sign: +1.2, −0.3."""
    shown = text.value(100 * share, 1)
    return shown if shown.startswith("\u2212") else f"+{shown}"
