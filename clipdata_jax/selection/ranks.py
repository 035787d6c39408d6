"""The ranks of a pool's scores: shares in (0, 1], equal scores sharing the mean of theirs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clipdata_jax.selection.pools import Block, Pool


def of_pool(pool: Pool, score: Callable[[Block], np.ndarray]) -> np.ndarray:
    """The rank of every row, float64, shape (n,); NaN where the score is null or infinite. 1 is the highest.

    The scores are sorted once, and then looked up in order: in files where the pool's memory has no room.
    """
    rows, ordered, filled = sum(pool.sizes), None, 0
    for block in pool.blocks():
        scores = score(block)
        if ordered is None:
            ordered = pool.empty(rows, scores.dtype)
        scores = scores[np.isfinite(scores)]
        ordered[filled : filled + len(scores)] = scores
        filled += len(scores)
    if ordered is None:
        raise AssertionError("a pool has at least one block")
    ordered = ordered[:filled]
    ordered.sort()
    ranks = pool.empty(rows, np.dtype(np.float64))
    for block in pool.blocks():
        ranks[block.start : block.start + block.rows] = _look_up(ordered, score(block))
    return ranks


def _look_up(ordered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    ranks = np.full(len(scores), np.nan)
    rows = np.flatnonzero(np.isfinite(scores))
    # In order, so that neighbours are looked for in the same place: several times faster than at random.
    rows = rows[np.argsort(scores[rows])]
    sought = scores[rows]
    below = np.searchsorted(ordered, sought)
    up_to = below + 1
    # Most scores are there once; only for the others it takes another search how often.
    tied = np.flatnonzero(up_to < len(ordered))
    tied = tied[ordered[up_to[tied]] == sought[tied]]
    up_to[tied] = np.searchsorted(ordered, sought[tied], "right")
    ranks[rows] = (below + up_to + 1) / (2 * max(len(ordered), 1))
    return ranks
