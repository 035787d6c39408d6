"""What `clipdata sensitivity` found, as text for the terminal, a page, and figures for other programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from clipdata_jax.config import Sensitivity
from clipdata_jax.data import files
from clipdata_jax.pipeline import manifest, progress
from clipdata_jax.pipeline.sensitivity_scores import Figures, Plan, Setting, percent
from clipdata_jax.report import sensitivity_page

_AXES = {
    "repeats": ("K", "--repeats", "Random divisions into batches that are averaged. They cost nothing."),
    "group": (
        "m",
        "--group",
        "Batches' worth of distinct pairs that each pair is compared with. The cost grows with it.",
    ),
    "batch_size": (
        "|B|",
        "--batch-size",
        "Pairs in one batch: how many others a pair is held against. All are made of the same groups, of m times the"
        " largest.",
    ),
    "temperature": (
        "t",
        "--temperature",
        "The teacher's temperature: the smaller, the more only the nearest others count. It is the model's own,"
        " to be changed for a reason only.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What was tried and found.

    Attributes:
      options: of the command.
      plan: the settings.
      figures: of every setting.
      advice: one sentence.
      notes: sentences that a reader must see.
      sampled: pairs that were scored.
      pairs: pairs in the pool.
    """

    options: Sensitivity
    plan: Plan
    figures: Mapping[Setting, Figures]
    advice: str
    notes: Sequence[str]
    sampled: int
    pairs: int


def write(result: Result, described: dict[str, Any]) -> None:
    """Writes the page with its manifest, and the figures beside it as .json and .csv."""
    stem = os.path.splitext(result.options.out)[0]
    rows = [_row(setting, figures) for setting, figures in result.figures.items()]
    content = {
        "advice": result.advice,
        "base": result.plan.base._asdict(),
        "finest": result.plan.finest._asdict(),
        "fraction": result.options.fraction,
        "sampled": result.sampled,
        "pairs": result.pairs,
        "settings": rows,
    }
    files.write_bytes(f"{stem}.json", manifest.to_json(content))
    files.write_bytes(f"{stem}.csv", _csv(rows))
    files.write_bytes(result.options.out, sensitivity_page.render(_page(result, described)).encode())
    manifest.write_beside(result.options.out, described)


def _row(setting: Setting, figures: Figures) -> dict[str, Any]:
    # Equal scores have no rank correlation; JSON has no NaN.
    shown = {name: None if value != value else round(value, 6) for name, value in figures._asdict().items()}
    return {**setting._asdict(), **shown}


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _page(result: Result, described: Mapping[str, Any]) -> sensitivity_page.Page:
    axes = []
    for name, settings in result.plan.axes.items():
        rows = [
            sensitivity_page.Row(_label(getattr(one, name)), one == result.plan.base, *result.figures[one])
            for one in settings
        ]
        axes.append(sensitivity_page.Axis(*_AXES[name], rows))
    facts = {**described["options"], "tag": described["tag"], **described["versions"]}
    return sensitivity_page.Page(
        pool=result.options.pool,
        advice=result.advice.replace(" %", "\u202f%"),
        base=_describe(result.plan.base),
        finest=_describe(result.plan.finest),
        fraction=result.options.fraction,
        sampled=result.sampled,
        pairs=result.pairs,
        axes=axes,
        notes=result.notes,
        facts=[(name, str(value)) for name, value in facts.items()],
    )


def as_text(result: Result) -> str:
    """The table, the notes, the advice, and where the page is."""
    plan = result.plan
    rows = [
        ["varied", "flips between seeds", "differs from finest", "Spearman, CLIPScore", "overlap, CLIPScore"]
    ]
    for name, settings in plan.axes.items():
        for one in settings:
            figures = result.figures[one]
            mark = " *" if one == plan.base else ""
            rows.append(
                [
                    f"{_AXES[name][0]} = {_label(getattr(one, name))}{mark}",
                    percent(figures.flips_between_seeds),
                    percent(figures.flips_from_finest),
                    f"{figures.spearman_clip_score:.3f}",
                    percent(figures.overlap_clip_score),
                ]
            )
    of_all = "" if result.sampled == result.pairs else f" sampled from {result.pairs:,}"
    lines = [
        f"The top {result.options.fraction:g} of {result.sampled:,} pairs{of_all}, varied about"
        f" {_describe(plan.base)} (*); finest: {_describe(plan.finest)}",
        "",
        progress.table(rows),
        "",
        *result.notes,
        result.advice,
        f"The page: {result.options.out}, its figures beside it as .csv and .json",
    ]
    return "\n".join(lines)


def _describe(setting: Setting) -> str:
    k, m, size, t = map(_label, setting)
    return f"K = {k}, m = {m}, |B| = {size}, t = {t}"


def _label(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
