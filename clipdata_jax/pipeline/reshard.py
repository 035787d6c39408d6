"""`clipdata reshard`: tars that hold only the selected pairs. The unit of work is one tar. Imports no jax."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO

import numpy as np

from clipdata_jax import config, parallel
from clipdata_jax.data import files, tars, uids
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import manifest, progress, samples, work

_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a finished run wrote.

    Attributes:
      tars: tars read.
      written: tars written; one without a kept sample is not.
      samples: samples in the tars that were read.
      kept: samples written.
      repeated: samples written beyond the first of their uid: all are kept.
      selected: uids in the subset.
      missing: uids of the subset that no tar holds.
      missing_examples: the first few of these.
      skipped_tars: why tars were skipped, each naming its tar.
      skipped_samples: samples skipped: "tar", "key" and "reason".
    """

    tars: int
    written: int
    samples: int
    kept: int
    repeated: int
    selected: int
    missing: int
    missing_examples: tuple[str, ...]
    skipped_tars: tuple[str, ...]
    skipped_samples: tuple[dict[str, str], ...]


class _BadTarError(InputError):
    """A tar that can't be read, as opposed to an output that can't be written."""


@dataclasses.dataclass
class _Unit:
    """One tar on its way through.

    Attributes:
      path: the tar.
      subset: the selected uids, sorted, unique.
      shared_names: the file names that several tars of the run have.
      on_bad: what to do with a sample whose uid can't be told.
      found: for each sample kept so far, the position of its uid in the subset.
      inputs: the tar with its size and digest, and
      facts: what the receipt keeps; both there when the last sample has passed.
    """

    path: str
    subset: np.ndarray
    shared_names: Collection[str]
    on_bad: config.OnBad
    found: list[int] = dataclasses.field(default_factory=list)
    inputs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def kept_members(self) -> Iterator[tuple[str, bytes]]:
        """The members of the kept samples, in order, under the names they have."""
        skipped: list[dict[str, str]] = []
        count = 0
        try:
            for sample in tars.read_tar(self.path):
                count += 1
                if self._is_kept(sample, skipped):
                    yield from ((sample.names[ext], data) for ext, data in sample.members.items())
        except InputError as error:
            raise _BadTarError(str(error)) from error
        entry = manifest.file_entry(self.path)
        self.inputs.append(entry)
        self.facts |= {"input": entry, "samples": count, "kept": len(self.found), "skipped_samples": skipped}

    def _is_kept(self, sample: tars.Sample, skipped: list[dict[str, str]]) -> bool:
        try:
            uid = uids.from_hex([samples.sample_uid(self.path, sample, self.shared_names)])
        except InputError as error:
            if self.on_bad == "stop":
                raise InputError(f"{self.path}: sample {sample.key!r}: {error}") from error
            skipped.append({"tar": self.path, "key": sample.key, "reason": str(error)})
            return False
        at = int(uids.find(self.subset, uid)[0])
        if at >= 0:
            self.found.append(at)
        return at >= 0

    def write_uids(self, file: BinaryIO) -> None:
        """The uids of the samples written, in their order."""
        np.save(file, self.subset[self.found], allow_pickle=False)


def run(options: config.Reshard) -> Summary | None:
    """Writes, for every tar of the pool, a tar of the same name with the selected samples only.

    A tar of which nothing is kept is not written. Tars of one name from different folders are told apart by
    their folders' names. Beside the tars, `uids/` has for each of them the uids it holds.

    Returns:
      the summary, or None while other processes are still at work on their tars.

    Raises:
      InputError: an input is missing or broken, or `out` holds something else.
    """
    paths = tars.find_tars(options.tars)
    subset = uids.read_subset(options.subset)
    if not len(subset):
        raise InputError(f"{options.subset}: the subset is empty, so no tar would be written")
    share = parallel.start(options.workers)
    names = tars.unit_names(paths)
    plan = manifest.describe("reshard", options, inputs=[options.subset], pool=paths)
    output = work.open_output(options.out, plan=plan, units=names)
    tar_of = dict(zip(names, paths, strict=True))
    shared = tars.shared_names(paths)
    remaining = output.remaining(share)
    with progress.bar(total=len(remaining), unit="tar", name="reshard") as bar:
        for name in remaining:
            _do_unit(output, name, _Unit(tar_of[name], subset, shared, options.on_bad))
            bar.update(1)
    content = output.finish(functools.partial(_facts, output, subset))
    if content is None:
        print(f"{options.out}: this process's {len(remaining):,} tars are done; others are still to come")
        return None
    summary = Summary(**{field.name: content[field.name] for field in dataclasses.fields(Summary)})
    print(_text(summary, options.out))
    if summary.missing == summary.selected:
        raise InputError(
            f"none of the {summary.selected:,} selected uids is in the tars: a uid is the one in a sample's .json or,"
            " without one, comes from the tar's file name and the key; were tars renamed, or was the pool scored from"
            " embeddings without a 'uid' column?"
        )
    return summary


def _do_unit(output: work.Output, name: str, unit: _Unit) -> None:
    start = time.monotonic()
    members = unit.kept_members()
    parts: dict[str, Callable[[BinaryIO], None]] = {}
    try:
        first = next(members, None)
        if first is not None:
            whole = itertools.chain([first], members)
            parts = {
                f"{name}.tar": lambda file: tars.write_members(file, whole),
                f"uids/{name}.npy": unit.write_uids,
            }
        seconds = round(time.monotonic() - start, 3)
        # The lists and dicts of a unit are filled while its files are written.
        output.complete(name, parts, unit.facts, inputs=unit.inputs, seconds=seconds)
    except _BadTarError as error:
        if unit.on_bad == "stop":
            raise InputError(f"{error} (or use --on-bad skip)") from error
        entry = manifest.file_entry(unit.path)
        output.complete(name, {}, {"input": entry, "skipped": str(error)}, inputs=[entry])


def _facts(output: work.Output, subset: np.ndarray, receipts: list[dict[str, Any]]) -> dict[str, Any]:
    """The run's own part of the manifest, from its units' receipts."""
    times = np.zeros(len(subset), np.int64)
    for name in (name for receipt in receipts for name in receipt["files"] if name.startswith("uids/")):
        with files.open_read(output.path(name)) as file:
            np.add.at(times, uids.find(subset, np.load(file, allow_pickle=False)), 1)
    missing = np.flatnonzero(times == 0)
    per_tar = {receipt["unit"]: receipt["facts"] for receipt in receipts}
    good = [facts for facts in per_tar.values() if "skipped" not in facts]
    summary = Summary(
        tars=len(good),
        written=sum(facts["kept"] > 0 for facts in good),
        samples=sum(facts["samples"] for facts in good),
        kept=int(times.sum()),
        repeated=int(np.maximum(times - 1, 0).sum()),
        selected=len(subset),
        missing=len(missing),
        missing_examples=tuple(uids.to_hex(subset[missing[:_EXAMPLES]])),
        skipped_tars=tuple(facts["skipped"] for facts in per_tar.values() if "skipped" in facts),
        skipped_samples=tuple(sample for facts in good for sample in facts["skipped_samples"]),
    )
    counts = {
        unit: {key: facts[key] for key in ("samples", "kept") if key in facts}
        for unit, facts in per_tar.items()
    }
    pool = [facts["input"] for facts in per_tar.values()]
    return {"pool": pool, "per_tar": counts, **dataclasses.asdict(summary)}


def _text(summary: Summary, out: str) -> str:
    lines = [
        f"kept {summary.kept:,} of {summary.samples:,} samples in {summary.tars:,} tars;"
        f" {summary.written:,} tars written: {out}"
    ]
    if summary.missing:
        examples = ", ".join(summary.missing_examples)
        lines.append(
            f"{summary.missing:,} of {summary.selected:,} selected uids are in no tar, e.g. {examples}"
        )
    if summary.repeated:
        lines.append(f"{summary.repeated:,} samples repeat the uid of another; all are kept")
    reasons = [*summary.skipped_tars]
    reasons += [f"{bad['tar']}: sample {bad['key']!r}: {bad['reason']}" for bad in summary.skipped_samples]
    if reasons:
        lines.append(
            f"skipped {len(summary.skipped_tars):,} tars and {len(summary.skipped_samples):,} samples, listed in"
            f" {manifest.NAME}; the first: {reasons[0]}"
        )
    return "\n".join(lines)
