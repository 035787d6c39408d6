"""What `plan` asks of a process that has jax: devices, shapes of models, and some ten seconds of measuring."""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipdata_jax import parallel
from clipdata_jax.config import Embed, Score
from clipdata_jax.data import files, sources, tables, uids
from clipdata_jax.data.pool import Shard
from clipdata_jax.pipeline import group_scores, samples
from clipdata_jax.pipeline.group_scores import Job, Pairs
from clipdata_jax.pipeline.score_columns import by_rows
from clipdata_jax.pipeline.score_units import Unit, read_ahead, shard_files

_ROWS = 8_192  # of a group on a CPU; elsewhere that is too little to keep a device busy
_TARGETS = 4_096
_WRITTEN = 1 << 17  # rows of a part
_PICTURES = 64


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


@dataclasses.dataclass(frozen=True)
class EmbedFacts:
    """Of all models together: bytes of parameters, operations and seconds a picture and a caption, numbers of an
    embedding, pixels' bytes a picture, bytes that a batch takes on a device; seconds to decode a picture and to begin.
    """

    parameters: int
    operations: float
    numbers: int
    pixels: int
    batch: int
    encode: float = 0.0
    decode: float = 0.0
    start: float = 0.0


def devices() -> tuple[str, int, int | None]:
    """The platform of this process's devices, how many they are, and the bytes of memory that each has."""
    import jax

    found = jax.local_devices()
    return found[0].platform, len(found), (found[0].memory_stats() or {}).get("bytes_limit")


def score(question: ScoreQuestion) -> ScoreRates:
    """Measures what `score` does: reads a sample of the pool, scores pairs like it, writes columns like its."""
    begin = time.monotonic()
    import jax

    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    start = time.monotonic() - begin
    _forget(path for shard in question.shards for path in shard_files(shard))
    unit, read = _timed(lambda: _read(question))
    per_square, compiling = _group_seconds(question)
    clip_score, per_target = _row_seconds(question, unit)
    return ScoreRates(
        read=read / max(len(unit.uid), 1),
        per_square=per_square,
        clip_score=clip_score,
        per_target=per_target,
        write=_write_seconds(question.columns),
        compile=compiling,
        start=start + 1.0,
    )


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.monotonic()
    result = call()
    return result, time.monotonic() - start


def _forget(paths: Any) -> None:
    """Asks the system to drop files from memory, so that it is the disk that is measured."""
    for path in set(paths):
        if files.is_local(path) and hasattr(os, "posix_fadvise"):
            with open(files.filesystem(path)[1], "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(question: ScoreQuestion) -> Unit:
    return next(read_ahead(iter([(question.shards, 0)]), question.tag, question.dim, question.options))


def _unit_rows(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    emb = np.random.default_rng(seed).standard_normal((rows, dim), np.float32)
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float16)


def _group_seconds(question: ScoreQuestion) -> tuple[float, float]:
    """Seconds a row squared when every device compares a group, tiles and cells as in the run; and to compile it."""
    import jax

    rows, cells = question.group
    if not rows:
        return 0.0, 0.0
    slots = rows // cells
    if jax.default_backend() == "cpu":
        cells = max(1, min(cells, _ROWS // slots))
        slots = min(slots, _ROWS)
    rows, settings = cells * slots, question.options.neg_clip_loss
    images, texts = (_unit_rows(rows, question.dim, seed) for seed in (0, 1))
    pairs = Pairs(images, texts, np.ones(rows, bool))
    sizes = len(settings.batch_sizes()) if settings.division == "group" else 1
    repeats = settings.repeats if cells > 1 else 1
    everything = np.arange(rows)
    job = Job(everything, everything, rows, np.zeros((sizes, repeats, cells), np.int32))
    jobs = [job] * len(jax.local_devices())
    call = lambda: list(group_scores.run(jobs, pairs, question.temperatures))  # noqa: E731
    first = _timed(call)[1]
    seconds = statistics.median(_timed(call)[1] for _ in range(3))
    return seconds / rows**2, first - seconds


def _row_seconds(question: ScoreQuestion, unit: Unit) -> tuple[float, float]:
    """Seconds a row of clip_score on one device, and a row and target of NormSim."""
    from clipdata_jax import scores

    rows = min(2 * _ROWS, len(unit.uid))
    images, texts = unit.images[:rows], unit.texts[:rows]
    pair = target = 0.0
    if "clip_score" in question.options.chosen():
        pair = _steady(lambda: by_rows(scores.clip_score, images, texts)) / -(-rows // _ROWS) / _ROWS
    if question.targets:
        import jax

        held = jax.device_put(_unit_rows(_TARGETS, question.dim))
        p = question.options.norm_sim.p[0]
        whole = jax.device_put(np.resize(images, (_ROWS, question.dim)))
        target = _steady(lambda: scores.norm_sim(whole, held, p=p)) / _ROWS / _TARGETS
    return pair, target


def _steady(call: Callable[[], Any]) -> float:
    import jax

    def whole() -> None:
        jax.block_until_ready(call())

    whole()
    return statistics.median(_timed(whole)[1] for _ in range(3))


def _write_seconds(columns: int) -> float:
    """Seconds a row to sort, compress, digest and flush a part of a score table."""
    random = np.random.default_rng(0)
    uid = uids.join_halves(*random.integers(0, 2**64, (2, _WRITTEN), dtype=np.uint64))
    scores = {f"c{index}": random.standard_normal(_WRITTEN, np.float32) for index in range(columns)}

    def write() -> None:
        uids.sort_unique(uid)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "part.parquet")
            files.write_bytes(path, tables.part_bytes(uid, scores))
            files.digest(path)

    return _timed(write)[1] / _WRITTEN


def embed(options: Embed, calibrate: bool) -> EmbedFacts:
    """The models' shapes; and if asked, how long it takes to decode and to embed some of the pictures."""
    begin = time.monotonic()
    from clipdata_jax import models
    from clipdata_jax.models.layout import read_layout

    facts = [
        _shape(read_layout(models.files.checkpoint_folder(path)).config(), options)
        for path in options.models().values()
    ]
    whole = EmbedFacts(*(sum(values) for values in zip(*map(dataclasses.astuple, facts), strict=True)))
    if not calibrate:
        return whole
    loaded = [
        (models.load_clip(path, dtype=options.dtype, sharding=parallel.replicated()), path)
        for path in options.models().values()
    ]
    start = time.monotonic() - begin
    decode, pixels = _decode_seconds(options, [path for _, path in loaded])
    encode, compiling = 0.0, 0.0
    for (model, path), of_model in zip(loaded, pixels, strict=True):
        steady, first = _encode_seconds(model, path, of_model, options)
        encode, compiling = encode + steady, compiling + first
    return dataclasses.replace(whole, encode=encode, decode=decode, start=start + compiling)


def _shape(config: Any, options: Embed) -> EmbedFacts:
    """Sizes of a model: multiplications and additions of its matrices and of attention, numbers in its parameters."""
    vision, text = config.vision, config.text
    tokens = vision.patches + vision.has_class_token
    patch = 3 * vision.patch_size**2 * vision.width
    numbers = _tower_numbers(vision) + patch + vision.width * config.embed_dim
    operations = _tower_operations(vision, tokens) + 2.0 * vision.patches * patch
    sides = 1
    if not options.images_only:
        sides = 2
        operations += _tower_operations(text, text.context_length)
    numbers += _tower_numbers(text) + (text.vocab_size + text.context_length + config.embed_dim) * text.width
    bytes_each = 2 if options.dtype == "bfloat16" else 4
    # Of a layer's numbers a few are alive at a time: what it adds to, attention's three inputs, the MLP's inside.
    alive = tokens * (4 * vision.width + vision.mlp_width) + 2 * vision.heads * tokens**2
    return EmbedFacts(
        parameters=numbers * bytes_each,
        operations=operations,
        numbers=sides * config.embed_dim,
        pixels=3 * vision.image_size**2,
        batch=options.batch_size * (alive * bytes_each + 3 * vision.image_size**2 * 4),
    )


def _tower_numbers(tower: Any) -> int:
    return tower.layers * (4 * tower.width**2 + 2 * tower.width * tower.mlp_width)


def _tower_operations(tower: Any, tokens: int) -> float:
    return 2.0 * tokens * _tower_numbers(tower) + 4.0 * tower.layers * tokens**2 * tower.width


def _decode_seconds(options: Embed, checkpoints: Sequence[str]) -> tuple[float, list[np.ndarray]]:
    """Seconds a picture with all threads, and some pictures as each model's pixels."""
    from clipdata_jax import models

    transforms = [models.load_image_transform(path) for path in checkpoints]
    found = sources.find_sources(
        options.sources,
        images_only=options.images_only,
        picture_column=options.picture_column,
        caption_column=options.caption_column,
    )
    source = next(iter(found.units.values()))
    raw = list(itertools.islice(source.samples(), _PICTURES))
    start = time.monotonic()
    decoded = samples.decoded_samples(
        raw, transforms, path=source.path, on_bad="skip", decoders=options.decoders, need_caption=False
    )
    good = [sample for sample in decoded if isinstance(sample, samples.Decoded)]
    seconds = (time.monotonic() - start) / max(len(raw), 1)
    stacked = [
        np.stack([sample.pixels[index] for sample in good])
        if good
        else np.zeros((1, transform.size, transform.size, 3), np.uint8)
        for index, transform in enumerate(transforms)
    ]
    return seconds, stacked


def _encode_seconds(model: Any, path: str, pixels: np.ndarray, options: Embed) -> tuple[float, float]:
    """Seconds a picture with its caption, all devices at work, in batches of the run's size if small; to compile."""
    import jax

    from clipdata_jax import models
    from clipdata_jax.pipeline.encode import Encoder

    size = options.batch_size if jax.default_backend() != "cpu" else min(options.batch_size, 16)
    encoder = Encoder(model, size, parallel.local_mesh())
    batch = np.resize(pixels, (encoder.rows, *pixels.shape[1:]))
    ids = (
        None
        if options.images_only
        else models.load_tokenizer(path)(["a photo of a small house"] * encoder.rows)
    )

    def call() -> None:
        encoder.images(batch)
        if ids is not None:
            encoder.texts(ids)

    first = _timed(call)[1]
    seconds = statistics.median(_timed(call)[1] for _ in range(3))
    return seconds / encoder.rows, first - seconds
