"""negCLIPLoss over K divisions against the product it needs, and against the reference's way in PyTorch.

    python benchmarks/neg_clip_loss.py [--rounds 5] [--pairs 16384] [--batch-size 4096] [--table] [--memory]

One JSON line a figure. Needs the extra `bench` for the comparison with PyTorch; without it says so.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
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

_TILE = 2048
_CELLS_PER_BATCH = 16
_TEMPERATURE = 0.01


def divisions(repeats: int, batches: int) -> np.ndarray:
    """K random divisions of 16 cells a batch: int32 (K, cells)."""
    random = np.random.default_rng(0)
    cells = np.repeat(np.arange(batches), _CELLS_PER_BATCH)
    return np.stack([random.permutation(cells) for _ in range(repeats)]).astype(np.int32)


@functools.partial(jax.jit, static_argnames="maxima")
def tiled_product(f_bd: jax.Array, g_bd: jax.Array, *, maxima: bool) -> jax.Array:
    """F G' in tiles of 2,048 a side, each row's maximum kept; or, without maxima, one number of each tile."""
    f_ntd, g_ntd = (x.reshape(-1, min(_TILE, len(x)), x.shape[1]) for x in (f_bd, g_bd))

    def row(f_td: jax.Array) -> jax.Array:
        def column(most: jax.Array, g_td: jax.Array) -> tuple[jax.Array, None]:
            cos = jnp.einsum("id,jd->ij", f_td, g_td, precision="highest")
            cos = jax.lax.optimization_barrier(cos)  # neither cut down to what is read, nor fused slowly
            if not maxima:
                return jnp.maximum(most, cos[:, :64]), None
            cos = cos.reshape(len(f_td), -1, 64)  # 64 running maxima a row are the fastest form found
            return jnp.maximum(most, cos.max(axis=1)), None

        return jax.lax.scan(column, jnp.full((f_ntd.shape[1], 64), -jnp.inf), g_ntd)[0].max(axis=1)

    return jax.lax.map(row, f_ntd)


def torch_reference(f: np.ndarray, g: np.ndarray, *, repeats: int, batch_size: int) -> Callable[[], Any] | None:
    """The equation over K random divisions, batch by batch, in float32 PyTorch; None without PyTorch."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    images, texts = torch.from_numpy(f), torch.from_numpy(g)

    def scores() -> Any:
        total = torch.zeros(len(images))
        for _ in range(repeats):
            for rows in torch.randperm(len(images)).split(batch_size):
                logits = images[rows] @ texts[rows].T / _TEMPERATURE
                exp = torch.exp(logits)
                sums = torch.log(exp.sum(dim=1)) + torch.log(exp.sum(dim=0))
                total[rows] += _TEMPERATURE * (logits.diagonal() - sums / 2)
        return total / repeats

    return scores


def compare(pairs: int, batch_size: int, rounds: int) -> None:
    """The bars: K = 10 and 100 at once against the product, then against PyTorch at K = 10 and 100."""
    f = unit_rows(0, pairs, 768)
    g = unit_rows(1, pairs, 768, noise_of=f)
    batches = pairs // batch_size
    half = [jnp.asarray(x, jnp.float16) for x in (f, g)]
    full = [x.astype(jnp.float32) for x in half]
    calls: dict[str, Callable[[], Any]] = {"plain product": plain_product()}
    calls["tiled product"] = lambda: tiled_product(*full, maxima=False)
    calls["tiled product with row maxima"] = lambda: tiled_product(*full, maxima=True)
    for repeats in (10, 100):
        dealt = divisions(repeats, batches)
        calls[f"K={repeats}"] = functools.partial(cj.neg_clip_loss_divisions, *half, dealt, temperature=_TEMPERATURE)
    reference = torch_reference(f, g, repeats=10, batch_size=batch_size)
    if reference:
        calls["torch K=10"] = reference
    seconds = alternate(calls, rounds)
    for name in calls:
        report(name, seconds=statistics.median(seconds[name]), pairs=pairs, batch_size=batch_size)
    report("plain product", gflop_per_second=PRODUCT_GFLOP / statistics.median(seconds["plain product"]))
    for repeats in (10, 100):
        for base in ("tiled product with row maxima", "tiled product"):
            report(f"K={repeats} to the {base}", ratio=median_ratio(seconds, f"K={repeats}", base))
    if not reference:
        print("PyTorch is not installed (extra `bench`): its comparison is left out", file=sys.stderr)
        return
    report("torch K=10 to K=10", ratio=median_ratio(seconds, "torch K=10", "K=10"))
    _compare_hundred(f, g, batch_size, calls)


def _compare_hundred(f: np.ndarray, g: np.ndarray, batch_size: int, calls: dict[str, Callable[[], Any]]) -> None:
    """K = 100 of PyTorch takes minutes: once, between two runs of ours."""
    ours = alternate({"K=100": calls["K=100"]}, 1)["K=100"]
    reference = torch_reference(f, g, repeats=100, batch_size=batch_size)
    assert reference
    start = time.perf_counter()
    reference()
    took = time.perf_counter() - start
    ours += alternate({"K=100": calls["K=100"]}, 1)["K=100"]
    report("torch K=100 to K=100", ratio=took / statistics.mean(ours), seconds=took, rounds=1)


def table(pairs: int, rounds: int) -> None:
    """Seconds for K in {1, 10, 100} and m in {1, 2, 4}: groups of `pairs` rows in m batches."""
    f = unit_rows(0, pairs, 768)
    half = [jnp.asarray(x, jnp.float16) for x in (f, unit_rows(1, pairs, 768, noise_of=f))]
    size = pairs // 4
    calls = {}
    for batches in (1, 2, 4):
        group = [x[: batches * size] for x in half]
        for repeats in (1, 10, 100):
            calls[repeats, batches] = functools.partial(
                cj.neg_clip_loss_divisions, *group, divisions(repeats, batches), temperature=_TEMPERATURE
            )
    seconds = alternate({str(key): call for key, call in calls.items()}, rounds)
    for repeats, batches in calls:
        took = statistics.median(seconds[str((repeats, batches))])
        report(
            "table",
            K=repeats,
            m=batches,
            batch_size=size,
            seconds=took,
            microseconds_per_pair=took / (batches * size) * 1e6,
        )


def memory(pairs: int) -> None:
    """Anonymous memory beyond the float16 embeddings, each K in a process of its own."""
    for repeats in (10, 100):
        command = [sys.executable, __file__, "--memory-of", str(repeats), "--memory-pairs", str(pairs)]
        subprocess.run(command, check=True, env=os.environ)


def memory_of(repeats: int, pairs: int) -> None:
    """Scores one group and reports the most anonymous memory seen while it ran."""
    half = []
    for seed in (0, 1):
        rows = [unit_rows(seed + 2 * i, 8192, 768).astype(np.float16) for i in range(pairs // 8192)]
        half.append(jnp.asarray(np.concatenate(rows)))
        del rows
    jax.block_until_ready(half)
    peak_memory(lambda: None)  # gives back what was freed
    before, start = anonymous_memory(), time.perf_counter()
    dealt = divisions(repeats, 4)
    most = peak_memory(lambda: cj.neg_clip_loss_divisions(*half, dealt, temperature=_TEMPERATURE))
    took = time.perf_counter() - start
    report("memory", K=repeats, pairs=pairs, megabytes_beyond_embeddings=(most - before) / 1e6, seconds=took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16_384)
    parser.add_argument("--batch-size", type=int, default=4_096)
    parser.add_argument("--table", action="store_true", help="only the table over K and m")
    parser.add_argument("--memory", action="store_true", help="only the memory of 131,072 pairs; minutes")
    parser.add_argument("--memory-pairs", type=int, default=131_072, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_of(options.memory_of, options.memory_pairs)
    elif options.memory:
        memory(options.memory_pairs)
    elif options.table:
        table(options.pairs, options.rounds)
    else:
        compare(options.pairs, options.batch_size, options.rounds)
        table(options.pairs, options.rounds)


if __name__ == "__main__":
    main()
