"""Units of `clipdata reshard`: one of the pool's tars, or a few that are repacked. Imports no jax."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, BinaryIO

import numpy as np

from clipdata_jax import config, storage
from clipdata_jax.config import Reshard
from clipdata_jax.embedding import samples
from clipdata_jax.errors import InputError
from clipdata_jax.formats import tar_copy, tar_index, tars, uids
from clipdata_jax.formats.tar_index import TarReader, open_tar
from clipdata_jax.runs import manifest, telemetry
from clipdata_jax.runs.output import Output
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import threads, worker_pool

_ARRAYS = ("uids.npy", "times.npy", "high.npy")
# Looking through headers holds the interpreter: one thread at a time, so that the others write meanwhile.
_HEADER_LOCK = threading.Lock()
_KEY = b'"uid"'
_UID = re.compile(rb'"uid"\s*:\s*"([0-9a-fA-F]{32})"')


class Subset:
    """The selected uids.

    Attributes:
      uids: shape (n,), u8,u8, sorted, unique.
      times: shape (n,), int64: how often each is to be written.
      index: of `uids`.
    """

    def __init__(self, uid: np.ndarray, times: np.ndarray, high: np.ndarray | None = None) -> None:
        self.uids, self.times, self.index = uid, times, uids.UidIndex(uid, high)

    @classmethod
    def read(cls, path: str) -> Subset:
        """Reads a subset file.

        Raises:
          InputError: it can't be read, or is empty.
        """
        uid, times = uids.read_multiset(path)
        if not len(uid):
            raise InputError(f"{path}: the subset is empty, so no tar would be written")
        return cls(uid, times)

    def save(self, folder: str) -> None:
        """Writes it to a local folder, for other processes to map into their memory."""
        for name, array in zip(_ARRAYS, (self.uids, self.times, self.index.high), strict=True):
            np.save(os.path.join(folder, name), array)

    @classmethod
    def mapped(cls, folder: str) -> Subset:
        """What `save` wrote; processes share the memory."""
        return cls(
            *(
                np.asarray(np.load(os.path.join(folder, name), mmap_mode="r", allow_pickle=False))
                for name in _ARRAYS
            )
        )


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What of one or several tars is to be written.

    Attributes:
      samples: in order; a copy for each time that the subset names one.
      at: for each of them, the position of its uid in the subset.
      facts: for each tar, what the receipt keeps of it.
    """

    samples: list[tar_index.IndexedSample]
    at: np.ndarray
    facts: list[dict[str, Any]]

    def looked_at(self) -> int:
        """How many samples there were to choose from."""
        return sum(one.get("samples", 0) for one in self.facts)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit of the work.

    Attributes:
      name: of the unit, and of the tar that it writes.
      paths: its tars.
      subset: what is selected.
      shared_names: the file names that several tars of the run have.
      options: of the command.
    """

    name: str
    paths: Sequence[str]
    subset: Subset
    shared_names: Collection[str]
    options: config.Reshard

    def choose(self) -> Chosen:
        """Looks through headers and `.json`s.

        Raises:
          InputError: a tar or a sample is broken, and on_bad is "stop".
        """
        found = [self._choose_from(path) for path in self.paths]
        chosen = [sample for part in found for sample in part.samples]
        at = np.concatenate([part.at for part in found])
        return Chosen(chosen, at, [facts for part in found for facts in part.facts])

    def _choose_from(self, path: str) -> Chosen:
        entry = manifest.file_entry(path) if self.options.digests else FileEntry(path, storage.size(path))
        try:
            with (
                open_tar(path) as tar,
                _HEADER_LOCK if storage.Folder(path).is_local else contextlib.nullcontext(),
            ):
                return self._choose_among(path, tar, {"input": entry})
        except InputError as error:
            if self.options.on_bad == "stop":
                raise InputError(f"{error} (or use --on-bad skip)") from error
            return Chosen([], np.empty(0, np.int64), [{"input": entry, "skipped": str(error)}])

    def _choose_among(self, path: str, tar: TarReader, facts: dict[str, Any]) -> Chosen:
        index = tar_index.index_tar(tar)
        texts: list[str] = []
        good: list[int] = []
        skipped: list[dict[str, str]] = []
        for i, number in enumerate(index.jsons):
            json = index.read(number, tar) if number >= 0 else None
            uid = plain_uid(json) if json is not None else None
            if uid is None:
                key, fields = index.keys[i], {} if json is None else {"json": json}
                try:
                    uid = samples.sample_uid(path, tars.RawSample(key, fields, {}), self.shared_names)
                except InputError as error:
                    if self.options.on_bad == "stop":
                        raise InputError(f"{path}: sample {key!r}: {error}") from error
                    skipped.append({"tar": path, "key": key, "reason": str(error)})
                    continue
            good.append(i)
            texts.append(uid)
        at = self.subset.index.find(uids.from_hex(texts))
        kept = np.flatnonzero(at >= 0)
        kept = np.repeat(kept, self.subset.times[at[kept]])
        counts = {"samples": len(good) + len(skipped), "kept": len(kept), "skipped_samples": skipped}
        return Chosen([index.sample(good[i]) for i in kept], at[kept], [{**facts, **counts}])

    def write(self, output: Output) -> None:
        """Writes the unit's tars, with the uids that each holds beside them, and the receipt.

        Raises:
          InputError: as `choose`, or the output can't be written.
        """
        with storage.downloaded(self.paths):  # looked through, then copied from
            self._write(output)

    def _write(self, output: Output) -> None:
        workers, start = self.options.workers, time.monotonic()
        watch = telemetry.Stopwatch((workers.share() or (workers.process_id or 0, 1))[0])
        chosen = self.choose()
        parts: dict[str, Callable[[BinaryIO], None]] = {}
        held: dict[str, int] = {}
        for name, rows in self.outputs(len(chosen.samples)):
            parts[f"{name}.tar"] = functools.partial(tar_copy.write_samples, chosen=chosen.samples[rows])
            parts[f"uids/{name}.npy"] = functools.partial(_write_uids, rows=self.subset.uids[chosen.at[rows]])
            held[f"{name}.tar"] = len(chosen.at[rows])
        inputs = [facts["input"] for facts in chosen.facts]
        times = watch.lap(chosen.looked_at(), read=time.monotonic() - start)
        receipt = {"tars": chosen.facts, "sizes": held}
        large = () if self.options.digests else tuple(held)
        output.complete(self.name, parts, receipt, inputs=inputs, undigested=large, times=times)

    def outputs(self, count: int) -> list[tuple[str, slice]]:
        """The tars to write: name and rows."""
        most = self.options.samples_per_tar
        if most is None:
            return [(self.name, slice(0, count))] if count else []
        starts = range(0, count, most)
        return [(f"{self.name}_{i:05d}", slice(start, start + most)) for i, start in enumerate(starts)]


def plain_uid(json: bytes) -> str | None:
    """The uid of a JSON object where it stands plainly at the top; else None, and the JSON must be parsed.

    Nothing else of it matters here, and parsing all of it takes several times longer. Only one brace before it: the
    object's own. No backslash before it: what looks like a key is no end of a longer one.
    """
    at = json.find(_KEY)
    if at < 0 or json.find(_KEY, at + 1) >= 0 or json.count(b"{", 0, at) != 1 or json.find(b"\\", 0, at) >= 0:
        return None
    match = _UID.match(json, at)
    return match[1].decode().lower() if match else None


def _write_uids(file: BinaryIO, rows: np.ndarray) -> None:
    np.save(file, rows, allow_pickle=False)


def make_units(paths: Sequence[str], subset: Subset, options: config.Reshard) -> dict[str, Unit]:
    """The units of a run, by name: each of the pool's tars, or with `samples_per_tar` so many after one another."""
    shared = tars.shared_names(paths)
    if options.samples_per_tar is None:
        groups: dict[str, Sequence[str]] = {
            name: [path] for name, path in zip(tars.unit_names(paths), paths, strict=True)
        }
    else:
        size = options.tars_per_unit
        groups = {
            f"{i:05d}": paths[start : start + size] for i, start in enumerate(range(0, len(paths), size))
        }
    return {name: Unit(name, group, subset, shared, options) for name, group in groups.items()}


_WORTH = 4  # tars: more than is written in the time that a process takes to begin
_SECONDS = 0.2  # between two looks at what the others have done


def how_many(tars: Sequence[Sequence[str]], options: Reshard) -> int:
    """How many processes write units of these tars: what --processes says, or one a core, if there is work for them.

    What a program says to fsspec is known in its own process only, so an object store is left to one.
    """
    paths = [path for unit in tars for path in unit]
    if options.processes is None and not all(storage.Folder(path).is_local for path in [options.out, *paths]):
        return 1
    asked = options.processes or min(threads.cores(), len(paths) // _WORTH)
    return max(1, min(asked, len(tars)))


def write_all(units: Sequence[Unit], output: Output, count: int) -> Iterator[int]:
    """Writes units; whenever some more are done, says how many.

    Args:
      units: of one subset.
      output: where to.
      count: of the processes that write, this one among them.

    Raises:
      InputError: as `Unit.write`.
    """
    # While one thread waits for the disk, another looks through the next tar.
    several = max(2, threads.cores() // max(count, 1))
    if count <= 1:
        for _ in threads.prefetch(lambda unit: unit.write(output), units, threads=several, ahead=several):
            yield 1
        return
    deal, told = SharedCounter(len(units)), 0
    with storage.scratch("clipdata-reshard-") as scratch:
        units[0].subset.save(scratch)
        none = Subset(np.empty(0, uids.DTYPE), np.empty(0, np.int64))
        bare = [dataclasses.replace(unit, subset=none) for unit in units]
        with worker_pool.SpawnPool(count - 1, _begin, scratch, bare, output, deal, several) as pool:
            try:
                others = [pool.submit(_write_here) for _ in range(count - 1)]
                for done in _write(units, output, deal, several):
                    yield done - told
                    told = done
                while concurrent.futures.wait(others, _SECONDS).not_done:
                    done = deal.done
                    yield done - told
                    told = done
                for other in others:
                    other.result()
            except BrokenProcessPool as error:
                raise InputError(
                    "a process that wrote tars was killed, perhaps for want of memory; what is done is kept: give"
                    " the command again, with a smaller --processes"
                ) from error
            finally:
                deal.end()
    yield deal.done - told


class SharedCounter:
    """Deals out units among processes one by one, for a tar may be much larger than the next.

    Attributes:
      done: how many units are done, by whatever process.
    """

    def __init__(self, units: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._units, self._taken, self._done = units, spawn.Value("q", 0), spawn.Value("q", 0)

    @property
    def done(self) -> int:
        return self._done.value

    def take(self) -> Iterator[int]:
        """Numbers of units that no other process has, as long as there are."""
        while True:
            with self._taken.get_lock():
                number = self._taken.value
                if number >= self._units:
                    return
                self._taken.value += 1
            yield number

    def tell(self) -> None:
        """Says that a unit is done."""
        with self._done.get_lock():
            self._done.value += 1

    def end(self) -> None:
        """Lets nobody take another."""
        self._taken.value = self._units


def _write(units: Sequence[Unit], output: Output, deal: SharedCounter, several: int) -> Iterator[int]:
    def write(number: int) -> None:
        units[number].write(output)
        deal.tell()

    try:
        for _ in threads.prefetch(write, deal.take(), threads=several, ahead=several):
            yield deal.done
    finally:
        deal.end()  # where one fails, nobody begins another


_here: list[Iterator[int]] = []


def _begin(scratch: str, bare: Sequence[Unit], output: Output, deal: SharedCounter, several: int) -> None:
    subset = Subset.mapped(scratch)
    _here.append(_write([dataclasses.replace(unit, subset=subset) for unit in bare], output, deal, several))


def _write_here() -> None:
    for _ in _here.pop():
        pass
