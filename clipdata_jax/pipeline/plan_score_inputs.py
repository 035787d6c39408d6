"""What `plan` finds out about the pool and the targets of `score`: from footers and headers. Imports no jax."""

from __future__ import annotations

import dataclasses
import math

from clipdata_jax.config import Score
from clipdata_jax.data import arrays, files
from clipdata_jax.data import pool as pools
from clipdata_jax.data.pool import Pool
from clipdata_jax.pipeline import plan_pool, score, score_inputs, target_sets
from clipdata_jax.pipeline.score_columns import neg_clip_loss_columns, norm_sim_column


@dataclasses.dataclass(frozen=True)
class Work:
    """A pool, and how it is cut.

    Attributes:
      pool: the shards.
      units: rows of each unit.
      tag: the model.
      dim: of the embeddings.
      itemsize: bytes of a number in them.
      copies: how often a unit's embeddings are in memory that no file backs.
      temperatures: each.
      columns: columns of float32 that are written.
      targets: rows of each target.
    """

    pool: Pool
    units: tuple[int, ...]
    tag: str
    dim: int
    itemsize: int
    copies: int
    temperatures: tuple[float, ...]
    columns: int
    targets: tuple[int, ...]

    @property
    def row(self) -> int:
        """Bytes of a pair's embeddings."""
        return 2 * self.dim * self.itemsize


def look(options: Score) -> Work:
    """Reads footers and headers, no embeddings."""
    pool = pools.open_pool(options.pool, on_bad=options.on_bad)
    tag = pool.tag(options.tag)
    made_by = target_sets.made_by_model(options.pool, tag)
    temperatures, _ = score_inputs.temperatures(options.neg_clip_loss.temperatures(), made_by)
    dim = score_inputs.dimension(pool, tag)
    planned = score.plan_units(pool, options.neg_clip_loss)
    units = tuple(sum(shard.rows for shard in unit) for unit in planned)
    chosen, named = options.chosen(), options.norm_sim.targets()
    columns = int("clip_score" in chosen)
    if "neg_clip_loss" in chosen:
        columns += 4 * len(neg_clip_loss_columns(options.neg_clip_loss, tag, temperatures))
    targets: tuple[int, ...] = ()
    if "norm_sim" in chosen:
        with_row = {norm_sim_column(p, name) for p in options.norm_sim.p for name in named if p == math.inf}
        columns += len(options.norm_sim.p) * (len(named) + (options.norm_sim.union is not None))
        columns += len(with_row) if options.norm_sim.nearest else 0
        targets = tuple(target_rows(path, tag) for path in named.values() if target_sets.is_embedded(path))
    itemsize, plain = plan_pool.form(pool.shards, tag, dim)
    copies = _copies(plain, max(map(len, planned)) > 1, options.normalize, min(2, len(units)))
    return Work(pool, units, tag, dim, itemsize, copies, temperatures, columns, targets)


def _copies(plain: bool, joined: bool, normalize: bool, units: int) -> int:
    """Copies of a unit: none where it is mapped from its file; else of one that is scored and one that is read.

    Shards of a unit are joined, which copies them; so does `--normalize`, or what isn't mapped.
    """
    if plain and not joined:
        return units * normalize
    return units + (joined and (normalize or not plain))


def target_rows(path: str, tag: str) -> int:
    """How many pictures a target of embeddings has, by headers.

    Raises:
      InputError: it isn't there, or is no such target.
    """
    parts = files.list_folder(path, ".npz") if files.is_folder(path) else [path]
    return sum(arrays.array_shape(part, f"{tag}_img")[0] for part in parts)
