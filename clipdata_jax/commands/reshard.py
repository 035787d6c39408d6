"""`clipdata reshard`: tars that hold only the selected pairs. Imports no jax."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import operator
import os
import queue
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from clipdata_jax import config, storage
from clipdata_jax.commands.reshard_units import Resharder, ReshardUnit, keys_file, make_units
from clipdata_jax.errors import InputError, StoppedEarly
from clipdata_jax.formats import pool_names, uids
from clipdata_jax.formats.copying import sample_keys
from clipdata_jax.formats.copying.tar_selection import Subset
from clipdata_jax.formats.sources import discovery
from clipdata_jax.formats.sources.source import TarSource
from clipdata_jax.runs import manifest, records
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import Receipt
from clipdata_jax.runtime import console, parallel, threads, worker_pool

_EXAMPLES = 5
_SIZES, _TAKEN = "sizes.json", "taken.npy"
_TARS_PER_PROCESS = 4  # more are written in the time that a process takes to start


@dataclasses.dataclass(frozen=True)
class ReshardSummary:
    """A finished run, or with `dry_run` what it would write.

    Attributes:
      tars: tars, or other sources, read.
      written: tars written; one without a selected sample is not.
      samples: samples in the tars read.
      kept: samples written.
      copies: of these, copies of samples whose uid the subset holds more than once.
      repeated: samples of the pool beyond the first of their uid: all are kept.
      renamed: samples whose key another one has, too, written as key-1, key-2 and so on.
      selected: distinct uids in the subset.
      found: of these, uids that a source holds.
      found_share: found / selected.
      missing: uids of the subset that no source holds.
      missing_examples: the first few of these.
      skipped_tars: why sources were skipped, each naming its own.
      skipped_samples: samples skipped: "tar", "key" and "reason".
      images: with `shrink` the counts of `shrinking.Shrinker`, else None.
    """

    tars: int
    written: int
    samples: int
    kept: int
    copies: int
    repeated: int
    renamed: int
    selected: int
    found: int
    found_share: float
    missing: int
    missing_examples: tuple[str, ...]
    skipped_tars: tuple[str, ...]
    skipped_samples: tuple[dict[str, str], ...]
    images: dict[str, Any] | None


def run(options: config.Reshard) -> ReshardSummary | None:
    """Writes, for every source of the pool, a tar of the same name with the selected samples only.

    A tar of which nothing is kept is not written. Tars of one name from different folders are distinguished by
    their folders' names. `uids/` has the uids of each tar, and `sizes.json` the number of its samples, where
    open_clip looks for that. With `samples_per_tar` samples are repacked, in order: units of `tars_per_unit` tars
    each give tars of that size and one with the rest, called 00000_00000 and so on. Keys that repeat in the output
    are numbered, see `sample_keys`.

    Returns:
      the summary, or None where another process prints it.

    Raises:
      InputError: an input is missing or broken, or `out` holds something else.
    """
    found = discovery.find_sources(options.sources, images_only=False, reading=options.reading)
    noun = "tar" if all(isinstance(source, TarSource) for source in found.units.values()) else "source"
    subset = Subset.read(options.subset)
    share = parallel.start(options.workers)
    units = make_units(found.units, options)
    names = found.names
    resharder = Resharder(options, subset, names, share.index)
    if options.dry_run:
        return _count(list(units.values())[share.index :: share.count], resharder, noun)
    paths = dict.fromkeys(path for unit in units.values() for path in unit.inputs)
    others: dict[str, Any] = {"sources": found.facts} if found.facts else {}
    plan = manifest.describe("reshard", options, inputs=[options.subset], pool=paths, **others)
    output = open_output(options.out, plan=plan, units=list(units), share=share)
    remaining = output.remaining(share)
    todo = [units[name] for name in remaining[: options.stop_after]]
    before = len(output.units[share.index :: share.count]) - len(remaining)
    with console.bar(total=before + len(todo), unit="tar", name="reshard", done=before) as bar:
        for done in _write_all(resharder, todo, output, process_count(todo, options)):
            bar.update(done)
    if len(todo) < len(remaining):
        raise StoppedEarly(len(todo), len(remaining))
    _number_across_units(resharder, units, output)
    content = output.finish(functools.partial(_facts, output, subset, found), share)
    if content is None:
        return None
    summary = ReshardSummary(**{field.name: content.facts[field.name] for field in dataclasses.fields(ReshardSummary)})
    if output.was_finished and not remaining:
        print(f"Already complete: {options.out}")
    else:
        print(_text(summary, noun, f"{console.counted(summary.written, 'tar')} written: {options.out}"))
        if line := console.passed_over(content.facts["passed_over"]):
            print(line)
        if line := pool_names.repeats_text(content.facts.get("repeated_names", {})):
            print(line)
    if summary.missing == summary.selected:
        raise InputError(
            f"none of the {summary.selected:,} selected uids is in the {noun}s: a uid is the one in a sample's .json"
            " or, without one, comes from the file name (with its folders, where several files of the pool have that"
            " name) and the key; were files renamed, or others given than to embed, or was the pool scored from"
            " embeddings without a 'uid' column?"
        )
    return summary


def _number_across_units(resharder: Resharder, units: Mapping[str, ReshardUnit], output: Output) -> None:
    """Writes the units again that hold a key of a unit before them; none while units are missing.

    Receipts name the digest of all keys that new ones were chosen by, so that this goes on where it was stopped.

    Raises:
      InputError: as `Resharder.write`.
    """
    while len(receipts := output.receipts()) == len(units):
        taken, repeats = _find_repeats(output, receipts)
        wanted = {name: one.digest for name, one in repeats.items()}
        todo = [
            dataclasses.replace(units[name], repeats=repeats.get(name))
            for name, receipt in receipts.items()
            if receipt.facts.get("all_keys") != wanted.get(name)
        ]
        if not todo:
            return
        again = dataclasses.replace(resharder, taken=taken)
        with console.bar(total=len(todo), unit="tar", name="reshard: keys") as bar:
            for done in _write_all(again, todo, output, process_count(todo, resharder.options)):
                bar.update(done)


def _find_repeats(output: Output, receipts: Mapping[str, Receipt]) -> tuple[np.ndarray, dict[str, sample_keys.Repeats]]:
    """Finds the keys that several units hold, see `sample_keys.find_repeats`."""
    names = {unit: name for unit, one in receipts.items() if (name := keys_file(unit)) in one.files}
    read = threads.prefetch(functools.partial(_read_array, output), names.values(), threads=output.folder.threads)
    held = dict(zip(names, read, strict=True))
    digests = [f"{unit} {receipts[unit].files[name].digest}" for unit, name in names.items()]
    return sample_keys.find_repeats(held, hashlib.sha256("\n".join(digests).encode()).hexdigest())


def process_count(units: Sequence[ReshardUnit], options: config.Reshard) -> int:
    """The number of processes: --processes, or one per core where there are enough tars.

    One for object stores: how a program configured fsspec is known in its own process only.
    """
    sources = [source for unit in units for source in unit.sources.values()]
    if not all(isinstance(source, TarSource) for source in sources):
        return 1  # sent to another process, a table would be copied with every unit of it
    paths = [source.path for source in sources]
    if options.processes is None and not all(storage.Folder(path).is_local for path in [options.out, *paths]):
        return 1
    asked = options.processes or min(threads.cores(), len(paths) // _TARS_PER_PROCESS)
    return max(1, min(asked, len(units)))


def _write_all(resharder: Resharder, units: Sequence[ReshardUnit], output: Output, count: int) -> Iterator[int]:
    """Writes units in this process and `count - 1` others; yields how many more are done.

    Raises:
      InputError: as `Resharder.write`, or a process was killed.
    """
    write = functools.partial(resharder.write, output=output)
    # While one thread waits for the disk, another reads the headers of the next tar.
    several = max(2, threads.cores() // count)
    if count == 1:
        for _ in threads.prefetch(write, units, threads=several, ahead=several):
            yield 1
        return
    finished: queue.SimpleQueue[Future[None]] = queue.SimpleQueue()

    def note(future: Future[None]) -> None:
        if not future.cancelled():
            finished.put(future)

    with storage.scratch("clipdata-reshard-") as scratch:
        resharder.subset.save(scratch)
        np.save(os.path.join(scratch, _TAKEN), resharder.taken)
        bare = dataclasses.replace(resharder, subset=_NOTHING, taken=resharder.taken[:0])
        pool = worker_pool.SpawnPool(count - 1, _start_process, scratch, bare, output)
        try:
            futures = [pool.submit(_write_unit, unit) for unit in units]
            for future in futures:
                future.add_done_callback(note)
            own = _unclaimed(units, futures)
            done = 0
            for _ in threads.prefetch(write, own, threads=several, ahead=several):
                ready = [finished.get() for _ in range(finished.qsize())]
                for future in ready:
                    future.result()
                done += 1 + len(ready)
                yield 1 + len(ready)
            while done < len(units):
                finished.get().result()
                done += 1
                yield 1
        except BrokenProcessPool as error:
            raise InputError(
                "a process that wrote tars was killed, perhaps for lack of memory; what is done is kept: run the"
                " command again with fewer --processes"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _unclaimed(units: Sequence[ReshardUnit], futures: Sequence[Future[None]]) -> Iterator[ReshardUnit]:
    """The units that no other process has begun, each taken from the others as it is asked for."""
    return (unit for unit, future in zip(units, futures, strict=True) if future.cancel())


_NOTHING = Subset(np.empty(0, uids.DTYPE), np.empty(0, np.int64))
_write_here: Callable[[ReshardUnit], None]


def _start_process(scratch: str, bare: Resharder, output: Output) -> None:
    global _write_here
    taken = np.load(os.path.join(scratch, _TAKEN), mmap_mode="r", allow_pickle=False)
    resharder = dataclasses.replace(bare, subset=Subset.mapped(scratch), taken=np.asarray(taken))
    _write_here = functools.partial(resharder.write, output=output)


def _write_unit(unit: ReshardUnit) -> None:
    _write_here(unit)


def _count(units: Sequence[ReshardUnit], resharder: Resharder, noun: str) -> ReshardSummary:
    """Counts what the units would keep."""
    subset = resharder.subset
    times, facts, written = np.zeros(len(subset.uids), np.int64), [], 0
    held: dict[str, np.ndarray] = {}
    renamed: dict[str, np.ndarray] = {}
    with console.bar(total=len(units), unit="tar", name="reshard --dry-run") as bar:
        for unit, chosen in zip(units, threads.prefetch(resharder.choose, units, ahead=threads.cores()), strict=True):
            np.add.at(times, chosen.at, 1)
            facts += chosen.facts
            written += len(resharder.tars_of(unit, len(chosen.samples)))
            keys = chosen.keys()
            held[unit.name], renamed[unit.name] = sample_keys.hash_keys(keys), chosen.renamed(keys)
            bar.update(1)
    for name, repeats in sample_keys.find_repeats(held)[1].items():
        renamed[name][repeats.rows] = True
    summary = _summary(subset, times, facts, written, renamed=sum(int(one.sum()) for one in renamed.values()))
    print(_text(summary, noun, "nothing written (--dry-run)"))
    return summary


def _facts(output: Output, subset: Subset, found: discovery.Sources, receipts: list[Receipt]) -> dict[str, Any]:
    """The run's own part of the manifest, from its units' receipts."""
    times = np.zeros(len(subset.uids), np.int64)
    names = [name for receipt in receipts for name in receipt.files if name.startswith("uids/")]
    read = functools.partial(_read_array, output)
    for held in threads.prefetch(read, names, threads=output.folder.threads):
        np.add.at(times, subset.index.find(held), 1)
    facts = [facts for receipt in receipts for facts in receipt.facts["sources"]]
    sizes = {name: size for receipt in receipts for name, size in receipt.facts["sizes"].items()}
    output.folder.write(_SIZES, records.to_json(sizes))
    pool = list({entry["name"]: entry for receipt in receipts for entry in receipt.facts["inputs"]}.values())
    counts = {one["source"]: {key: one[key] for key in ("samples", "kept") if key in one} for one in facts}
    renamed = sum(receipt.facts["renamed"] for receipt in receipts)
    images = [receipt.facts["images"] for receipt in receipts if "images" in receipt.facts]
    summary = _summary(subset, times, facts, len(sizes), renamed=renamed, images=images)
    hidden = Counter({console.HIDDEN: sum(one.get("hidden", 0) for one in facts)})
    return {
        "pool": pool,
        "per_tar": counts,
        "passed_over": dict(found.passed_over + hidden),  # none where the sum is 0
        **({"repeated_names": repeated} if (repeated := pool_names.repeats(found.names)) else {}),
        **dataclasses.asdict(summary),
    }


def _read_array(output: Output, name: str) -> np.ndarray:
    with output.folder.open_read(name) as file:
        return np.asarray(np.load(file, allow_pickle=False))


def _summary(
    subset: Subset,
    times: np.ndarray,
    facts: list[dict[str, Any]],
    written: int,
    *,
    renamed: int,
    images: Sequence[dict[str, Any]] = (),
) -> ReshardSummary:
    """Sums up.

    Args:
      subset: what is selected.
      times: shape (n,), int64: how often each of its uids is written.
      facts: of each tar.
      written: tars written.
      renamed: samples written under another key.
      images: of each unit, counts of `shrinking.Shrinker`.
    """
    good = [one for one in facts if "skipped" not in one]
    missing = np.flatnonzero(times == 0)
    in_pool = times // subset.times
    return ReshardSummary(
        tars=len(good),
        written=written,
        samples=sum(one["samples"] for one in good),
        kept=int(times.sum()),
        copies=int((times - in_pool).sum()),
        repeated=int(np.maximum(in_pool - 1, 0).sum()),
        renamed=renamed,
        selected=len(times),
        found=len(times) - len(missing),
        found_share=1 - len(missing) / len(times),
        missing=len(missing),
        missing_examples=tuple(uids.to_hex(subset.uids[missing[:_EXAMPLES]])),
        skipped_tars=tuple(one["skipped"] for one in facts if "skipped" in one),
        skipped_samples=tuple(sample for one in good for sample in one["skipped_samples"]),
        images={name: functools.reduce(operator.add, [one[name] for one in images]) for name in images[0]}
        if images
        else None,
    )


def _text(summary: ReshardSummary, noun: str, written: str) -> str:
    lines = [
        f"kept {summary.kept:,} of {summary.samples:,} samples in {console.counted(summary.tars, noun)}; {written}"
    ]
    if summary.copies:
        lines.append(f"{summary.copies:,} of these are copies: the subset holds their uids more than once")
    if summary.repeated:
        lines.append(f"{summary.repeated:,} samples repeat the uid of another; all are kept")
    if summary.renamed > summary.copies:
        lines.append(f"{summary.renamed:,} samples have the key of another and are written as key-1, key-2 and so on")
    if summary.images is not None:
        kept_as = f"{console.counted(summary.images['as_they_were'], 'image')} left as they were"
        lines.append(f"{console.counted(summary.images['shrunk'], 'image')} shrunk, {kept_as}")
        if broken := summary.images["broken"]:
            lines.append(
                f"{console.counted(len(broken), 'image')} can't be decoded, copied as"
                f" {'it is' if len(broken) == 1 else 'they are'}; the first: {broken[0]['tar']}: sample"
                f" {broken[0]['key']!r}: {broken[0]['reason']}"
            )
    share = console.percent(summary.found_share)
    line = f"found {summary.found:,} of {summary.selected:,} selected uids ({share})"
    if summary.missing:
        examples = ", ".join(summary.missing_examples)
        line += f"; {summary.missing:,} {'is' if summary.missing == 1 else 'are'} in no {noun}, e.g. {examples}"
    lines.append(line)
    bad = console.skipped_samples(summary.skipped_samples)
    lines.append(console.skipped(manifest.NAME, **{noun: summary.skipped_tars}, sample=bad))
    return "\n".join(filter(None, lines))
