"""Blocks of an array's rows, cut in place: nothing of the array's size is copied or padded."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

_BLOCK = 2048  # rows a side of a tile: 16 MiB of float32


@dataclasses.dataclass(frozen=True)
class Blocks:
    """`count` blocks of `side` rows cover `rows` rows; the last begins early enough to be whole."""

    rows: int
    count: int
    side: int

    @classmethod
    def of(cls, rows: int) -> Blocks:
        """The blocks of n rows, as few and as equal as possible; one empty block if n is 0."""
        count = max(1, -(-rows // _BLOCK))
        return cls(rows, count, -(-rows // count))

    def start(self, index: Array) -> Array:
        """The first row of a block."""
        return jnp.minimum(index * self.side, self.rows - self.side)

    def cut(self, emb: Float[Array, "n d"], index: Array) -> tuple[Float[Array, "side d"], Bool[Array, " side"]]:
        """A block, and a mask of its rows that no earlier block holds."""
        start = self.start(index)
        fresh = start + jnp.arange(self.side) >= index * self.side
        return jax.lax.dynamic_slice_in_dim(emb, start, self.side), fresh

    def join(self, parts: Num[Array, "count side"]) -> Num[Array, " n"]:
        """Joins the results of all blocks, one a row, in the order of the rows."""
        repeated = self.count * self.side - self.rows
        return jnp.concatenate([parts[:-1].reshape(-1), parts[-1, repeated:]])
