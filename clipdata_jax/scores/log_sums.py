"""Log-sums of the exponentials of a similarity matrix over cells of its rows and columns, tile by tile."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clipdata_jax.scores.products import cosines, zero_like

_TILE = 2048  # rows a side, 16 MiB of float32; from the group's shape alone, since other tiles give other bits

# Between these a sum of exponentials is right to float32's rounding: what underflows is below 2^-126 each,
# nothing beside 1e-27 for all of a tile's terms together.
SMALLEST, _LARGEST = 1e-27, 1e38
# In place of a log-sum that left that range: far above every other one, and finite, so that no derivative is NaN.
_OUT_OF_RANGE = 1e30

# How a tile's sums stay in range: by one shift for all of them, whose result is looked at ("checked": a tile that left
# the range is computed again; "unchecked": its sums are marked), or by each cell's own maximum ("careful").
_Form = Literal["checked", "unchecked", "careful"]


def log_sum_tables(
    f_bd: Float[Array, "b d"],
    g_bd: Float[Array, "b d"],
    mask_b: Bool[Array, " b"] | None,
    text_mask_b: Bool[Array, " b"] | None = None,
    *,
    cells: int,
    temperatures: Float[Array, " t"],
) -> tuple[Float[Array, "t b cells"], Float[Array, "t b cells"]]:
    """The two tables of `cell_log_sums` for each temperature, from one pass; `cells` divides b.

    The mask is the images' and, unless the texts are of other pairs and have one of their own, the texts' too.

    Anonymous memory: the tables twice and some tiles of 2,048 x 2,048 float32; in a backward pass too, which
    computes the tiles again.
    """
    mask_b = jnp.ones(len(f_bd), bool) if mask_b is None else mask_b
    rows = f_bd, g_bd, mask_b, mask_b if text_mask_b is None else text_mask_b, temperatures

    on_gpu = functools.partial(_guarded, cells)
    on_others = functools.partial(_tables, "checked", cells)
    return jax.lax.platform_dependent(*rows, cuda=on_gpu, rocm=on_gpu, default=on_others)


def _guarded(cells: int, *rows: Array) -> tuple[Array, Array]:
    """The tables with one branch for all tiles, not one a tile: on a GPU a branch waits for the host."""
    found = _tables("unchecked", cells, *rows)
    fits = jnp.maximum(found[0].max(), found[1].max()) < _OUT_OF_RANGE / 2
    return jax.lax.cond(fits, lambda: found, lambda: _tables("careful", cells, *rows))


def _tables(
    form: _Form, cells: int, f_bd: Array, g_bd: Array, mask_b: Array, text_mask_b: Array, temperatures: Array
) -> tuple[Array, Array]:
    tiling = _Tiling.of(len(f_bd), cells)
    f_ntd, g_ntd, mask_nt, text_mask_nt = map(tiling.cut, (f_bd, g_bd, mask_b, text_mask_b))
    middle_nn = jnp.einsum("id,jd->ij", _mean_rows(f_ntd, mask_nt), _mean_rows(g_ntd, text_mask_nt))
    temps, k = len(temperatures), tiling.together

    def row_of_tiles(col_tables: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        index, *row = inputs
        rows, cols = _against_all(form, k, row, (g_ntd, text_mask_nt), temperatures)
        # rows: (tiles, temps, rows of the tile, its k cells of columns); the parts of a cell are joined.
        rows = log_sum_exp(rows.reshape(cells // k, tiling.parts, temps, -1, k), axis=1)
        # cols: (tiles, temps, its k cells of rows, columns of the tile)
        cols = cols.transpose(1, 2, 0, 3).reshape(temps, k, -1)
        first = index // tiling.parts * k
        before = jax.lax.dynamic_slice_in_dim(col_tables, first, k, axis=1)
        cols = log_sum_exp(jnp.stack([before, cols]), axis=0)
        col_tables = jax.lax.dynamic_update_slice_in_dim(col_tables, cols, first, axis=1)
        return col_tables, rows.transpose(1, 2, 0, 3).reshape(temps, -1, cells)

    start = zero_like(f_bd, g_bd, mask_nt, text_mask_nt, temperatures) - jnp.inf
    empty = jnp.broadcast_to(start, (temps, cells, mask_nt.size))
    inputs = jnp.arange(len(f_ntd)), f_ntd, mask_nt, jax.lax.stop_gradient(middle_nn)
    cols, rows = jax.lax.scan(row_of_tiles, empty, inputs)
    return tiling.join(rows.swapaxes(0, 1).reshape(temps, -1, cells)), tiling.join(cols.swapaxes(1, 2))


def _against_all(
    form: _Form, k: int, row: list[Array], columns: tuple[Array, Array], temperatures: Array
) -> tuple[Array, Array]:
    """The log-sums of one row of tiles: (tiles, temps, t, k) of its rows, (tiles, temps, k, t) of the columns."""
    f_td, row_mask_t, middle_n = row
    f_td = jnp.where(row_mask_t[:, None], f_td, 0)  # a masked row may hold NaN

    @jax.checkpoint
    def column(_: None, block: tuple[Array, ...]) -> tuple[None, tuple[Array, Array]]:
        g_td, col_mask_t, middle = block
        cos_tt = cosines(f_td, jnp.where(col_mask_t[:, None], g_td, 0))

        def at(t: Array) -> tuple[Array, Array]:
            return _tile_log_sums(form, k, cos_tt / t, middle / t, row_mask_t, col_mask_t)

        return None, jax.lax.map(at, temperatures)

    sums: tuple[Array, Array] = jax.lax.scan(column, None, (*columns, middle_n))[1]
    return sums


def log_sum_exp(x: Array, *, axis: int) -> Array:
    """`logsumexp` whose derivative is 0 where all is -inf; jax's own, and its `logaddexp`, give NaN."""
    some = (x > -jnp.inf).any(axis=axis, keepdims=True)
    return jnp.where(some.squeeze(axis), jax.nn.logsumexp(jnp.where(some, x, 0), axis=axis), -jnp.inf)


class _Tiling(NamedTuple):
    """`cells` cells of `slots` rows, each cut into `parts` parts of `side` rows, `together` cells a tile."""

    cells: int
    slots: int
    parts: int
    side: int
    together: int

    @classmethod
    def of(cls, rows: int, cells: int) -> _Tiling:
        slots = rows // cells
        parts = -(-slots // _TILE)  # several tiles a cell, or several cells a tile
        fitting = [k for k in range(1, cells + 1) if cells % k == 0 and k * slots <= _TILE]
        return cls(cells, slots, parts, -(-slots // parts), max(fitting, default=1))

    def cut(self, array: Array) -> Array:
        """(b, ...) to (tiles, rows of a tile, ...), zeros where a part lacks a row."""
        by_cell = array.reshape(self.cells, self.slots, *array.shape[1:])
        padding = [(0, 0), (0, self.parts * self.side - self.slots), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(by_cell, padding).reshape(-1, self.together * self.side, *array.shape[1:])

    def join(self, table: Array) -> Array:
        """(temps, rows of all tiles, cells) to (temps, b, cells)."""
        padded = table.reshape(len(table), self.cells, self.parts * self.side, self.cells)
        return padded[:, :, : self.slots].reshape(len(table), -1, self.cells)


def _mean_rows(emb_ntd: Array, mask_nt: Array) -> Array:
    """The mean of each tile's unmasked rows, in float32; tile by tile, so that no float32 copy is kept."""

    def mean(tile: tuple[Array, Array]) -> Array:
        emb_td, mask_t = tile
        total_d = jnp.where(mask_t[:, None], emb_td, 0).astype(jnp.float32).sum(axis=0)
        return total_d / jnp.maximum(mask_t.sum(), 1)

    return jax.lax.map(mean, (emb_ntd, mask_nt))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _tile_log_sums(
    form: _Form, k: int, logits_tt: Array, middle: Array, row_mask_t: Array, col_mask_t: Array
) -> tuple[Array, Array]:
    """For each row its log-sums over k cells of the columns (t, k), and the transposed (k, t)."""
    masked_tt = jnp.where(row_mask_t[:, None] & col_mask_t[None, :], logits_tt, -jnp.inf)

    def careful() -> tuple[Array, Array]:
        by_cell = masked_tt.reshape(k, -1, k, masked_tt.shape[1] // k)
        rows = jax.nn.logsumexp(by_cell, axis=3).reshape(-1, k)
        return rows, jax.nn.logsumexp(by_cell, axis=1).reshape(k, -1)

    if form == "careful":
        return careful()
    # One exponential serves rows and columns where one shift suits all: finding each cell's own maximum takes
    # longer than to see afterwards that no sum left float32's range.
    exp_tt = jnp.exp(masked_tt - middle)
    by_cell = exp_tt.reshape(k, -1, k, exp_tt.shape[1] // k)
    rows, cols = by_cell.sum(axis=3).reshape(-1, k), by_cell.sum(axis=1).reshape(k, -1)
    rows_fit = _in_range(rows, row_mask_t, col_mask_t.reshape(k, -1))
    cols_fit = _in_range(cols.T, col_mask_t, row_mask_t.reshape(k, -1)).T
    if form == "unchecked":
        return (
            jnp.where(rows_fit, jnp.log(rows) + middle, _OUT_OF_RANGE),
            jnp.where(cols_fit, jnp.log(cols) + middle, _OUT_OF_RANGE),
        )
    fits = rows_fit.all() & cols_fit.all()
    return jax.lax.cond(fits, lambda: (jnp.log(rows) + middle, jnp.log(cols) + middle), careful)


def _in_range(sums_tk: Array, mask_t: Array, cells_ks: Array) -> Array:
    """For each sum, whether it lies in the range where it is right, or has no term."""
    some = mask_t[:, None] & cells_ks.any(axis=1)
    return ~some | ((sums_tk > SMALLEST) & (sums_tk < _LARGEST))


@_tile_log_sums.defjvp
def _tile_log_sums_jvp(
    form: _Form, k: int, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The derivative of a log-sum is the softmax: written out, it never meets an exponential out of range."""
    logits_tt, _, row_mask_t, col_mask_t = primals
    rows, cols = _tile_log_sums(form, k, *primals)
    pair = row_mask_t[:, None] & col_mask_t[None, :]
    side = len(row_mask_t) // k

    def softmax(log_sums_tt: Array) -> Array:
        return jnp.where(pair, jnp.exp(jnp.where(pair, logits_tt - log_sums_tt, 0)), 0) * tangents[0]

    by_row = softmax(jnp.repeat(rows, side, axis=1)).reshape(-1, k, side).sum(axis=2)
    by_col = softmax(jnp.repeat(cols, side, axis=0)).reshape(k, side, -1).sum(axis=1)
    return (rows, cols), (by_row, by_col)
