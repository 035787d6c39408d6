"""How much of the top 30 % by negCLIPLoss another draw of the batches replaces, for several |B| and m.

    python benchmarks/noise.py --images IMG.npy --texts TXT.npy [--batch-sizes 512 2048 8192 32768] [--rows 4096]

The two files hold unit embeddings of some hundred pairs or more, row i of both being one pair. The pool is a normal
distribution of their mean and covariance, images and captions jointly, each scaled to unit norm: it has no end, so that
every seed draws other negatives. The same pairs are scored under each seed, against a group of 16 m cells of |B| / 16
pairs and themselves, by the library's own sums over cells and divisions. One JSON line a figure; each is a mean over
all pairs of seeds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import report

from clipdata_jax.scores.division_sums import division_sums
from clipdata_jax.scores.products import cosines, paired_cosines

CELLS = 16  # of a batch
GROUPS = (1, 2, 4, 8)
REPEATS = (10, 40)
PASSES = 10  # the paper's
KEPT = 0.3


def main() -> None:
    """Prints the figures of each |B|."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 2_048, 8_192, 32_768])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--rows", type=int, default=4_096, help="pairs that are scored")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    pool = _Pool(*(np.load(path).astype(np.float32) for path in (options.images, options.texts)))
    temperatures = jnp.asarray(options.temperatures, jnp.float32)
    pairs = pool.draw(jax.random.key(2**31), options.rows)
    for size in options.batch_sizes:
        start, found = time.process_time(), dict[tuple[str, float], list[np.ndarray]]()
        for seed in range(options.seeds):
            for name, scores in _scores(pool, pairs, size, temperatures, seed):
                for temperature, score in zip(options.temperatures, scores, strict=True):
                    found.setdefault((name, temperature), []).append(_top(score))
        for (name, temperature), kept in found.items():
            shares = [1 - float((one & other).sum() / one.sum()) for one, other in itertools.combinations(kept, 2)]
            report(
                "replaced by another seed", batch_size=size, t=temperature, scheme=name, share=np.mean(shares).item()
            )
        report("processor time", batch_size=size, seconds=time.process_time() - start)


class _Pool:
    """The normal distribution of the mean and covariance of some pairs, each embedding scaled to unit norm."""

    def __init__(self, images: np.ndarray, texts: np.ndarray) -> None:
        both = np.concatenate([images, texts], axis=1)
        self._mean = jnp.asarray(both.mean(axis=0))
        # Random sums of the centred rows have their covariance.
        self._spread = jnp.asarray((both - both.mean(axis=0)) / np.sqrt(len(both)))

    def draw(self, key: Any, rows: int) -> tuple[jax.Array, jax.Array]:
        """Images and texts of some pairs, (rows, d) each."""
        return _draw(self._mean, self._spread, key, rows=rows)

    def cell(self, key: Any, pairs: tuple[jax.Array, jax.Array], rows: int, temperatures: jax.Array) -> jax.Array:
        """The log-sums of the pairs over a cell of so many others, of images and of texts: (2, temperatures, pairs)."""
        return _cell(self._mean, self._spread, key, pairs, temperatures, rows=rows)


@functools.partial(jax.jit, static_argnames="rows")
def _draw(mean: jax.Array, spread: jax.Array, key: Any, *, rows: int) -> tuple[jax.Array, jax.Array]:
    made = mean + jax.random.normal(key, (rows, len(spread))) @ spread
    images, texts = (half / jnp.linalg.norm(half, axis=1, keepdims=True) for half in jnp.split(made, 2, axis=1))
    return images, texts


@functools.partial(jax.jit, static_argnames="rows")
def _cell(
    mean: jax.Array,
    spread: jax.Array,
    key: Any,
    pairs: tuple[jax.Array, jax.Array],
    temperatures: jax.Array,
    *,
    rows: int,
) -> jax.Array:
    others = _draw(mean, spread, key, rows=rows)[::-1]

    def of_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        cos = jnp.stack([cosines(one, other) for one, other in zip(block, others, strict=True)])
        return jnp.stack([jax.nn.logsumexp(cos / t, axis=2) for t in temperatures], axis=1)

    blocks = [emb.reshape(-1, min(len(emb), 1_024), emb.shape[1]) for emb in pairs]
    return jnp.moveaxis(jax.lax.map(of_block, tuple(blocks)), 0, 2).reshape(2, len(temperatures), -1)


def _scores(
    pool: _Pool, pairs: tuple[jax.Array, jax.Array], size: int, temperatures: jax.Array, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The name of each scheme and the pairs' scores by it, (temperatures, pairs); all from the same cells."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), size), CELLS * PASSES)
    tables = jnp.stack([pool.cell(key, pairs, size // CELLS, temperatures) for key in keys], axis=-1)
    cosine = paired_cosines(*pairs)
    own = cosine / temperatures[:, None]

    def score(sums: Any) -> np.ndarray:
        return np.asarray(cosine - temperatures[:, None] / 2 * sums)

    batches = jax.nn.logsumexp(tables.reshape(*tables.shape[:3], PASSES, CELLS), axis=-1)
    whole = jnp.logaddexp(batches, own[:, :, None])
    yield f"{PASSES} passes", score(whole.mean(axis=-1).sum(axis=0))
    random = np.random.default_rng(seed)
    for m in GROUPS:
        cells = m * CELLS
        # Rows are in the order of their cells; each is in its own, too.
        place = jnp.repeat(jnp.arange(cells), len(cosine) // cells)
        is_own = place[:, None] == jnp.arange(cells)
        group = jnp.where(is_own, jnp.logaddexp(tables[..., :cells], own[:, :, None]), tables[..., :cells])
        for repeats in REPEATS if m > 1 else (1,):
            dealt = jnp.asarray([random.permutation(cells) % m for _ in range(repeats)])
            sums = [division_sums(row, column, dealt) for row, column in zip(*group, strict=True)]
            yield f"m = {m}, K = {repeats}", score(jnp.stack([one.row + one.col for one in sums]))


def _top(score: np.ndarray) -> np.ndarray:
    kept = np.zeros(len(score), bool)
    kept[np.argsort(-score, kind="stable")[: int(KEPT * len(score))]] = True
    return kept


if __name__ == "__main__":
    main()
