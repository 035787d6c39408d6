"""Units of `clipdata reshard` written by several processes: what decides on samples holds Python's lock. No jax."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Reshard
from clipdata_jax.errors import InputError
from clipdata_jax.formats import uids
from clipdata_jax.pipeline.reshard_units import Subset, Unit
from clipdata_jax.runs.output import Output
from clipdata_jax.runtime import stopping, threads, worker_pool

_WORTH = 4  # tars: more than is written in the time that a process takes to begin
_SECONDS = 0.2  # between two looks at what the others have done


def how_many(tars: Sequence[Sequence[str]], options: Reshard) -> int:
    """How many processes write units of these tars: what --processes says, or one a core, if there is work for them.

    What a program says to fsspec is known in its own process only, so an object store is left to one.
    """
    paths = [path for unit in tars for path in unit]
    if options.processes is None and not all(map(storage.is_local, [options.out, *paths])):
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
        for _ in threads.in_order(lambda unit: unit.write(output), units, several, ahead=1):
            yield 1
        return
    deal, told = _Deal(len(units)), 0
    with stopping.scratch("clipdata-reshard-") as scratch:
        units[0].subset.save(scratch)
        none = Subset(np.empty(0, uids.DTYPE), np.empty(0, np.int64))
        bare = [dataclasses.replace(unit, subset=none) for unit in units]
        with worker_pool.Pool(count - 1, _begin, scratch, bare, output, deal, several) as pool:
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


class _Deal:
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


def _write(units: Sequence[Unit], output: Output, deal: _Deal, several: int) -> Iterator[int]:
    def write(number: int) -> None:
        units[number].write(output)
        deal.tell()

    try:
        for _ in threads.in_order(write, deal.take(), several, ahead=1):
            yield deal.done
    finally:
        deal.end()  # where one fails, nobody begins another


_here: list[Iterator[int]] = []


def _begin(scratch: str, bare: Sequence[Unit], output: Output, deal: _Deal, several: int) -> None:
    subset = Subset.mapped(scratch)
    _here.append(_write([dataclasses.replace(unit, subset=subset) for unit in bare], output, deal, several))


def _write_here() -> None:
    for _ in _here.pop():
        pass
