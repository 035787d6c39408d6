"""Exact choice of the first k rows of an order, without sorting the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def first(keys: Sequence[np.ndarray], count: int, among: np.ndarray) -> np.ndarray:
    """Marks the rows that come first when the rows are ordered by several keys.

    The first key decides; among equals the second, and so on; rows equal in all keys come in row order.

    Args:
      keys: one or more arrays of shape (n,), smaller first; no NaN in the rows that take part.
      count: how many rows to mark; all that take part, where they are fewer.
      among: shape (n,), bool: the rows that take part.

    Returns:
      shape (n,), bool, with min(count, among.sum()) rows marked.
    """
    kept = np.zeros(len(among), bool)
    rows = np.flatnonzero(among)
    for key in keys:
        if count >= len(rows) or count <= 0:
            break
        values = key[rows]
        # The order within either side of the threshold doesn't matter: a partition is linear, a sort isn't.
        threshold = np.partition(values, count - 1)[count - 1]
        before = rows[values < threshold]
        kept[before] = True
        count -= len(before)
        rows = rows[values == threshold]
    kept[rows[: max(count, 0)]] = True
    return kept


def count_repeats(uid: np.ndarray) -> int:
    """How many rows repeat the uid of another row: rows less distinct uids.

    Args:
      uid: shape (n,), u8,u8.
    """
    high = np.sort(uid["f0"])
    shared = np.unique(high[1:][high[1:] == high[:-1]])
    if not len(shared):
        return 0
    # Only rows that share their first half, few unless they do repeat, are looked at whole.
    suspects = uid[np.isin(uid["f0"], shared)]
    return len(suspects) - len(np.unique(suspects))
