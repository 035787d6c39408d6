"""Division of a pool into units, groups, cells and batches, by hashes without generator state.

A unit is one metadata shard or several consecutive ones; a group is a part of a unit's rows that one device
compares all with all; cells are equal parts of a group, its rows taken in the order of hash(seed, uid); a
division deals the cells into batches by hash(seed, k, cell). All of it depends on the pool and the seed alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdata_jax.formats.embedding_shards import EmbeddingShard
from clipdata_jax.formats.hashing import mix

# Cells per batch of the largest |B|: 16 if that suits every |B|, else up to 64. A batch of the smallest |B| has at
# least 4 cells, so it may be a sixteenth of the largest (`config.NegClipLoss` checks it).
_CELLS_PER_BATCH, _MOST_CELLS_PER_BATCH, _LEAST_CELLS = 16, 64, 4
_CLOSE = 0.01  # relative error of a |B| above which more cells are tried; the largest |B| itself may be further off
_ROUND = 8  # slots of a cell are a multiple of it, so that groups of nearly one size share a compiled program


def plan_units(
    shards: Sequence[EmbeddingShard], group_rows: int, *, together: int = 1
) -> list[tuple[EmbeddingShard, ...]]:
    """Makes each shard a unit; small ones are joined until they reach `group_rows`.

    Shards left at the end join the last unit.

    Args:
      shards: the pool's, in order.
      group_rows: smallest number of rows of a unit.
      together: smallest number of shards of a unit.
    """
    units: list[list[EmbeddingShard]] = []
    waiting: list[EmbeddingShard] = []
    rows = 0
    for shard in shards:
        waiting.append(shard)
        rows += shard.rows
        if len(waiting) >= together and rows >= group_rows:
            units.append(waiting)
            waiting, rows = [], 0
    if waiting:
        if units:
            units[-1] += waiting
        else:
            units.append(waiting)
    return [tuple(unit) for unit in units]


@dataclasses.dataclass(frozen=True)
class Group:
    """A part of a unit's rows that are compared all with all.

    Attributes:
      start: its first row in the unit, in the order that `rows_of_groups` cuts.
      rows: number of rows.
      batches: number of batches in a division, for each |B|.
      cells: number of cells, a multiple of each of `batches`.
      slots: rows per cell, including padding.
    """

    start: int
    rows: int
    batches: tuple[int, ...]
    cells: int
    slots: int


def plan_groups(rows: int, *, batch_sizes: Sequence[int], group: int) -> list[Group]:
    """Cuts a unit's rows into groups of about `group` batches of the largest |B|, sizes differing by at most one.

    Args:
      rows: the unit's pairs.
      batch_sizes: each |B|; a unit smaller than that is one batch.
      group: m, batches of the largest |B| in a group.
    """
    if not rows:
        return []
    count = max(1, round(rows / (max(batch_sizes) * group)))
    edges = [rows * i // count for i in range(count + 1)]
    groups = []
    for start, end in itertools.pairwise(edges):
        batches, cells = _plan_batches(end - start, tuple(batch_sizes))
        slots = -(-(end - start) // (cells * _ROUND)) * _ROUND
        groups.append(Group(start, end - start, batches, cells, slots))
    return groups


@functools.lru_cache
def _plan_batches(rows: int, batch_sizes: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The number of batches of a group for each |B|, and the number of cells.

    Takes the fewest cells that bring every |B| close to its wanted size, else those that bring them closest.
    """
    wanted = [rows / size for size in batch_sizes]
    fewest = max(1, round(min(wanted)))
    if round(max(wanted)) <= 1:
        return (1,) * len(wanted), 1
    close = max(_CLOSE, abs(fewest / min(wanted) - 1))
    best: tuple[float, tuple[int, ...], int] = math.inf, (), 0
    most_cells = min(_MOST_CELLS_PER_BATCH, rows // fewest)
    for per_batch in range(min(_CELLS_PER_BATCH, most_cells), most_cells + 1):
        cells = fewest * per_batch
        most = cells // min(_LEAST_CELLS, per_batch)
        counts = [n for n in range(fewest, most + 1) if cells % n == 0]
        nearest = [counts[int(np.argmin(np.abs(np.array(counts) - ratio)))] for ratio in wanted]
        batches = tuple(fewest if ratio == min(wanted) else n for n, ratio in zip(nearest, wanted, strict=True))
        off = max(
            (abs(n / ratio - 1) for n, ratio in zip(batches, wanted, strict=True) if ratio > min(wanted)), default=0.0
        )
        if off < best[0]:
            best = off, batches, cells
        if off <= close:
            break
    return best[1:]


def rows_of_groups(uid: np.ndarray, planned: Sequence[Group], *, seed: int, mixed: bool) -> list[np.ndarray]:
    """The rows of each group: consecutive ones, or if `mixed` consecutive in the order of hash(seed, uid).

    Args:
      uid: shape (n,), u8,u8, of all the unit's rows.
      planned: the unit's groups.
      seed: the run's seed.
      mixed: whether neighbours go to different groups, for pools whose shards are topical.

    Returns:
      The rows of each group, int64.
    """
    order = hash_order(uid, seed) if mixed else np.arange(len(uid))
    return [order[group.start : group.start + group.rows] for group in planned]


def hash_order(uid: np.ndarray, *parts: int) -> np.ndarray:
    """Sorts rows by hash(*parts, uid): a random permutation that depends on the uids alone."""
    return np.lexsort((uid["f1"], uid["f0"], mix(*parts, uid["f0"], uid["f1"])))


def slots_of_rows(uid: np.ndarray, group: Group, seed: int) -> np.ndarray:
    """The slot of each row of a group: rows in the order of hash(seed, uid), cut into cells.

    Args:
      uid: shape (rows,), u8,u8.
      group: its plan.
      seed: the run's seed.

    Returns:
      shape (rows,), int64, distinct, in [0, cells * slots). The first cells may have one row more.
    """
    sizes = _cell_sizes(group)
    cell = np.repeat(np.arange(group.cells), sizes)
    within = np.arange(group.rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    slots = np.empty(group.rows, np.int64)
    slots[hash_order(uid, seed)] = cell * group.slots + within
    return slots


def _cell_sizes(group: Group) -> np.ndarray:
    least, more = divmod(group.rows, group.cells)
    return least + (np.arange(group.cells) < more)


def deal_cells(group: Group, *, repeats: int, seed: int, name: int) -> np.ndarray:
    """Deals the cells to batches in each division, for each |B|.

    Cells go to the batches in turn, in the order of hash(seed, group, k, cell), those with one row more first, so
    that batches have equally many cells and differ by at most one row.

    Args:
      group: its plan.
      repeats: K; one division suffices where there is one batch.
      seed: the run's seed.
      name: identifies the group in the pool, any 64-bit number.

    Returns:
      shape (sizes, K, cells), int32, in [0, batches).
    """
    divisions = repeats if max(group.batches) > 1 else 1
    cell = np.arange(group.cells)
    short = _cell_sizes(group) < -(-group.rows // group.cells)
    dealt = np.empty((len(group.batches), divisions, group.cells), np.int32)
    for k in range(divisions):
        order = np.lexsort((cell, mix(seed, name, k, cell), short))
        for size, batches in enumerate(group.batches):
            dealt[size, k, order] = cell % batches
    return dealt


def describe(units: Sequence[int], *, batch_sizes: Sequence[int], group: int) -> dict[str, Any]:
    """The batch sizes that |B| and m result in for units of these numbers of rows, for the manifest.

    Returns:
      "count" of groups, and for each |B| in "sizes" the "batches" of a division and the "effective" |B|, the
      smallest and the largest batch.
    """
    planned = [group_ for rows in units for group_ in plan_groups(rows, batch_sizes=batch_sizes, group=group)]
    sizes = []
    for index, size in enumerate(batch_sizes):
        pairs = [one.rows / one.batches[index] for one in planned]
        batches = sum(one.batches[index] for one in planned)
        effective = [math.floor(min(pairs)), math.ceil(max(pairs))]
        sizes.append({"batch_size": size, "batches": batches, "effective": effective})
    return {"count": len(planned), "sizes": sizes}
