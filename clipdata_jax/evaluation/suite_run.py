"""A run over DataComp's tasks: each is a unit, done once and for good; the results of all make one file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from clipdata_jax.errors import InputError, OnBad, StoppedEarly
from clipdata_jax.evaluation import results, task_files
from clipdata_jax.evaluation.results import TaskResult
from clipdata_jax.evaluation.suite import TaskEvaluator
from clipdata_jax.evaluation.task_files import TaskFiles
from clipdata_jax.evaluation.tasks import EvaluationTask
from clipdata_jax.runs import manifest, telemetry
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import Facts, Manifest, Receipt, RunPlan
from clipdata_jax.runtime import parallel


@dataclasses.dataclass(frozen=True)
class Suite:
    """The tasks of a run.

    Attributes:
      opened: what each task reads, or why it can't be measured, by unit.
      missing: tasks whose data sets aren't there.
    """

    opened: Mapping[str, TaskFiles | InputError]
    missing: Sequence[EvaluationTask]

    def inputs(self) -> list[str]:
        """All files that the tasks read."""
        return [path for one in self.opened.values() if isinstance(one, TaskFiles) for path in one.inputs]


def open_suite(data: str, words: Sequence[str], *, on_bad: OnBad) -> Suite:
    """Finds and opens all tasks, so that what is wrong is known before anything is embedded.

    Args:
      data: folder of the data sets.
      words: keys or names of the tasks; none means all that are there.
      on_bad: "stop" raises the first error of a task, "skip" keeps it.

    Raises:
      InputError: a task is unknown, missing or broken.
    """
    found, missing = task_files.locate_all(data, words)
    opened: dict[str, TaskFiles | InputError] = {}
    for task, folder in found.items():
        try:
            opened[task.unit] = task_files.open_task(task, folder)
        except InputError as error:
            if on_bad == "stop":
                raise
            opened[task.unit] = error
    return Suite(opened, missing)


def run(
    suite: Suite,
    plan: RunPlan,
    out: str,
    make_evaluator: Callable[[], TaskEvaluator],
    *,
    on_bad: OnBad,
    share: parallel.Share = parallel.ALONE,
    stop_after: int | None = None,
) -> Manifest | None:
    """Measures a model on all tasks of this process's share.

    Args:
      suite: the tasks.
      plan: of the run.
      out: folder for the results.
      make_evaluator: loads the model; called if a task is left to do.
      on_bad: "skip" leaves out a task that can't be measured.
      share: the tasks that this process does.
      stop_after: tasks to do before it stops; None means all.

    Returns:
      The manifest, or None if another process reports on the run.

    Raises:
      InputError: bad input; finished tasks are kept.
      StoppedEarly: tasks are left after `stop_after` of them.
    """
    output = open_output(out, plan=plan, units=list(suite.opened), share=share)
    todo = output.remaining(share)
    now = todo[:stop_after]
    if now:
        evaluator, watch = make_evaluator(), telemetry.Stopwatch(share.index)
        for unit in now:
            try:
                _complete(output, unit, suite.opened[unit], evaluator, watch)
            except InputError as error:
                if on_bad == "stop":
                    raise
                output.complete(unit, {}, {"failed": str(error)})
    if len(now) < len(todo):
        raise StoppedEarly(len(now), len(todo))
    return output.finish(functools.partial(_summarise, suite), share, files=_result_file)


def _complete(
    output: Output, unit: str, files: TaskFiles | InputError, evaluator: TaskEvaluator, watch: telemetry.Stopwatch
) -> None:
    if isinstance(files, InputError):
        raise files
    texts = [manifest.file_entry(path) for path in files.texts]
    found = evaluator.measure(files)
    result = TaskResult(files.task.key, files.task.name, found.metrics, images=found.images, skipped=len(found.skipped))
    entries = [*texts, *found.entries]
    facts: Facts = {
        "result": result.to_json(),
        "skipped": found.skipped,
        "inputs": [entry.without_fingerprint() for entry in entries],
    }
    output.complete(unit, {}, facts, inputs=entries, times=watch.lap(found.images, **found.seconds))


def _results(receipts: Sequence[Receipt]) -> list[TaskResult]:
    found = [receipt.facts["result"] for receipt in receipts if "result" in receipt.facts]
    return [results.from_json(one, "the receipt") for one in found]


def _result_file(receipts: Sequence[Receipt]) -> dict[str, bytes]:
    return {results.NAME: results.to_lines(_results(receipts))}


def _summarise(suite: Suite, receipts: Sequence[Receipt]) -> Facts:
    """Sums up the receipts of all tasks.

    Raises:
      InputError: every task was left out.
    """
    failed = {receipt.unit: receipt.facts["failed"] for receipt in receipts if "failed" in receipt.facts}
    if len(failed) == len(receipts):
        raise InputError(f"no task could be measured; the first: {next(iter(failed.values()))}")
    main = {one.key: one.main for one in _results(receipts)}
    return {
        "results": main,
        "means": [dataclasses.asdict(one) for one in results.group_means(main)],
        "missing": [task.key for task in suite.missing],
        "failed_tasks": failed,
        "skipped": [reason for receipt in receipts for reason in receipt.facts.get("skipped", [])],
        "pool": [entry for receipt in receipts for entry in receipt.facts.get("inputs", [])],
    }
