"""What `plan` asks of a process that has jax: the shapes of models, and how fast it decodes and embeds."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdata_jax import parallel
from clipdata_jax.config import Embed
from clipdata_jax.data import sources
from clipdata_jax.pipeline import samples
from clipdata_jax.pipeline.plan_probe import timed

_PICTURES = 64


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

    first = timed(call)[1]
    seconds = statistics.median(timed(call)[1] for _ in range(3))
    return seconds / encoder.rows, first - seconds
