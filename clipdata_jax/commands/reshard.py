"""`clipdata reshard`: tars that hold only the selected pairs. Imports no jax."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdata_jax import config
from clipdata_jax.commands import reshard_units
from clipdata_jax.commands.reshard_units import Subset, Unit, make_units
from clipdata_jax.errors import InputError, StoppedEarly
from clipdata_jax.formats import tars, uids
from clipdata_jax.runs import manifest, records
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import FileEntry, Receipt
from clipdata_jax.runtime import console, parallel, threads

_EXAMPLES = 5
_SIZES = "sizes.json"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a finished run wrote, or with `dry_run` would write.

    Attributes:
      tars: tars read.
      written: tars written; one without a kept sample is not.
      samples: samples in the tars that were read.
      kept: samples written.
      copies: of these, copies of samples whose uid the subset holds more than once.
      repeated: samples of the pool beyond the first of their uid: all are kept.
      selected: distinct uids in the subset.
      found: of these, uids that a tar holds.
      found_share: found / selected.
      missing: uids of the subset that no tar holds.
      missing_examples: the first few of these.
      skipped_tars: why tars were skipped, each naming its tar.
      skipped_samples: samples skipped: "tar", "key" and "reason".
    """

    tars: int
    written: int
    samples: int
    kept: int
    copies: int
    repeated: int
    selected: int
    found: int
    found_share: float
    missing: int
    missing_examples: tuple[str, ...]
    skipped_tars: tuple[str, ...]
    skipped_samples: tuple[dict[str, str], ...]


def run(options: config.Reshard) -> Summary | None:
    """Writes, for every tar of the pool, a tar of the same name with the selected samples only.

    A tar of which nothing is kept is not written. Tars of one name from different folders are told apart by
    their folders' names. Beside the tars, `uids/` has for each of them the uids it holds, and `sizes.json` how many
    samples, where open_clip looks for that. With `samples_per_tar` samples are repacked, in order: units of
    `tars_per_unit` tars each give tars of that size and one with the rest, called 00000_00000 and so on.

    Returns:
      the summary, or None where another process tells of the run.

    Raises:
      InputError: an input is missing or broken, or `out` holds something else.
    """
    paths = tars.find_tars(options.tars)
    subset = Subset.read(options.subset)
    share = parallel.start(options.workers)
    units = make_units(paths, subset, options)
    if options.dry_run:
        return _count(list(units.values())[share.index :: share.count], subset)
    plan = manifest.describe("reshard", options, inputs=[options.subset], pool=paths)
    output = open_output(options.out, plan=plan, units=list(units))
    remaining = output.remaining(share)
    now = remaining[: options.stop_after]
    with console.bar(total=len(now), unit="tar", name="reshard") as bar:
        todo = [units[name] for name in now]
        count = reshard_units.how_many([unit.paths for unit in todo], options)
        for done in reshard_units.write_all(todo, output, count):
            bar.update(done)
    if len(now) < len(remaining):
        raise StoppedEarly(len(now), len(remaining))
    content = output.finish(functools.partial(_facts, output, subset), share)
    if content is None:
        return None
    summary = Summary(**{field.name: content.facts[field.name] for field in dataclasses.fields(Summary)})
    if output.was_finished and not remaining:
        print(f"Already complete: {options.out}")
    else:
        print(_text(summary, f"{console.counted(summary.written, 'tar')} written: {options.out}"))
    if summary.missing == summary.selected:
        raise InputError(
            f"none of the {summary.selected:,} selected uids is in the tars: a uid is the one in a sample's .json or,"
            " without one, comes from the tar's file name and the key; were tars renamed, or was the pool scored from"
            " embeddings without a 'uid' column?"
        )
    return summary


def _count(units: Sequence[Unit], subset: Subset) -> Summary:
    """What the units would keep."""
    times, facts, written = np.zeros(len(subset.uids), np.int64), [], 0
    with console.bar(total=len(units), unit="tar", name="reshard --dry-run") as bar:
        for unit, chosen in zip(
            units, threads.prefetch(Unit.choose, units, ahead=threads.cores()), strict=True
        ):
            np.add.at(times, chosen.at, 1)
            facts += chosen.facts
            written += len(unit.outputs(len(chosen.samples)))
            bar.update(1)
    summary = _summary(subset, times, facts, written)
    print(_text(summary, "nothing written (--dry-run)"))
    return summary


def _facts(output: Output, subset: Subset, receipts: list[Receipt]) -> dict[str, Any]:
    """The run's own part of the manifest, from its units' receipts."""
    times = np.zeros(len(subset.uids), np.int64)
    names = [name for receipt in receipts for name in receipt.files if name.startswith("uids/")]
    read = functools.partial(_read_uids, output)
    for held in threads.prefetch(read, names, threads=output.folder.threads):
        np.add.at(times, subset.index.find(held), 1)
    facts = [facts for receipt in receipts for facts in receipt.facts["tars"]]
    sizes = {name: size for receipt in receipts for name, size in receipt.facts["sizes"].items()}
    output.folder.write(_SIZES, records.to_json(sizes))
    pool = [one["input"] for one in facts]
    names = tars.unit_names([FileEntry.from_json(entry).name for entry in pool])
    counts = {
        name: {key: one[key] for key in ("samples", "kept") if key in one}
        for name, one in zip(names, facts, strict=True)
    }
    summary = _summary(subset, times, facts, len(sizes))
    return {"pool": pool, "per_tar": counts, **dataclasses.asdict(summary)}


def _read_uids(output: Output, name: str) -> np.ndarray:
    with output.folder.open_read(name) as file:
        return np.asarray(np.load(file, allow_pickle=False))


def _summary(subset: Subset, times: np.ndarray, facts: list[dict[str, Any]], written: int) -> Summary:
    """Sums up.

    Args:
      subset: what is selected.
      times: shape (n,), int64: how often each of its uids is written.
      facts: of each tar.
      written: tars written.
    """
    good = [one for one in facts if "skipped" not in one]
    missing = np.flatnonzero(times == 0)
    in_pool = times // subset.times
    return Summary(
        tars=len(good),
        written=written,
        samples=sum(one["samples"] for one in good),
        kept=int(times.sum()),
        copies=int((times - in_pool).sum()),
        repeated=int(np.maximum(in_pool - 1, 0).sum()),
        selected=len(times),
        found=len(times) - len(missing),
        found_share=1 - len(missing) / len(times),
        missing=len(missing),
        missing_examples=tuple(uids.to_hex(subset.uids[missing[:_EXAMPLES]])),
        skipped_tars=tuple(one["skipped"] for one in facts if "skipped" in one),
        skipped_samples=tuple(sample for one in good for sample in one["skipped_samples"]),
    )


def _text(summary: Summary, written: str) -> str:
    lines = [
        f"kept {summary.kept:,} of {summary.samples:,} samples in {console.counted(summary.tars, 'tar')}; {written}"
    ]
    if summary.copies:
        lines.append(f"{summary.copies:,} of these are copies: the subset holds their uids more than once")
    if summary.repeated:
        lines.append(f"{summary.repeated:,} samples repeat the uid of another; all are kept")
    share = console.percent(summary.found_share)
    line = f"found {summary.found:,} of {summary.selected:,} selected uids ({share})"
    if summary.missing:
        examples = ", ".join(summary.missing_examples)
        line += f"; {summary.missing:,} {'is' if summary.missing == 1 else 'are'} in no tar, e.g. {examples}"
    lines.append(line)
    bad = console.skipped_samples(summary.skipped_samples)
    lines.append(console.skipped(manifest.NAME, tar=summary.skipped_tars, sample=bad))
    return "\n".join(filter(None, lines))
