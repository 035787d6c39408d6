"""How a pool is cut into units, groups and cells, and how cells are dealt to batches. Hashes, no generator state.

A unit is one metadata shard or a run of whole small shards; a group is a run of a unit's rows that one device
compares all with all; cells are equal parts of a group, its rows taken in the order of hash(seed, uid); a
division deals the cells into batches by hash(seed, k, cell). All of it depends on the pool and the seed alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from clipdata_jax.data.hashing import mix
from clipdata_jax.data.pool import Shard

_CELLS_PER_BATCH = 16
_ROUND = 8  # slots of a cell are a multiple of it, so that groups of nearly one size share a compiled program


def plan_units(shards: Sequence[Shard], group_rows: int) -> list[tuple[Shard, ...]]:
    """Runs of whole shards: each shard is a unit, small ones are joined until they reach `group_rows`.

    What is left at the end joins the last unit, so that no unit is smaller than it must be.
    """
    units: list[list[Shard]] = []
    waiting: list[Shard] = []
    for shard in shards:
        waiting.append(shard)
        if sum(one.rows for one in waiting) >= group_rows:
            units.append(waiting)
            waiting = []
    if waiting:
        if units:
            units[-1] += waiting
        else:
            units.append(waiting)
    return [tuple(unit) for unit in units]


@dataclasses.dataclass(frozen=True)
class Group:
    """A run of a unit's rows that are compared all with all.

    Attributes:
      start: its first row in the unit.
      rows: how many.
      batches: how many batches a division makes of it.
      cells: how many cells; a multiple of `batches`.
      slots: rows that a cell has room for; what a cell lacks is padding.
    """

    start: int
    rows: int
    batches: int
    cells: int
    slots: int


def plan_groups(rows: int, *, batch_size: int, group: int) -> list[Group]:
    """Cuts a unit's rows into groups of about `group` batches, sizes differing by at most one row.

    Args:
      rows: the unit's pairs.
      batch_size: |B|, the pairs wanted in a batch; a unit smaller than that is one batch.
      group: m, batches in a group.
    """
    if not rows:
        return []
    count = max(1, round(rows / (batch_size * group)))
    edges = [rows * i // count for i in range(count + 1)]
    groups = []
    for start, end in itertools.pairwise(edges):
        size = end - start
        batches = max(1, round(size / batch_size))
        per_batch = min(_CELLS_PER_BATCH, size // batches) if batches > 1 else 1
        cells = batches * per_batch
        slots = -(-size // (cells * _ROUND)) * _ROUND
        groups.append(Group(start, size, batches, cells, slots))
    return groups


def slots_of_rows(uid: np.ndarray, group: Group, seed: int) -> np.ndarray:
    """The slot of each row of a group: rows in the order of hash(seed, uid), cut into cells.

    Args:
      uid: shape (rows,), u8,u8.
      group: its plan.
      seed: the run's seed.

    Returns:
      shape (rows,), int64, distinct, in [0, cells * slots). The first cells have one row more where they must.
    """
    order = np.lexsort((uid["f1"], uid["f0"], mix(seed, uid["f0"], uid["f1"])))
    sizes = _cell_sizes(group)
    cell = np.repeat(np.arange(group.cells), sizes)
    within = np.arange(group.rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    slots = np.empty(group.rows, np.int64)
    slots[order] = cell * group.slots + within
    return slots


def _cell_sizes(group: Group) -> np.ndarray:
    least, more = divmod(group.rows, group.cells)
    return least + (np.arange(group.cells) < more)


def deal_cells(group: Group, *, repeats: int, seed: int, name: int) -> np.ndarray:
    """The batch of each cell in each division.

    Cells are dealt one by one to the batches in turn, in the order of hash(seed, group, k, cell), those with
    one row more first, so that batches have as many cells and differ by at most one row.

    Args:
      group: its plan.
      repeats: K; one division suffices where there is one batch.
      seed: the run's seed.
      name: what tells the pool's groups apart, any 64-bit number.

    Returns:
      shape (K, cells), int32, in [0, batches).
    """
    divisions = repeats if group.batches > 1 else 1
    cell = np.arange(group.cells)
    short = _cell_sizes(group) < -(-group.rows // group.cells)
    dealt = np.empty((divisions, group.cells), np.int32)
    for k in range(divisions):
        order = np.lexsort((cell, mix(seed, name, k, cell), short))
        dealt[k, order] = cell % group.batches
    return dealt
