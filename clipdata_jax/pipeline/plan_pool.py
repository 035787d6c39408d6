"""What `plan` finds out about a pool of embeddings: from footers, headers and sizes of files. Imports no jax."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence

from clipdata_jax.data import files
from clipdata_jax.data.pool import Pool, Shard

_SAMPLE = 64 << 20  # bytes of the pool that are read to see how fast that is


def bytes_of(pool: Pool, shards: Iterable[Shard], files_of: Callable[[Shard], list[str]]) -> int:
    """Bytes of the files of some shards."""
    sizes = files.sizes(pool.folder)
    paths = {path for shard in shards for path in files_of(shard)}
    return sum(sizes[path[len(pool.folder) :].lstrip("/")] for path in paths)


def sample(shards: Sequence[Shard], row: int) -> tuple[Shard, ...]:
    """The first shards, 64 MiB or so of them and one at least.

    Args:
      shards: of a pool.
      row: bytes of a pair's embeddings.
    """
    chosen: list[Shard] = []
    size = 0
    for shard in shards:
        size += shard.rows * row
        if chosen and size > _SAMPLE:
            break
        if shard.rows:
            chosen.append(shard)
    return tuple(chosen)


def form(shards: Sequence[Shard], tag: str, dim: int) -> tuple[int, bool]:
    """Bytes of a number, by the size of the first shard's array, and whether that can be mapped."""
    first = next(shard for shard in shards if shard.rows)
    size, plain = files.size(first.images), True
    if first.images.endswith(".npz"):
        with files.open_read(first.images) as file, zipfile.ZipFile(file) as members:
            held = members.getinfo(f"{tag}_img.npy")
            size, plain = held.file_size, held.compress_type == zipfile.ZIP_STORED
    return max(1, size // (first.rows * dim)), plain and files.is_local(first.images)
