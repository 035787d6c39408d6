"""`clipdata select`: score tables and a rule in, the sorted uids of the kept pairs out. Imports no jax."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from clipdata_jax import config
from clipdata_jax.data import files, tables, uids
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import manifest
from clipdata_jax.selection import parsing, ranking, rules


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a selection kept.

    Attributes:
      rule: the rule's text.
      pairs: pairs in the score tables.
      kept: pairs that the rule keeps.
      uids: distinct uids of these, as written.
      steps: what every part of the rule kept, in the order of evaluation.
      without_score: column -> {"null", "infinite"} -> pairs that for this reason the column never selects.
      repeats: pairs of the pool that repeat another pair's uid.
    """

    rule: str
    pairs: int
    kept: int
    uids: int
    steps: tuple[rules.Step, ...]
    without_score: dict[str, dict[str, int]]
    repeats: int

    def facts(self) -> dict[str, Any]:
        """The summary as the manifest keeps it."""
        return dataclasses.asdict(self)


def run(options: config.Select) -> Summary:
    """Selects by the rule, writes the subset and its manifest, and prints what was kept.

    Raises:
      InputError: a table or the rule is wrong, or `out` holds something else.
    """
    if not options.out.endswith(".npy"):
        raise InputError(f"--out is {options.out!r}, expected a file name that ends in .npy")
    table = tables.open_tables(options.scores)
    rule = parsing.parse(options.rule, table.columns)
    table.refuse_shared(rule.columns())
    parts = [files.join(folder, f"{part}.parquet") for folder in table.folders for part in table.parts]
    plan = manifest.describe("select", options, inputs=[*parts, *_there(rule)], rule=str(rule))
    _refuse_other_run(options.out, plan)
    if not len(table):
        raise InputError(
            f"{options.scores[0]}: the score table holds no pairs, so there is nothing to select from"
        )
    uid, columns = table.read(rule.columns())
    mask, steps = rule.trace(columns, uid)
    kept = uids.sort_unique(uid[mask])
    uids.write_subset(options.out, kept)
    summary = Summary(
        rule=str(rule),
        pairs=len(uid),
        kept=int(mask.sum()),
        uids=len(kept),
        steps=tuple(steps),
        without_score={name: _without_score(values) for name, values in columns.items()},
        repeats=ranking.count_repeats(uid),
    )
    manifest.write_beside(options.out, {**plan, **summary.facts()})
    print(_text(summary, options.out))
    return summary


def _there(rule: rules.Rule) -> tuple[str, ...]:
    for path in rule.files():
        if not files.exists(path):
            raise InputError(f"{path}: no such file, but the rule takes uids from it; check the path")
    return rule.files()


def _refuse_other_run(out: str, plan: dict[str, Any]) -> None:
    """The same selection may be written again; anything else that is there stays."""
    if not files.exists(out):
        return
    beside = f"{out}.{manifest.NAME}"
    advice = "choose another --out, or delete it"
    try:
        before = json.loads(files.read_bytes(beside)) if files.exists(beside) else {}
        was = [before["command"], before["rule"], before["options"]["scores"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out}: already there, and no manifest says what it holds; {advice}") from error
    for name, old, new in zip(
        ("command", "rule", "scores"), was, ("select", plan["rule"], plan["options"]["scores"])
    ):
        if old != new:
            raise InputError(
                f"{out}: already holds another run's subset ({name} was {old!r}, now {new!r}); {advice}"
            )


def _without_score(values: np.ndarray) -> dict[str, int]:
    return {"null": int(np.isnan(values).sum()), "infinite": int(np.isinf(values).sum())}


def _text(summary: Summary, out: str) -> str:
    share = f"{summary.kept / summary.pairs:.2%}".replace("%", " %")
    lines = [f"kept {summary.kept:,} of {summary.pairs:,} pairs ({share}): {out}"]
    lines.append(f"{'looked at':>14} {'kept':>14}   step")
    for step in summary.steps:
        short = f"   ({step.asked:,} asked for)" if step.asked is not None and step.kept < step.asked else ""
        lines.append(f"{step.seen:>14,} {step.kept:>14,}   {step.rule}{short}")
    for name, counts in summary.without_score.items():
        if any(counts.values()):
            lines.append(
                f"{name}: {counts['null']:,} pairs have no score and {counts['infinite']:,} an infinite one;"
                " the column selects none of them"
            )
    if summary.repeats:
        lines.append(
            f"{summary.repeats:,} pairs repeat the uid of another; the subset holds each uid once: {summary.uids:,}"
        )
    if not summary.kept:
        lines.append("the rule keeps nothing: the subset is empty")
    return "\n".join(lines)
