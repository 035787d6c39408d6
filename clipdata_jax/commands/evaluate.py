"""`clipdata evaluate`: zero-shot classification and retrieval of a checkpoint on tars, figures as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from clipdata_jax import storage
from clipdata_jax.config import Evaluate
from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars
from clipdata_jax.runs import file_output, manifest, records
from clipdata_jax.runtime import console, parallel

if TYPE_CHECKING:
    from clipdata_jax.evaluation.evaluator import Evaluator

_PLACE = "{c}"
_TEMPLATES = (f"a photo of a {_PLACE}.",)


def run(options: Evaluate) -> dict[str, Any]:
    """Measures a model; returns the figures.

    Raises:
      InputError: bad input.
    """
    retrieval = tars.find_tars(options.retrieval) if options.retrieval else []
    labelled = tars.find_tars(options.classification) if options.classification else []
    names = read_strings(options.classnames, "class names") if options.classnames else []
    templates = read_strings(options.templates, "prompts") if options.templates else list(_TEMPLATES)
    for template in templates:
        if _PLACE not in template:
            raise InputError(f"{options.templates}: the prompt {template!r} has no {_PLACE} for the class")
    from clipdata_jax import models

    evaluator = _evaluator(options)
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


def _evaluator(options: Evaluate) -> Evaluator:
    from clipdata_jax import models
    from clipdata_jax.embedding.encoder import Encoder
    from clipdata_jax.evaluation.evaluator import Evaluator

    model = models.load_clip(options.model, sharding=parallel.replicated())
    return Evaluator(
        Encoder(model, options.batch_size, parallel.local_mesh()),
        models.load_tokenizer(options.model),
        models.load_image_transform(options.model),
        on_bad=options.on_bad,
    )


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


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
