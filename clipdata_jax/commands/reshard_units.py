"""The units of `clipdata reshard`: what each reads, keeps and writes."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from clipdata_jax import config, storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats.copying import sample_keys, tar_copy
from clipdata_jax.formats.copying.sample_keys import Repeats
from clipdata_jax.formats.copying.shrinking import Shrinker
from clipdata_jax.formats.copying.source_samples import SampleReader, select_rows
from clipdata_jax.formats.copying.tar_selection import Subset, select_samples
from clipdata_jax.formats.sources.source import Source, TarSource
from clipdata_jax.runs import manifest, telemetry
from clipdata_jax.runs.output import Output
from clipdata_jax.runs.records import FileEntry


@dataclasses.dataclass(frozen=True)
class ReshardUnit:
    """A source of the pool, or a few that are repacked together.

    Attributes:
      name: of what is written.
      sources: name -> source.
      repeats: keys that units before this one hold, too; None until all units are written once, or if there are none.
    """

    name: str
    sources: Mapping[str, Source]
    repeats: Repeats | None = None

    @property
    def inputs(self) -> list[str]:
        """The files whose change makes what is written stale."""
        return list(dict.fromkeys(path for source in self.sources.values() for path in source.inputs))


def make_units(sources: Mapping[str, Source], options: config.Reshard) -> dict[str, ReshardUnit]:
    """The units of a run, by name.

    Args:
      sources: name -> source, as of `discovery.find_sources`.
      options: of the command.
    """
    if options.samples_per_tar is None:
        return {name: ReshardUnit(name, {name: source}) for name, source in sources.items()}
    size, named = options.tars_per_unit, list(sources.items())
    groups = enumerate(named[start : start + size] for start in range(0, len(named), size))
    return {f"{i:05d}": ReshardUnit(f"{i:05d}", dict(group)) for i, group in groups}


@dataclasses.dataclass(frozen=True)
class ChosenSamples:
    """The selected samples of a unit, the positions of their uids in the subset, and the facts of each source."""

    samples: list[Any]
    at: np.ndarray
    facts: list[dict[str, Any]]

    def keys(self) -> list[str]:
        """The samples' keys, numbered where they repeat in the unit."""
        return sample_keys.number_repeats([sample.key for sample in self.samples])

    def renamed(self, keys: Sequence[str]) -> np.ndarray:
        """Whether each sample's key differs from these: shape (n,), bool."""
        return np.array([sample.key != key for sample, key in zip(self.samples, keys, strict=True)], bool)


@dataclasses.dataclass(frozen=True)
class Resharder:
    """Writes the units of a run.

    Attributes:
      options: of the command.
      subset: the selected uids.
      names: path -> name in the pool of all sources of the run, from `pool_names`.
      process: index of this process, for `_run.jsonl`.
      taken: hashes of the keys of all units, sorted, for units with `repeats`.
    """

    options: config.Reshard
    subset: Subset
    names: Mapping[str, str]
    process: int
    taken: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))

    def choose(self, unit: ReshardUnit) -> ChosenSamples:
        """Finds the selected samples; those of tars from headers and `.json`s.

        Raises:
          InputError: a source or a sample is broken, and on_bad is "stop".
        """
        chosen = ChosenSamples([], np.empty(0, np.int64), [])
        for name, source in unit.sources.items():
            facts: dict[str, Any] = {"source": name}
            skip = self.options.on_bad == "skip"
            named: dict[str, Any] = {"name": self.names[source.path], "skip_bad": skip}
            try:
                if isinstance(source, TarSource):
                    found = select_samples(source.path, self.subset, **named)
                else:
                    found = select_rows(source, self.subset, unit=name, **named)
            except InputError as error:
                if not skip:
                    raise InputError(f"{error} (or use --on-bad skip)") from error
                facts["skipped"] = str(error)
            else:
                counts = {"samples": found.seen, "kept": len(found.at), "hidden": found.hidden}
                chosen = ChosenSamples([*chosen.samples, *found.samples], np.append(chosen.at, found.at), chosen.facts)
                facts |= {**counts, "skipped_samples": found.skipped}
            chosen.facts.append(facts)
        return chosen

    def write(self, unit: ReshardUnit, output: Output) -> None:
        """Writes the unit's tars, the uids of each, hashes of all keys, and the receipt.

        Raises:
          InputError: as `choose`, or the output can't be written.
        """
        with storage.downloaded(unit.inputs):  # read twice: to choose, then to copy
            watch, start = telemetry.Stopwatch(self.process), time.monotonic()
            entries = [
                manifest.file_entry(path) if self.options.digests else FileEntry(path, storage.size(path))
                for path in unit.inputs
            ]
            chosen = self.choose(unit)
            keys = chosen.keys()
            parts: dict[str, bytes | Callable[[BinaryIO], None]] = {}
            if keys:
                parts[keys_file(unit.name)] = _npy(sample_keys.hash_keys(keys))
            facts: dict[str, Any] = {"inputs": entries, "sources": chosen.facts, "sizes": {}}
            reader, side = SampleReader(), self.options.shrink
            shrinker = None if side is None else Shrinker(side, skip_bad=self.options.on_bad == "skip")
            if unit.repeats is not None:
                keys = sample_keys.rename(keys, unit.repeats, self.taken)
                facts["all_keys"] = unit.repeats.digest
            for name, rows in self.tars_of(unit, len(keys)):
                samples, uid = chosen.samples[rows], self.subset.uids[chosen.at[rows]]
                parts[f"{name}.tar"] = functools.partial(
                    tar_copy.write_samples, chosen=samples, keys=keys[rows], reader=reader, shrinker=shrinker
                )
                parts[f"uids/{name}.npy"] = _npy(uid)
                facts["sizes"][f"{name}.tar"] = len(uid)
            facts["renamed"] = int(chosen.renamed(keys).sum())
            if shrinker is not None:
                facts["images"] = shrinker.counts  # counted while the tars are written, before the receipt
            output.complete(
                unit.name,
                parts,
                facts,
                inputs=entries,
                undigested=() if self.options.digests else tuple(facts["sizes"]),
                times=watch.lap(sum(one.get("samples", 0) for one in chosen.facts), read=time.monotonic() - start),
            )

    def tars_of(self, unit: ReshardUnit, count: int) -> list[tuple[str, slice]]:
        """The output tars of a unit with `count` selected samples: name and rows."""
        most = self.options.samples_per_tar
        if most is None:
            return [(unit.name, slice(0, count))] if count else []
        starts = range(0, count, most)
        return [(f"{unit.name}_{i:05d}", slice(start, start + most)) for i, start in enumerate(starts)]


def keys_file(unit: str) -> str:
    """The name of the file with the hashes of a unit's keys, those that its samples have without regard to others."""
    return f"keys/{unit}.npy"


def _npy(array: np.ndarray) -> Callable[[BinaryIO], None]:
    return functools.partial(np.save, arr=array, allow_pickle=False)
