"""Log-sums of the exponentials of a similarity matrix over cells of its rows and columns, tile by tile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clipdata_jax.scores.products import cosines

_TILE = 1024  # rows a side; from the group's shape alone, since other tiles give other bits


def log_sum_tables(
    f_bd: Float[Array, "b d"],
    g_bd: Float[Array, "b d"],
    mask_b: Bool[Array, " b"] | None,
    *,
    cells: int,
    temperature: Array | float,
) -> tuple[Float[Array, "b cells"], Float[Array, "b cells"]]:
    """The two tables of `cell_log_sums`; `cells` divides b.

    Each cell has its own maximum, so that no sum underflows whatever the others hold. Anonymous memory: the
    tables and some tiles of 1,024 x 1,024 float32.
    """
    b = f_bd.shape[0]
    slots = b // cells
    if slots > _TILE:  # several tiles a cell
        parts, together = -(-slots // _TILE), 1
    else:  # several cells a tile
        parts, together = (
            1,
            max(k for k in range(1, cells + 1) if cells % k == 0 and k * slots <= max(_TILE, slots)),
        )
    side = -(-slots // parts)  # rows of a part of a cell

    def tiles(array: Array) -> Array:
        padded = jnp.pad(
            array.reshape(cells, slots, *array.shape[1:]),
            [(0, 0), (0, parts * side - slots), *[(0, 0)] * (array.ndim - 1)],
        )
        return padded.reshape(cells // together * parts, together * side, *array.shape[1:])

    mask = jnp.ones(b, bool) if mask_b is None else mask_b
    f_ntd, g_ntd, mask_nt = tiles(f_bd), tiles(g_bd), tiles(mask)
    n = f_ntd.shape[0]

    def tile(f_td: Array, row_mask_t: Array, g_td: Array, col_mask_t: Array) -> tuple[Array, Array]:
        logits = cosines(f_td, g_td) / temperature
        logits = jnp.where(row_mask_t[:, None] & col_mask_t[None, :], logits, -jnp.inf)
        logits = logits.reshape(together, side, together, side)
        return jax.nn.logsumexp(logits, axis=3), jax.nn.logsumexp(logits, axis=1)

    def row_of_tiles(col_tables: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        index, f_td, row_mask_t = inputs

        def column(_: None, block: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
            return None, tile(f_td, row_mask_t, *block)

        _, (rows, cols) = jax.lax.scan(column, None, (g_ntd, mask_nt))
        # rows: (n, together, side, together) -> for each row of the tile, a log-sum per cell
        rows = rows.reshape(cells // together, parts, together, side, together)
        rows = jax.nn.logsumexp(rows, axis=1).transpose(1, 2, 0, 3).reshape(together * side, cells)
        # cols: (n, together (cell of the rows), together, side) -> the columns' log-sums over this tile's cells
        cols = cols.transpose(1, 0, 2, 3).reshape(together, n * together * side)
        at = index // parts * together
        before = jax.lax.dynamic_slice_in_dim(col_tables, at, together)
        return jax.lax.dynamic_update_slice_in_dim(col_tables, jnp.logaddexp(before, cols), at, 0), rows

    empty = jnp.full((cells, n * together * side), -jnp.inf, jnp.float32)
    cols, rows = jax.lax.scan(row_of_tiles, empty, (jnp.arange(n), f_ntd, mask_nt))

    def untile(table: Array) -> Array:
        return table.reshape(cells, parts * side, cells)[:, :slots].reshape(b, cells)

    return untile(rows), untile(cols.T)
