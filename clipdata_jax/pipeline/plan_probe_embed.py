"""What `plan` asks of a process that has jax: the shapes of models, and how fast it decodes and embeds."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdata_jax import parallel
from clipdata_jax.config import Embed
from clipdata_jax.data import sources
from clipdata_jax.pipeline import plan_model, samples
from clipdata_jax.pipeline.plan_probe import start_seconds, twice

_PICTURES = 64


@dataclasses.dataclass(frozen=True)
class EmbedFacts:
    """Of all models together: bytes of parameters, operations of a picture, and of a caption, numbers of a pair's
    embeddings, pixels' bytes a picture, bytes that a batch takes on a device. Seconds to embed a picture, and a
    caption, to decode a picture, and to begin.
    """

    parameters: int
    of_picture: float
    of_caption: float
    numbers: int
    pixels: int
    batch: int
    picture: float = 0.0
    caption: float = 0.0
    decode: float = 0.0
    start: float = 0.0


def embed(options: Embed, calibrate: bool) -> EmbedFacts:
    """The models' shapes; and if asked, how long it takes to decode and to embed some of the pictures."""
    before = start_seconds("clipdata_jax.models") if calibrate else 0.0
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
    start = before + time.monotonic() - begin
    decode, pixels = _decode(options, [path for _, path in loaded])
    each = [
        _encode_seconds(model, path, of_model, options)
        for (model, path), of_model in zip(loaded, pixels, strict=True)
    ]
    picture, caption, compiling = (sum(seconds) for seconds in zip(*each, strict=True))
    return dataclasses.replace(
        whole, picture=picture, caption=caption, decode=decode, start=start + compiling
    )


def _shape(config: Any, options: Embed) -> EmbedFacts:
    """Sizes of a model."""
    pixels, bytes_each = 3 * config.vision.image_size**2, 2 if options.dtype == "bfloat16" else 4
    return EmbedFacts(
        parameters=plan_model.parameters(config) * bytes_each,
        of_picture=plan_model.picture_operations(config),
        of_caption=0.0 if options.images_only else plan_model.caption_operations(config),
        numbers=(1 if options.images_only else 2) * config.embed_dim,
        pixels=pixels,
        batch=options.batch_size * (plan_model.alive(config) * bytes_each + pixels * 4),
    )


def decode_seconds(
    source: sources.Source, transforms: Sequence[Any], *, decoders: int = 0, need_caption: bool = False
) -> tuple[float, list[samples.Decoded]]:
    """Seconds a sample to read and decode with all threads, and some samples."""
    start = time.monotonic()
    raw = list(itertools.islice(source.samples(), _PICTURES))
    decoded = samples.decoded_samples(
        raw, transforms, path=source.path, on_bad="skip", decoders=decoders, need_caption=need_caption
    )
    good = [sample for sample in decoded if isinstance(sample, samples.Decoded)]
    return (time.monotonic() - start) / max(len(raw), 1), good


def _decode(options: Embed, checkpoints: Sequence[str]) -> tuple[float, list[np.ndarray]]:
    """Seconds a picture, and some pictures as each model's pixels."""
    from clipdata_jax import models

    transforms = [models.load_image_transform(path) for path in checkpoints]
    found = sources.find_sources(
        options.sources,
        images_only=options.images_only,
        picture_column=options.picture_column,
        caption_column=options.caption_column,
    )
    source = next(iter(found.units.values()))
    seconds, good = decode_seconds(source, transforms, decoders=options.decoders)
    stacked = [
        np.stack([sample.pixels[index] for sample in good])
        if good
        else np.zeros((1, transform.size, transform.size, 3), np.uint8)
        for index, transform in enumerate(transforms)
    ]
    return seconds, stacked


def _encode_seconds(model: Any, path: str, pixels: np.ndarray, options: Embed) -> tuple[float, float, float]:
    """Seconds a picture, and a caption, all devices at work, in batches of the run's size if small; to compile."""
    import jax

    from clipdata_jax import models
    from clipdata_jax.pipeline.encode import Encoder

    size = options.batch_size if jax.default_backend() != "cpu" else min(options.batch_size, 16)
    encoder = Encoder(model, size, parallel.local_mesh())
    batch = np.resize(pixels, (encoder.rows, *pixels.shape[1:]))
    picture, compiling = twice(lambda: encoder.images(batch))
    if options.images_only:
        return picture / encoder.rows, 0.0, compiling
    ids = models.load_tokenizer(path)(["a photo of a small house"] * encoder.rows)
    caption, more = twice(lambda: encoder.texts(ids))
    return picture / encoder.rows, caption / encoder.rows, compiling + more
