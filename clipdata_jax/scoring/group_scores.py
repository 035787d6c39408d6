"""Scores groups of pairs on this process's devices: a whole group per device, without collectives."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipdata_jax.runtime import parallel

if TYPE_CHECKING:
    from jax.sharding import Mesh


class Job(NamedTuple):
    """A group to score on a device.

    Attributes:
      rows: shape (n,), its rows among the pairs.
      slots: shape (n,), their places among `size` rows, of which the others are padding.
      size: rows of the compiled program; groups of one size share a program.
      batch_of_cell: shape (sizes, K, cells), as `scores.neg_clip_loss_statistics` takes it.
    """

    rows: np.ndarray
    slots: np.ndarray
    size: int
    batch_of_cell: np.ndarray


class Pairs(NamedTuple):
    """Pairs to score: unit rows, (n, d) each, and which of them count, (n,)."""

    images: np.ndarray
    texts: np.ndarray
    good: np.ndarray


def run(
    jobs: Iterable[Job], pairs: Pairs, temperatures: Sequence[float]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Scores groups in order, one group per device at a time.

    The bits don't depend on the number of devices, since each runs the same program on the same shapes.

    Yields:
      The rows of a job, and the fields of their `scores.NegClipLossStatistics`, (temperatures, sizes, n).
    """
    mesh = parallel.local_mesh()
    temperature = np.asarray(temperatures, np.float32)
    waiting: tuple[list[Job], Any] | None = None
    for jobs_of_round in _rounds(jobs, mesh.size):
        started = jobs_of_round, program(mesh)(*_place(jobs_of_round, pairs, mesh), temperature)
        if waiting is not None:  # one round in flight, one waiting
            yield from _fetch(*waiting)
        waiting = started
    if waiting is not None:
        yield from _fetch(*waiting)


@functools.cache
def program(mesh: Mesh) -> Any:
    """The compiled program of a round: pairs (devices * size, d), mask, and divisions (devices, ...)."""
    import jax
    from jax.sharding import PartitionSpec as P

    from clipdata_jax import scores

    own, shared = P(parallel.AXIS), P()

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(own, own, own, own, shared), out_specs=own)
    def statistics(images: Any, texts: Any, good: Any, dealt: Any, temperature: Any) -> Any:
        found = scores.neg_clip_loss_statistics(images, texts, dealt[0], temperature=temperature, mask=good)
        return jax.tree.map(lambda field: field[None], found)

    return statistics


def _rounds(jobs: Iterable[Job], devices: int) -> Iterator[list[Job]]:
    """Consecutive jobs of one shape, at most one per device."""
    together: list[Job] = []
    for job in jobs:
        if together and (len(together) == devices or _shape(together[0]) != _shape(job)):
            yield together
            together = []
        together.append(job)
    if together:
        yield together


def _shape(job: Job) -> tuple[Any, ...]:
    return job.size, job.batch_of_cell.shape


def _place(jobs: list[Job], pairs: Pairs, mesh: Mesh) -> list[Any]:
    """Puts each job's rows and divisions on its device; a device without a job gets masked rows."""
    import jax
    from jax.sharding import PartitionSpec as P

    sharding = jax.NamedSharding(mesh, P(parallel.AXIS))

    def spread(parts: list[np.ndarray]) -> Any:
        parts += [np.zeros_like(parts[0])] * (mesh.size - len(parts))
        on_devices = [jax.device_put(part, device) for part, device in zip(parts, mesh.devices, strict=True)]
        shape = mesh.size * len(parts[0]), *parts[0].shape[1:]
        return jax.make_array_from_single_device_arrays(shape, sharding, on_devices)

    laid = [spread([_lay(_rows_of(array, job.rows), job.slots, job.size) for job in jobs]) for array in pairs]
    return [*laid, spread([job.batch_of_cell[None] for job in jobs])]


def _rows_of(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of an array; consecutive ones without a copy."""
    first, last = int(rows[0]), int(rows[-1])
    consecutive = last - first == len(rows) - 1 and bool((np.diff(rows) == 1).all())
    return array[first : last + 1] if consecutive else array[rows]


def _lay(rows: np.ndarray, slots: np.ndarray, size: int) -> np.ndarray:
    laid = np.zeros((size, *rows.shape[1:]), rows.dtype)
    laid[slots] = rows
    return laid


def _fetch(jobs: list[Job], found: Any) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    fields = [np.asarray(field) for field in found]
    for index, job in enumerate(jobs):
        yield job.rows, [field[index][..., job.slots] for field in fields]
