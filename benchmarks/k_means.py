"""k-means against faiss: assigning rows to centroids, a whole step, and what both end at.

    python benchmarks/k_means.py [--rounds 5] [--rows 32768] [--clusters 2000] [--dim 768]

One JSON line a figure. Needs the extra `bench` for faiss; without it says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from _timing import PRODUCT_GFLOP, alternate, median_ratio, plain_product, report, unit_rows

from clipdata_jax.runtime import parallel
from clipdata_jax.scores import k_means
from clipdata_jax.scoring import clustering


def faiss_calls(rows: np.ndarray, centroids: np.ndarray, steps: int) -> dict[str, Callable[[], Any]]:
    """faiss' exact search for the nearest centroid, and its spherical k-means; none without faiss."""
    try:
        import faiss
    except ModuleNotFoundError:
        print("faiss is not installed (extra `bench`): its comparisons are left out", file=sys.stderr)
        return {}
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(centroids)

    def train() -> Any:
        most = len(rows)  # else it would take a sample
        means = faiss.Kmeans(
            rows.shape[1], len(centroids), niter=steps, spherical=True, seed=0, max_points_per_centroid=most
        )
        means.train(rows)
        return means.centroids

    return {"faiss IndexFlatIP": lambda: index.search(rows, 1)[1], "faiss Kmeans": train}


def clustered_rows(count: int, dim: int, groups: int) -> np.ndarray:
    """Rows about `groups` random directions, with a cosine of some 0.4."""
    centers = unit_rows(1, groups, dim)
    return unit_rows(0, count, dim, noise_of=centers[np.arange(count) % groups])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--clusters", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--steps", type=int, default=5, help="of both k-means in the last comparison")
    options = parser.parse_args()

    rows = clustered_rows(options.rows, options.dim, options.clusters)
    centroids = np.ascontiguousarray(rows[: options.clusters])
    emb, start, mesh = jnp.asarray(rows), jnp.asarray(centroids), parallel.local_mesh()
    mask = jnp.ones(len(emb), bool)
    theirs = faiss_calls(rows, centroids, options.steps)
    calls: dict[str, Callable[[], Any]] = {
        "plain product": plain_product(),
        "assign_clusters": lambda: k_means.assign_clusters(emb, start),
        "lloyd_step": lambda: k_means.lloyd_step(emb, mask, start, mesh=mesh),
    }
    calls |= {name: call for name, call in theirs.items() if name == "faiss IndexFlatIP"}
    seconds = alternate(calls, options.rounds)
    for name in calls:
        report(name, seconds=statistics.median(seconds[name]), rows=options.rows, clusters=options.clusters)
    report("plain product", gflop_per_second=PRODUCT_GFLOP / statistics.median(seconds["plain product"]))
    for name in ("assign_clusters", "lloyd_step") if theirs else ():
        report(f"speed of {name} to faiss", ratio=median_ratio(seconds, "faiss IndexFlatIP", name))
    compare_fits(rows, options, theirs)


def compare_fits(rows: np.ndarray, options: argparse.Namespace, theirs: dict[str, Callable[[], Any]]) -> None:
    """Both k-means from seeds to centroids: time, and the mean cosine of rows with their nearest centroid."""
    ours = {"k_means.fit": lambda: clustering.fit(rows, options.clusters, seed=0, steps=options.steps).centroids}
    fits = ours | {name: call for name, call in theirs.items() if name == "faiss Kmeans"}
    seconds = alternate(fits, options.rounds)
    for name, times in seconds.items():
        centroids = np.asarray(fits[name]())
        centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
        cosine = float(jnp.mean(k_means.assign_clusters(jnp.asarray(rows), jnp.asarray(centroids)).score))
        report(name, seconds=statistics.median(times), steps=options.steps, mean_cosine=cosine)
    if theirs:
        report("speed of k_means.fit to faiss", ratio=median_ratio(seconds, "faiss Kmeans", "k_means.fit"))


if __name__ == "__main__":
    main()
