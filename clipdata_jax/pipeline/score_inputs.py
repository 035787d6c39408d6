"""What a pool's embeddings say of themselves: their model's temperature, their dimension."""

from __future__ import annotations

from typing import Any

from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays
from clipdata_jax.formats.embedding_shards import Pool

DEFAULT_TEMPERATURE = 0.01


def temperatures(given: tuple[float, ...] | None, model: dict[str, Any]) -> tuple[tuple[float, ...], str]:
    """The temperatures and where they are from: the options, the manifest of the embeddings, or nowhere."""
    if given is not None:
        return given, "options"
    if "temperature" in model:
        return (float(model["temperature"]),), "manifest"
    return (DEFAULT_TEMPERATURE,), "assumed"


def dimension(pool: Pool, tag: str) -> int:
    """The dimension of the pool's embeddings: that of the first shard that can be read."""
    for shard in pool.shards:
        try:
            return arrays.array_shape(shard.images, f"{tag}_img")[1]
        except InputError as error:
            last = error
    raise last
