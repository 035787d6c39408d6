"""The reference's division: K random cuts of a whole metadata file into batches, the last one short.

Each cut is a pass over its batches, so K cuts cost K passes; `groups` needs only one (see `scores.divisions`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipdata_jax.scoring import group_scores
from clipdata_jax.scoring.group_scores import Job, Pairs
from clipdata_jax.scoring.groups import hash_order

_ROUND = 8  # a file smaller than |B| is one batch, its rows filled up to a multiple of it


def permutations(uid: np.ndarray, *, repeats: int, seed: int) -> np.ndarray:
    """Draws K random orders of a file's rows, by hash(seed, k, uid): (K, n)."""
    return np.stack([hash_order(uid, seed, k) for k in range(repeats)])


def score_permutations(
    pairs: Pairs, orders: np.ndarray, *, batch_size: int, temperatures: Sequence[float]
) -> list[np.ndarray]:
    """Averages negCLIPLoss over given orders of the pairs, each cut into consecutive batches of |B|.

        s_i = f_i.g_i - t/2K sum_k (log sum_{j in B_k(i)} exp(f_i.g_j / t) + log sum_{j in B_k(i)} exp(f_j.g_i / t))

    arXiv:2405.19547, as in the authors' code: the last batch of an order is shorter where |B| doesn't divide
    n, so its normaliser is smaller.

    Args:
      pairs: unit rows, (n, d), and which count.
      orders: shape (K, n), each row a permutation of the pairs.
      batch_size: |B|; more than n is one batch.
      temperatures: each t > 0.

    Returns:
      The fields of `scores.NegClipLossStatistics`, each (temperatures, n). The standard error accounts for the
      orders sharing the file's pairs as negatives; NaN for one order or one batch.
    """
    orders = orders if batch_size < orders.shape[1] else orders[:1]
    repeats, n = orders.shape
    shape = len(temperatures), n
    mean, square, text, image = (np.zeros(shape) for _ in range(4))
    met = np.zeros(n, np.int64)  # other pairs in the row's batches
    for index, (rows, found) in enumerate(group_scores.run(_batches(orders, batch_size), pairs, temperatures)):
        score, _, log_sum_text, log_sum_image = (field[:, 0] for field in found)
        k = index // -(-n // batch_size)
        with np.errstate(invalid="ignore"):  # masked rows are -inf throughout
            before = score - mean[:, rows]
            mean[:, rows] += before / (k + 1)
            square[:, rows] += before * (score - mean[:, rows])
        text[:, rows] += log_sum_text / repeats
        image[:, rows] += log_sum_image / repeats
        met[rows] += len(rows) - 1
    error = _standard_error(square, met, repeats)
    return [np.where(pairs.good, field, np.nan).astype(np.float32) for field in (mean, error, text, image)]


def _batches(orders: np.ndarray, batch_size: int) -> Iterator[Job]:
    size = -(-min(batch_size, orders.shape[1]) // _ROUND) * _ROUND
    one_batch = np.zeros((1, 1, 1), np.int32)
    for order in orders:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield Job(rows, np.arange(len(rows)), size, one_batch)


def _standard_error(square: np.ndarray, met: np.ndarray, repeats: int) -> np.ndarray:
    """SE^2 = spread (1/K + q / (1 - q)), q being the share of the file's other pairs that a batch has.

    As in `scores.division_sums`, where every pair is a cell of its own, without variance.
    """
    n = square.shape[1]
    if repeats < 2:
        return np.full(square.shape, np.nan)
    q = met / (repeats * (n - 1))
    error: np.ndarray = np.sqrt(square / (repeats - 1) * (1 / repeats + q / (1 - q)))
    return error


def describe(units: Sequence[int], *, batch_sizes: Sequence[int]) -> dict[str, Any]:
    """The batch sizes that |B| results in for files of these numbers of rows, as in `groups.describe`."""
    sizes = []
    for size in batch_sizes:
        last = [rows % size or min(rows, size) for rows in units if rows]
        effective = [min(last), min(size, max(units))]
        batches = sum(-(-rows // size) for rows in units)
        sizes.append({"batch_size": size, "batches": batches, "effective": effective})
    return {"count": sum(rows > 0 for rows in units), "sizes": sizes}
