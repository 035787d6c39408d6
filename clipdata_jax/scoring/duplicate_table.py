"""The table of near-duplicates: a row for each pair that is in a group, or too near a row of another set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax import storage
from clipdata_jax.formats import uids
from clipdata_jax.scoring.duplicate_groups import Groups
from clipdata_jax.scoring.duplicate_search import TargetMatch

COSINE_STEPS, NO_COSINE = 10_000, -20_000  # of the nearest other row: steps of a ten-thousandth, as int16
_BIN = 100  # steps


@dataclasses.dataclass(frozen=True)
class NearestInSets:
    """The pairs that are too near an image of another set, each with the nearest of all sets.

    Attributes:
      row: shape (m,), int64, ascending: the pairs.
      set: shape (m,), int64: the number of the set.
      target_row: shape (m,), int64: the row in it.
      cosine: shape (m,), float64.
    """

    row: np.ndarray
    set: np.ndarray
    target_row: np.ndarray
    cosine: np.ndarray

    @classmethod
    def of(cls, matches: Sequence[TargetMatch]) -> NearestInSets:
        """The nearest of all sets; of several equally near the first."""
        if not matches:
            none = np.empty(0, np.int64)
            return cls(none, none, none, np.empty(0))
        numbers = np.repeat(np.arange(len(matches)), [len(one.row) for one in matches])
        row, target_row, cosine = map(np.concatenate, zip(*matches, strict=True))
        order = np.lexsort((numbers, -cosine, row))
        first = order[np.append(True, row[order][1:] != row[order][:-1])] if len(row) else order
        return cls(row[first], numbers[first], target_row[first], cosine[first])


def count_nearest(nearest: np.ndarray) -> list[list[float]]:
    """Counts rows by the cosine of their nearest other row.

    Args:
      nearest: shape (n,), int16: in steps of 1 / COSINE_STEPS, NO_COSINE for none.

    Returns:
      [cosine, rows] for bins of a hundredth, by their lower edges; empty ones are left out. 1 is a bin of its own.
    """
    known = nearest[nearest != NO_COSINE].astype(np.int64)
    least, rows = np.unique(known // _BIN, return_counts=True)
    return [[bin_ * _BIN / COSINE_STEPS, count] for bin_, count in zip(least.tolist(), rows.tolist(), strict=True)]


def write(
    path: str, uid: np.ndarray, groups: Groups, in_sets: NearestInSets, sets: Sequence[str], nearest: np.ndarray
) -> int:
    """Writes the table, by group, the representative first; then the pairs that are too near another set.

    A uid that occurs several times has one row, the first. Columns: `uid`; `group`, its number from 0 on, and `size`;
    `representative`, the uid of the pair that is kept of the group; `cosine`, with the representative; `kept`;
    `nearest`, the cosine with the nearest other row; and `against`, `against_row`, `against_cosine`: the nearest image
    of the other sets.

    Args:
      path: the file.
      uid: shape (n,), u8,u8, of all rows.
      groups: of the rows.
      in_sets: the pairs that are too near another set.
      sets: the names of these.
      nearest: shape (n,), int16, as `count_nearest` takes it.

    Returns:
      The number of groups.
    """
    count, others = len(groups.row), len(in_sets.row)
    heads = groups.row == groups.representative
    number = np.cumsum(heads) - 1
    rows = np.concatenate([groups.row, in_sets.row])
    in_group = np.arange(count + others) < count
    ordered = uids.sort(uid[rows])
    first = np.sort(_first_rows(uid[rows])) if len(ordered) > len(uids.unique(ordered)) else np.arange(len(rows))

    def column(grouped: np.ndarray, other: np.ndarray | None, kind: pa.DataType) -> pa.Array:
        """A column of which the rows of groups, or the others, are null."""
        filler = grouped if other is None else other
        empty = np.zeros(others if other is None else count, filler.dtype)
        whole = np.concatenate([grouped, empty] if other is None else [empty, filler])
        return pa.array(whole[first], kind, mask=(~in_group if other is None else in_group)[first])

    none, steps = np.empty(0), nearest[rows[first]]
    named = np.array([*sets, ""], dtype=object)[np.append(np.full(count, -1), in_sets.set)[first]]
    table = {
        "uid": pa.array(uids.to_hex(uid[rows[first]]), pa.string()),
        "group": column(number, None, pa.int64()),
        "size": column(np.bincount(number)[number] if count else number, None, pa.int64()),
        "representative": pa.array([*uids.to_hex(uid[groups.representative]), *[None] * others], pa.string()).take(
            pa.array(first)
        ),
        "cosine": column(groups.cosine, None, pa.float32()),
        "kept": pa.array(np.concatenate([heads, np.zeros(others, bool)])[first]),
        "nearest": pa.array(steps / COSINE_STEPS, pa.float32(), mask=steps == NO_COSINE),
        "against": pa.array([name or None for name in named], pa.string()),
        "against_row": column(none, in_sets.target_row, pa.int64()),
        "against_cosine": column(none, in_sets.cosine, pa.float32()),
    }
    with storage.open_write(path) as file:
        pq.write_table(pa.table(table), file, compression="zstd", write_page_checksum=True)
    return int(heads.sum())


def _first_rows(uid: np.ndarray) -> np.ndarray:
    """The first row of each uid."""
    order = np.lexsort((np.arange(len(uid)), uid["f1"], uid["f0"]))
    first: np.ndarray = order[uids.first_of_each(uid[order])]
    return first
