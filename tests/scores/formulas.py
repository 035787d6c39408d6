"""The scores' equations written plainly in float64, one pair at a time, and pairs to try them on."""

from __future__ import annotations

import math

import numpy as np


def unit_pairs(seed: int, b: int, d: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Matching unit rows, as float16."""
    random = np.random.default_rng(seed)
    f = random.normal(size=(b, d))
    g = f + noise * random.normal(size=(b, d))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16) for x in (f, g))


def log_sum(values: np.ndarray) -> float:
    most = values.max()
    return most + math.log(np.exp(values - most).sum())


def log_sums(f: np.ndarray, g: np.ndarray, t: float) -> np.ndarray:
    """Of one batch, over the texts and over the images: (2, b)."""
    f, g = f.astype(np.float64), g.astype(np.float64)
    return np.array([[log_sum(f[i] @ g.T / t), log_sum(f @ g[i] / t)] for i in range(len(f))]).T


def neg_clip_loss(f: np.ndarray, g: np.ndarray, t: float) -> np.ndarray:
    """negCLIPLoss of one batch."""
    cos = np.einsum("bd,bd->b", f.astype(np.float64), g.astype(np.float64))
    return cos - t / 2 * log_sums(f, g, t).sum(axis=0)


def divided(
    f: np.ndarray, g: np.ndarray, batch_of_cell: np.ndarray, t: float, keep: np.ndarray | None = None
) -> np.ndarray:
    """Both log-sums of every pair in each of K divisions: (2, K, b), NaN where `keep` is False."""
    keep = np.ones(len(f), bool) if keep is None else keep
    sums = np.full((2, len(batch_of_cell), len(f)), np.nan)
    for k, batches in enumerate(batch_of_cell):
        of_row = np.repeat(batches, len(f) // len(batches))
        for batch in set(batches.tolist()):
            rows = np.flatnonzero((of_row == batch) & keep)
            if len(rows):
                sums[:, k, rows] = log_sums(f[rows], g[rows], t)
    return sums


def deal(seed: int, repeats: int, batches: int, cells: int) -> np.ndarray:
    """K random divisions of the cells into batches of equally many: int32 (K, cells)."""
    random = np.random.default_rng(seed)
    dealt = np.repeat(np.arange(batches), cells // batches)
    return np.stack([random.permutation(dealt) for _ in range(repeats)]).astype(np.int32)
