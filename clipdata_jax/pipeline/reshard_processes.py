"""Units of `clipdata reshard` written by several processes: what decides on samples holds Python's lock. No jax."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from clipdata_jax import stopping
from clipdata_jax.data import threads, uids
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import work
from clipdata_jax.pipeline.reshard_units import Subset, Unit


def write_all(units: Sequence[Unit], output: work.Output, processes: int) -> Iterator[None]:
    """Writes units, and says so of each in order.

    Args:
      units: of one subset.
      output: where to.
      processes: how many; with one, threads.

    Raises:
      InputError: as `Unit.write`.
    """
    count = min(processes, len(units))
    if count <= 1:
        # Copying, digests and waiting for the disk leave the interpreter to the next unit.
        several = max(2, os.cpu_count() or 1)
        yield from threads.in_order(lambda unit: unit.write(output), units, several, ahead=1)
        return
    with stopping.scratch("clipdata-reshard-") as scratch:
        units[0].subset.save(scratch)
        none = Subset(np.empty(0, uids.DTYPE), np.empty(0, np.int64))
        bare = [dataclasses.replace(unit, subset=none) for unit in units]
        # A fork would copy the locks of the threads that there are.
        spawn = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(count, spawn, initializer=_begin, initargs=(scratch, output)) as pool:
                yield from pool.map(_write, bare)
        except BrokenProcessPool as error:
            raise InputError(
                "a process that wrote tars was killed, perhaps for want of memory; what is done is kept: give the"
                " command again, with a smaller --processes"
            ) from error


_here: dict[str, tuple[Subset, work.Output]] = {}


def _begin(scratch: str, output: work.Output) -> None:
    stopping.follow_parent()
    _here["run"] = Subset.mapped(scratch), output


def _write(unit: Unit) -> None:
    subset, output = _here["run"]
    dataclasses.replace(unit, subset=subset).write(output)
