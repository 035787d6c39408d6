"""What `plan` asks of a process that has jax: its devices, and how fast it scores."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipdata_jax import stopping
from clipdata_jax.config import NegClipLoss, Score
from clipdata_jax.data import files, tables, uids
from clipdata_jax.data.pool import Shard
from clipdata_jax.pipeline import group_scores
from clipdata_jax.pipeline.group_scores import Job, Pairs
from clipdata_jax.pipeline.score_columns import by_rows
from clipdata_jax.pipeline.score_units import Unit, read_ahead, shard_files

_ROWS = 8_192  # of a group on a CPU; elsewhere that is too little to keep a device busy
_TARGETS = 4_096
_WRITTEN = 1 << 17  # rows of a part
_IMPORTS = 1.0  # seconds of what a command loads before it asks for jax


@dataclasses.dataclass(frozen=True)
class ScoreQuestion:
    """What of `score` to measure.

    Attributes:
      options: of the command.
      shards: a sample of the pool's.
      tag: the model.
      dim: of the embeddings.
      temperatures: each.
      group: rows and cells of the commonest group; (0, 0) where none is compared.
      columns: columns that are written.
      targets: whether there are any.
    """

    options: Score
    shards: tuple[Shard, ...]
    tag: str
    dim: int
    temperatures: tuple[float, ...]
    group: tuple[int, int]
    columns: int
    targets: bool


@dataclasses.dataclass(frozen=True)
class ScoreRates:
    """Seconds: a row to read, a row squared of a group on each device, a row of clip_score, a row and target, a row to
    write, to compile a group's program, and until the first unit can begin.
    """

    read: float
    per_square: float
    clip_score: float
    per_target: float
    write: float
    compile: float
    start: float


def devices() -> tuple[str, int, int | None]:
    """The platform of this process's devices, how many they are, and the bytes of memory that each has."""
    start_seconds()
    import jax

    found = jax.local_devices()
    return found[0].platform, len(found), (found[0].memory_stats() or {}).get("bytes_limit")


@functools.cache
def start_seconds(module: str = "jax") -> float:
    """Seconds until a command that needs a module can begin: imports, devices. Asked first of all."""
    before = _IMPORTS if module == "jax" else start_seconds()
    return before + timed(lambda: _load(module))[1]


def _load(module: str) -> None:
    import jax

    importlib.import_module(module)
    jax.block_until_ready(jax.numpy.zeros(1) + 1)


def score(question: ScoreQuestion) -> ScoreRates:
    """Measures what `score` does: reads a sample of the pool, scores pairs like it, writes columns like its."""
    forget(path for shard in question.shards for path in shard_files(shard))
    unit, read = timed(lambda: read_unit(question))
    per_square, compiling = group_seconds(
        question.options.neg_clip_loss, question.dim, question.temperatures, question.group
    )
    clip_score, per_target = _row_seconds(question, unit)
    return ScoreRates(
        read=read / max(len(unit.uid), 1),
        per_square=per_square,
        clip_score=clip_score,
        per_target=per_target,
        write=_write_seconds(question.columns),
        compile=compiling,
        start=start_seconds(),
    )


def quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns; bars of what it runs aren't shown."""
    with contextlib.redirect_stderr(io.StringIO()):
        return function(*arguments)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    start = time.monotonic()
    result = call()
    return result, time.monotonic() - start


def forget(paths: Any) -> None:
    """Asks the system to drop files from memory, so that it is the disk that is measured."""
    for path in set(paths):
        if files.is_local(path) and hasattr(os, "posix_fadvise"):
            with open(files.filesystem(path)[1], "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_unit(question: ScoreQuestion) -> Unit:
    """Reads the shards as one unit."""
    return next(read_ahead(iter([(question.shards, 0)]), question.tag, question.dim, question.options))


def unit_rows(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Random unit rows, float16."""
    emb = np.random.default_rng(seed).standard_normal((rows, dim), np.float32)
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float16)


def group_seconds(
    settings: NegClipLoss, dim: int, temperatures: Sequence[float], group: tuple[int, int]
) -> tuple[float, float]:
    """Seconds a row squared when every device compares a group, tiles and cells as in the run; and to compile it."""
    import jax

    rows, cells = group
    if not rows:
        return 0.0, 0.0
    slots = rows // cells
    if jax.default_backend() == "cpu":
        cells = max(1, min(cells, _ROWS // slots))
        slots = min(slots, _ROWS)
    rows = cells * slots
    images, texts = (unit_rows(rows, dim, seed) for seed in (0, 1))
    pairs = Pairs(images, texts, np.ones(rows, bool))
    sizes = len(settings.batch_sizes()) if settings.division == "group" else 1
    repeats = settings.repeats if cells > 1 else 1
    everything = np.arange(rows)
    job = Job(everything, everything, rows, np.zeros((sizes, repeats, cells), np.int32))
    jobs = [job] * len(jax.local_devices())

    def call() -> None:
        list(group_scores.run(jobs, pairs, temperatures))

    first = timed(call)[1]
    seconds = statistics.median(timed(call)[1] for _ in range(3))
    return seconds / rows**2, first - seconds


def _row_seconds(question: ScoreQuestion, unit: Unit) -> tuple[float, float]:
    """Seconds a row of clip_score on one device, and a row and target of NormSim."""
    from clipdata_jax import scores

    rows = min(2 * _ROWS, len(unit.uid))
    images, texts = unit.images[:rows], unit.texts[:rows]
    pair = target = 0.0
    if "clip_score" in question.options.chosen():
        pair = steady(lambda: by_rows(scores.clip_score, images, texts)) / -(-rows // _ROWS) / _ROWS
    if question.targets:
        import jax

        held = jax.device_put(unit_rows(_TARGETS, question.dim))
        p = question.options.norm_sim.p[0]
        whole = jax.device_put(np.resize(images, (_ROWS, question.dim)))
        target = steady(lambda: scores.norm_sim(whole, held, p=p)) / _ROWS / _TARGETS
    return pair, target


def steady(call: Callable[[], Any]) -> float:
    """Seconds of a call that was made before."""
    import jax

    def whole() -> None:
        jax.block_until_ready(call())

    whole()
    return statistics.median(timed(whole)[1] for _ in range(3))


def twice(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call, and by how many more the first one takes: to compile."""
    import jax

    first = timed(lambda: jax.block_until_ready(call()))[1]
    seconds = steady(call)
    return seconds, max(0.0, first - seconds)


def _write_seconds(columns: int) -> float:
    """Seconds a row to sort, compress, digest and flush a part of a score table."""
    random = np.random.default_rng(0)
    uid = uids.join_halves(*random.integers(0, 2**64, (2, _WRITTEN), dtype=np.uint64))
    scores = {f"c{index}": random.standard_normal(_WRITTEN, np.float32) for index in range(columns)}

    def write() -> None:
        uids.sort_unique(uid)
        with stopping.scratch("clipdata-plan-") as folder:
            path = str(Path(folder) / "part.parquet")
            files.write_bytes(path, tables.part_bytes(uid, scores))
            files.digest(path)

    return timed(write)[1] / _WRITTEN
