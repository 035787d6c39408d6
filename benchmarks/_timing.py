"""How the benchmarks measure: alternating rounds, medians, a plain product beside them, memory of this process."""

from __future__ import annotations

import ctypes
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def alternate(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, the calls taking turns, after one turn that compiles.

    A machine's speed wanders by up to 2x between minutes: only calls that took turns can be compared.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(seconds: dict[str, list[float]], name: str, to: str) -> float:
    """The median over the turns of one call's time to another's."""
    pairs = zip(seconds[name], seconds[to], strict=True)
    return statistics.median(one / other for one, other in pairs)


def report(figure: str, **values: Any) -> None:
    """Prints one JSON line."""
    rounded = {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in values.items()}
    print(json.dumps({"figure": figure, **rounded}), flush=True)


def plain_product() -> Callable[[], Any]:
    """2,048 x 768 by 768 x 2,048 in float32: what the machine can do at this moment."""
    f, g = (jnp.asarray(unit_rows(seed, 2048, 768)) for seed in (0, 1))
    product = jax.jit(lambda f, g: jnp.einsum("id,jd->ij", f, g, precision="highest"))
    return lambda: product(f, g)


PRODUCT_GFLOP = 2 * 2048 * 2048 * 768 / 1e9


def unit_rows(seed: int, rows: int, dim: int, *, noise_of: np.ndarray | None = None) -> np.ndarray:
    """Random unit rows, float32; near `noise_of`'s rows (cosine about 0.4) where given."""
    emb = np.random.default_rng(seed).standard_normal((rows, dim), np.float32)
    if noise_of is not None:
        emb = emb / np.sqrt(np.float32(dim)) + np.float32(0.44) * noise_of
    return emb / np.linalg.norm(emb, axis=1, keepdims=True)


def anonymous_memory(process: int | str = "self") -> int:
    """Bytes of a process that no file backs (mapped files would count in the resident set); 0 once it ended. Linux."""
    status = Path(f"/proc/{process}/status").read_text()
    _, found, rest = status.partition("RssAnon:")
    return int(rest.split()[0]) * 1024 if found else 0


def peak_memory(call: Callable[[], Any], measure: Callable[[], int] = anonymous_memory) -> int:
    """The most anonymous memory of this process, or what else `measure` returns, while a call runs, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before hides what is taken now
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, measure())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        jax.block_until_ready(call())
    finally:
        done.set()
        watcher.join()
    return most
