"""NormSim with p = inf against a plain product with a maximum, and against faiss' exact inner-product index.

    python benchmarks/norm_sim.py [--rounds 5] [--images 8192] [--targets 20000] [--memory]

One JSON line a figure; last the anonymous memory beyond the inputs, for that many targets and ten times as many.
Needs the extra `bench` for the comparison with faiss; without it says so.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import (
    PRODUCT_GFLOP,
    alternate,
    anonymous_memory,
    median_ratio,
    peak_memory,
    plain_product,
    report,
    unit_rows,
)

import clipdata_jax as cj


def faiss_search(images: np.ndarray, targets: np.ndarray) -> Callable[[], Any] | None:
    """The nearest target of each image by inner product; None without faiss."""
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


_FORMS: dict[str, Callable[[jax.Array, jax.Array], Any]] = {
    "p = inf": cj.norm_sim,
    "p = 3": lambda images, target: cj.norm_sim(images, target, p=3),
    "p = 2": lambda images, target: cj.norm_sim(images, target, p=2),
    "nearest target": cj.nearest_target,
}


def memory(images: int, targets: int) -> None:
    """What each form takes beyond its inputs, each in a process of its own: what is freed hides what is taken."""
    for form in _FORMS:
        for count in (targets, 10 * targets):
            numbers = ["--images", str(images), "--targets", str(count)]
            subprocess.run([sys.executable, __file__, "--memory-of", form, *numbers], check=True)


def memory_of(form: str, images: int, targets: int) -> None:
    """One form's memory; half-precision targets, as they lie on disk."""
    image_emb = jax.block_until_ready(jnp.asarray(unit_rows(0, images, 768)))
    before = anonymous_memory()
    # Made on the device, since a host's copy is let go of at nobody knows what moment.
    part = jnp.asarray(unit_rows(1, 2_000, 768).astype(np.float16))
    target = jax.block_until_ready(jnp.tile(part, (targets // 2_000, 1)))
    most = peak_memory(lambda: _FORMS[form](image_emb, target))
    beyond = most - before - target.nbytes
    report(f"memory, {form}", targets=len(target), megabytes_beyond_inputs=beyond / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8_192)
    parser.add_argument("--targets", type=int, default=20_000)
    parser.add_argument("--memory", action="store_true", help="only the memory")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_of(options.memory_of, options.images, options.targets)
        return
    if not options.memory:
        compare(options)
    memory(options.images, options.targets)


def compare(options: argparse.Namespace) -> None:
    host = unit_rows(0, options.images, 768), unit_rows(1, options.targets, 768)
    images, targets = map(jnp.asarray, host)
    calls: dict[str, Callable[[], Any]] = {
        "plain product": plain_product(),
        "norm_sim": lambda: cj.norm_sim(images, targets),
        "norm_sim signed": lambda: cj.norm_sim(images, targets, signed=True),
        "nearest_target": lambda: cj.nearest_target(images, targets),
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
    for name in ("norm_sim", "nearest_target"):
        ratio = median_ratio(seconds, "product and maximum", name)
        report(f"speed of {name} to the product and maximum", ratio=ratio)
    if search:
        for name in ("norm_sim signed", "norm_sim", "nearest_target"):
            report(f"speed of {name} to faiss", ratio=median_ratio(seconds, "faiss IndexFlatIP", name))


if __name__ == "__main__":
    main()
