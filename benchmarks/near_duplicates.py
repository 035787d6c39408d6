"""Near-duplicates: the search of all pairs, and inside clusters, beside plain products and faiss' range search.

    python benchmarks/near_duplicates.py [--rows 100000] [--dim 512] [--clusters 1000] [--cluster-rows 1000000]

One JSON line a figure. The search takes turns with plain products of tiles of 2,048 rows, jitted: those of all pairs
are n^2 d / 2 multiply-adds, those of clusters the sum of size^2 d. A twentieth of the rows are copies of others. The
memory is the most anonymous memory of this process, jax and all included. Needs the extra `bench` for the comparison
with faiss; without it says so.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import peak_memory, report, unit_rows

from clipdata_jax.scoring.duplicate_search import BLOCK, Among, Components, Criterion, join_near

_TILE = 2048
_PIECE = 10_000


def make_rows(path: Path, rows: int, dim: int, clusters: int = 0) -> np.ndarray:
    """Random unit rows in a mapped file, (rows, 1, dim) float16; near `clusters` directions in turn where given."""
    made = np.lib.format.open_memmap(path, "w+", np.float16, (rows, 1, dim))
    centres = unit_rows(1, max(clusters, 1), dim)
    random = np.random.default_rng(0)
    for start in range(0, rows, _PIECE):
        number = np.arange(start, min(start + _PIECE, rows))
        near = centres[number % clusters] if clusters else None
        emb = unit_rows(start + 2, len(number), dim, noise_of=near)
        copies = random.permutation(len(number))[: len(number) // 20]
        copies = copies[copies >= max(clusters, 1)]
        emb[copies] = emb[copies - max(clusters, 1)]
        made[number, 0] = emb
    made.flush()
    del made
    return np.asarray(np.load(path, mmap_mode="r"))


def criterion_of(emb: np.ndarray) -> Criterion:
    norms = np.square(emb[:_PIECE].astype(np.float32)).sum(axis=2)
    return Criterion(emb, (0,), np.ones(len(emb), bool), 0.95, (float(norms.min()) - 1e-3, float(norms.max()) + 1e-3))


def plain_tile(side: int, dim: int) -> Callable[[], Any]:
    f, g = (jnp.asarray(unit_rows(seed, side, dim)) for seed in (0, 1))
    product = jax.jit(lambda f, g: jnp.einsum("id,jd->ij", f, g, precision="highest"))
    jax.block_until_ready(product(f, g))
    return lambda: product(f, g)


def repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        jax.block_until_ready(call())  # one by one: their results would pile up in memory


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def all_pairs(emb: np.ndarray, rounds: int) -> None:
    rows, dim = len(emb), emb.shape[2]
    criterion, product = criterion_of(emb), plain_tile(_TILE, dim)
    index, ratios, spent, joined = np.arange(rows), [], 0.0, Components(rows)
    nearest = np.full(rows, -np.inf, np.float32)
    starts = list(range(0, rows, BLOCK))
    join_near(criterion, [Among.some_of(index, range(starts[-1], rows))])  # compiles

    def searched() -> None:
        nonlocal spent
        for start in starts:
            stop = min(start + BLOCK, rows)
            unit = [Among(index, range(start, stop), joined, nearest)]
            took = seconds_of(functools.partial(join_near, criterion, unit))
            spent += took
            # The products of a fifth of the unit's pairs stand for all of them.
            pairs = (stop - start) * (rows - start) - (stop - start) ** 2 / 2
            tiles = max(1, round(pairs / _TILE**2 / rounds))
            plain = seconds_of(functools.partial(repeat, product, tiles)) * pairs / (tiles * _TILE**2)
            ratios.append((took, plain))

    memory = peak_memory(searched)
    took, plain = map(sum, zip(*ratios, strict=True))
    report("all pairs", rows=rows, dim=dim, seconds=spent, joined=len(joined.joined()[0]))
    report("plain products", gflop_per_second=rows * rows * dim / plain / 1e9, of="n^2 d / 2 multiply-adds")
    report(
        "speed of all pairs to plain products", total=plain / took, median=statistics.median(p / t for t, p in ratios)
    )
    report("memory", anonymous_megabytes=memory / 1e6)
    if search := faiss_search(emb):
        some = range(BLOCK)
        turns = [
            (seconds_of(search), seconds_of(lambda: join_near(criterion, [Among.some_of(index, some)])))
            for _ in range(rounds)
        ]
        report("speed to faiss range_search, 8,192 rows with all", ratio=statistics.median(f / o for f, o in turns))
    else:
        print("faiss is not installed (extra `bench`): its comparison is left out", file=sys.stderr)


def faiss_search(emb: np.ndarray) -> Callable[[], Any] | None:
    """The neighbours of the first rows of cosine 0.95 and up; None without faiss."""
    try:
        import faiss
    except ModuleNotFoundError:
        return None
    index = faiss.IndexFlatIP(emb.shape[2])
    index.add(emb[:, 0].astype(np.float32))
    queries = emb[:BLOCK, 0].astype(np.float32)
    return lambda: index.range_search(queries, 0.95)[0]


def in_clusters(emb: np.ndarray, clusters: int) -> None:
    criterion = criterion_of(emb)
    members = [np.arange(cluster, len(emb), clusters) for cluster in range(clusters)]
    product = plain_tile(len(members[0]), emb.shape[2])
    join_near(criterion, [Among.all_of(members[0])])
    ratios, joined = [], 0
    for start in range(0, clusters, 50):
        searches = [Among.all_of(rows) for rows in members[start : start + 50]]
        took = seconds_of(functools.partial(join_near, criterion, searches))
        plain = seconds_of(functools.partial(repeat, product, len(searches)))
        ratios.append((took, plain))
        joined += sum(len(one.components.joined()[0]) for one in searches)
    took, plain = map(sum, zip(*ratios, strict=True))
    report("clusters", rows=len(emb), clusters=clusters, seconds=took, joined=joined)
    report("time in clusters over the products of the clusters with themselves", ratio=took / plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=1_000)
    parser.add_argument("--cluster-rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        all_pairs(make_rows(Path(folder) / "all.npy", options.rows, options.dim), options.rounds)
        clustered = make_rows(Path(folder) / "clusters.npy", options.cluster_rows, options.dim, options.clusters)
        in_clusters(clustered, options.clusters)


if __name__ == "__main__":
    main()
