"""NormSim with p = inf against a plain product with a maximum, and against faiss' exact inner-product index.

    python benchmarks/norm_sim.py [--rounds 5] [--pictures 8192] [--targets 20000]

One JSON line a figure. Needs the extra `bench` for the comparison with faiss; without it says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import PRODUCT_GFLOP, alternate, median_ratio, plain_product, report, unit_rows

import clipdata_jax as cj


def faiss_search(images: np.ndarray, targets: np.ndarray) -> Callable[[], Any] | None:
    """The nearest target of each picture by inner product; None without faiss."""
    try:
        import faiss
    except ModuleNotFoundError:
        return None
    index = faiss.IndexFlatIP(targets.shape[1])
    index.add(targets)
    return lambda: index.search(images, 1)[0]


@jax.jit
def product_and_maximum(images: jax.Array, targets: jax.Array) -> jax.Array:
    """The plain form: every cosine at once, then the largest absolute one."""
    return jnp.abs(jnp.einsum("bd,nd->bn", images, targets, precision="highest")).max(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=8_192)
    parser.add_argument("--targets", type=int, default=20_000)
    options = parser.parse_args()
    host = unit_rows(0, options.pictures, 768), unit_rows(1, options.targets, 768)
    images, targets = map(jnp.asarray, host)
    calls: dict[str, Callable[[], Any]] = {
        "plain product": plain_product(),
        "norm_sim": lambda: cj.norm_sim(images, targets),
        "norm_sim signed": lambda: cj.norm_sim(images, targets, signed=True),
        "product and maximum": lambda: product_and_maximum(images, targets),
    }
    search = faiss_search(*host)
    if search:
        calls["faiss IndexFlatIP"] = search
    else:
        print("faiss is not installed (extra `bench`): its comparison is left out", file=sys.stderr)
    seconds = alternate(calls, options.rounds)
    for name in calls:
        report(name, seconds=statistics.median(seconds[name]))
    report("plain product", gflop_per_second=PRODUCT_GFLOP / statistics.median(seconds["plain product"]))
    report("speed to the product and maximum", ratio=median_ratio(seconds, "product and maximum", "norm_sim"))
    if search:
        report("speed to faiss", ratio=median_ratio(seconds, "faiss IndexFlatIP", "norm_sim signed"))
        report("speed to faiss, absolute", ratio=median_ratio(seconds, "faiss IndexFlatIP", "norm_sim"))


if __name__ == "__main__":
    main()
