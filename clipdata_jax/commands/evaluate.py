"""`clipdata evaluate`: a checkpoint on DataComp's suite, or zero-shot classification and retrieval on tars."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Evaluate
from clipdata_jax.errors import InputError
from clipdata_jax.evaluation import results
from clipdata_jax.evaluation.tasks import TASKS, EvaluationTask
from clipdata_jax.formats import tars
from clipdata_jax.runs import file_output, manifest, records
from clipdata_jax.runs.records import Manifest
from clipdata_jax.runtime import console, parallel

if TYPE_CHECKING:
    from PIL import Image

    from clipdata_jax.embedding.encoder import Encoder
    from clipdata_jax.models import CLIP, Tokenizer

_PLACE = "{c}"
_TEMPLATES = (f"a photo of a {_PLACE}.",)


def run(options: Evaluate) -> Manifest | dict[str, Any] | None:
    """Measures a model; returns the figures, of a suite its manifest; None if another process reports on the run.

    Raises:
      InputError: bad input; tasks of a suite that are finished are kept.
    """
    if options.data is not None:
        return _run_suite(options, options.data)
    index, count = options.workers.share() or (0, 1)
    if index:
        print(f"clipdata evaluate: process {index + 1} of {count} has nothing to do; process 1 does it all")
        return None
    return _run_sets(options)


def _run_suite(options: Evaluate, data: str) -> Manifest | None:
    """Measures a model on the tasks of a suite."""
    share = parallel.start(options.workers)
    from clipdata_jax import models
    from clipdata_jax.evaluation import suite_run
    from clipdata_jax.evaluation.suite import TaskEvaluator

    suite = suite_run.open_suite(data, options.task_words(), on_bad=options.on_bad)
    plan = manifest.describe(
        "evaluate",
        options,
        pool=suite.inputs(),
        devices=True,
        model=models.checkpoint_digest(options.model),
    )

    def make_evaluator() -> TaskEvaluator:
        model = models.load_clip(options.model, dtype=options.precision, sharding=parallel.replicated())
        if model.config.text is None or model.config.vision is None:
            raise InputError(f"{options.model}: has one tower only; a suite needs a model of images and texts")
        return TaskEvaluator(*_tools(options, model), model.config.text, on_bad=options.on_bad)

    made = suite_run.run(
        suite, plan, options.out, make_evaluator, on_bad=options.on_bad, share=share, stop_after=options.stop_after
    )
    if made is not None:
        print(
            _suite_table(results.read(storage.join(options.out, results.NAME)), made.facts, suite.missing, options.out)
        )
    return made


def _tools(options: Evaluate, model: CLIP) -> tuple[Encoder, Tokenizer, Callable[[Image.Image], np.ndarray]]:
    """What embeds images and texts."""
    from clipdata_jax import models
    from clipdata_jax.embedding.encoder import Encoder

    encoder = Encoder(model, options.batch_size, parallel.local_mesh())
    return encoder, models.load_tokenizer(options.model), models.load_image_transform(options.model)


def _run_sets(options: Evaluate) -> dict[str, Any]:
    """Measures a model on tars."""
    retrieval = tars.find_tars(options.retrieval) if options.retrieval else []
    labelled = tars.find_tars(options.classification) if options.classification else []
    names = read_strings(options.classnames, "class names") if options.classnames else []
    templates = read_templates(options.templates)
    from clipdata_jax import models
    from clipdata_jax.evaluation.evaluator import Evaluator

    model = models.load_clip(options.model, dtype=options.precision, sharding=parallel.replicated())
    evaluator = Evaluator(*_tools(options, model), on_bad=options.on_bad)
    plan = manifest.describe(
        "evaluate",
        options,
        inputs=[path for path in (options.classnames, options.templates) if path],
        pool=[*retrieval, *labelled],
        devices=True,
        model=models.checkpoint_digest(options.model),
    )
    file_output.check_replaceable(options.out, plan, overwrite=options.overwrite)
    figures: dict[str, Any] = {"model": options.model}
    if labelled:
        figures["classification"] = evaluator.classify(labelled, names, templates)
    if retrieval:
        figures["retrieval"] = evaluator.retrieve(retrieval)
    figures["skipped"] = evaluator.skipped
    storage.write_bytes(options.out, records.to_json(figures))
    manifest.write_beside(options.out, plan, {"figures": figures})
    print(_table(figures, options.out))
    return figures


def read_templates(path: str | None) -> list[str]:
    """Reads prompts with "{c}" for the class; without a path, the default one.

    Raises:
      InputError: the file holds something else.
    """
    templates = read_strings(path, "prompts") if path else list(_TEMPLATES)
    for template in templates:
        if _PLACE not in template:
            raise InputError(f"{path}: the prompt {template!r} has no {_PLACE} for the class")
    return templates


def read_strings(path: str, what: str) -> list[str]:
    """Reads a JSON list of at least one string; of a .txt its lines.

    Raises:
      InputError: the file holds something else.
    """
    if path.endswith(".txt"):
        lines = [line.strip() for line in storage.read_bytes(path).decode("utf-8", "replace").splitlines()]
        if not any(lines):
            raise InputError(f"{path}: is empty; expected {what}, one a line")
        return list(filter(None, lines))
    try:
        content = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); expected a list of {what}") from error
    if not isinstance(content, list) or not content or not all(isinstance(item, str) for item in content):
        raise InputError(f'{path}: expected a JSON list of {what}, like ["one", "two"]')
    return content


def _table(figures: dict[str, Any], out: str) -> str:
    lines = []
    if classes := figures.get("classification"):
        shares = [_percent(classes[name]) for name in ("top1", "top5", "mean_per_class")]
        lines += [
            f"zero-shot classification: {classes['images']:,} images, {classes['classes']:,} classes,"
            f" prompts for each: {classes['templates']:,}",
            console.table([("", "top-1", "top-5", "mean per class"), ("accuracy", *shares)]),
            "",
        ]
    if found := figures.get("retrieval"):
        ways = {"image -> caption": found["image_to_text"], "caption -> image": found["text_to_image"]}
        rows = [(title, *map(_percent, recalls.values())) for title, recalls in ways.items()]
        lines += [
            f"retrieval: {found['images']:,} images, {found['captions']:,} captions"
            f" ({found['distinct_captions']:,} different ones)",
            console.table([("", "R@1", "R@5", "R@10"), *rows]),
            "",
        ]
        if any(ties := found["ties"].values()):
            images, captions = ties
            lines.insert(
                -1, f"ties with a wrong answer, which count as wrong: {images:,} images, {captions:,} captions"
            )
        if several := found["captions_of_several_lines"]:
            lines.insert(-1, f"captions of several lines, each taken as one: {several:,}")
    lines.append(f"figures: {out}")
    if line := console.skipped(out, input=figures["skipped"]):
        lines.append(line)
    return "\n".join(lines)


def _suite_table(
    found: Sequence[results.TaskResult], facts: Mapping[str, Any], missing: Sequence[EvaluationTask], out: str
) -> str:
    """The results of all tasks, and what is missing or was left out."""
    tasks = [TASKS[one.key] for one in found]
    rows = [
        (one.dataset, task.main_metric or "-", _percent(one.main), f"{one.images or 0:,}", task.group or "")
        for one, task in zip(found, tasks, strict=True)
    ]
    lines = [console.table([("task", "main metric", "", "images", "group"), *rows], left=(0, 1, 4)), ""]
    means = [results.GroupMean(**one) for one in facts["means"]]
    of_groups = [(one.name, _percent(one.mean), f"{one.measured} of {one.tasks}") for one in means]
    lines += [console.table([("mean", "", "tasks"), *of_groups]), ""]
    if other := [task.name for one, task in zip(found, tasks, strict=True) if one.images != task.images]:
        lines.append(
            f"{console.counted(len(other), 'task')} {'has' if len(other) == 1 else 'have'} another number of images"
            f" than published, so the figures don't compare with published ones: {', '.join(other)}"
        )
    if missing:
        lines.append(f"Not in the folder of data sets: {console.counted(len(missing), 'task')}; the hub has them as")
        lines += [f"  {task.name}: {task.repository}" for task in missing]
    lines += [parallel.computed_on(), f"results: {storage.join(out, results.NAME)}"]
    if line := console.skipped(manifest.NAME, task=[*facts["failed_tasks"].values()], input=facts["skipped"]):
        lines.append(line)
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
