"""Near-duplicates: the pairs of rows whose cosine reaches a threshold, among all pairs, which are never kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clipdata_jax.scores.products import AnyArray, check_rows, cosines, under_auto_axes, zero_like
from clipdata_jax.scores.row_blocks import Blocks

_MOST = 1 << 30
_FEW = 64  # rows of a tile that are looked at one by one


class NearPairs(NamedTuple):
    """Pairs of near rows, in buffers of a fixed size.

    Attributes:
      row: shape (size,), int32: the first row of each pair; -1 beyond the last pair.
      other: shape (size,), int32: the second, of the targets where there are any; -1 beyond the last pair.
      cosine: shape (size,), float32; 0 beyond the last pair.
      total: int32: the number of pairs, exact up to 2^30; beyond the size, only the first `size` are listed.
    """

    row: Int[Array, " size"]
    other: Int[Array, " size"]
    cosine: Float[Array, " size"]
    total: Int[Array, ""]


class FoundPairs(NamedTuple):
    """The near pairs of a search, and how near each row's nearest other row is; -inf without any.

    Attributes:
      pairs: those that reach the bound.
      row: shape (b,), float32: each row's largest cosine with the rows that it is compared with.
      other: shape (n,), float32: likewise of the other rows.
    """

    pairs: NearPairs
    row: Float[Array, " b"]
    other: Float[Array, " n"]


class Tiling(NamedTuple):
    """The tiles of a search, in numbers that may be traced.

    Attributes:
      row_blocks: blocks of rows to search, from the first.
      other_blocks: blocks of other rows, likewise.
      shift: row i is compared with the other rows j of which j + shift > i.
    """

    row_blocks: int | Int[AnyArray, ""]
    other_blocks: int | Int[AnyArray, ""]
    shift: int | Int[AnyArray, ""]


def near_duplicates(
    image_emb: Float[AnyArray, "b d"],
    target_emb: Float[AnyArray, "n d"] | None = None,
    *,
    threshold: float | Float[AnyArray, ""],
    size: int,
) -> NearPairs:
    """Lists the pairs of rows that are near-duplicates.

        {(i, j) : i < j, f_i . f_j >= threshold}   or, with targets t,   {(i, j) : f_i . t_j >= threshold}

    The criterion of SemDeDup, Abbas et al. 2023, arXiv:2303.09540, section 3, for all pairs. The cosines are computed
    tile by tile and nothing of size b x n is kept; without targets, only the tiles above the diagonal are computed.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      target_emb: t, unit-norm rows, shape (n, d), n >= 1; default: the pairs among the rows themselves.
      threshold: the least cosine; traced.
      size: room for that many pairs; static. If `total` exceeds it, call again with more.

    Returns:
      A `NearPairs`. A row that holds NaN is in no pair. Pairs within float32's rounding (about 1e-6) of the threshold
      may be on either side.

    Raises:
      ValueError: wrong shapes, no rows, or a size below 1.

    >>> import numpy as np
    >>> from clipdata_jax import near_duplicates
    >>> images = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [1.0, 0.0]])
    >>> row, other, cosine, total = near_duplicates(images, threshold=0.7, size=4)
    >>> print(total, row, other, cosine)
    3 [ 0  0  2 -1] [ 2  3  3 -1] [0.8 1.  0.8 0. ]
    """
    _check(image_emb, target_emb, size)
    return _near_duplicates(image_emb, target_emb, threshold, size=size)


def _check(image_emb: AnyArray, target_emb: AnyArray | None, size: int) -> None:
    for name, emb in (("image_emb", image_emb), ("target_emb", target_emb)):
        if emb is not None:
            check_rows(name, emb)
            if not emb.shape[0]:
                raise ValueError(f"{name} is empty, expected at least one row")
    if target_emb is not None and image_emb.shape[1] != target_emb.shape[1]:
        raise ValueError(f"dimensions differ: images {image_emb.shape[1]}, target {target_emb.shape[1]}")
    if size < 1:
        raise ValueError(f"size is {size}, expected at least 1")


@functools.partial(jax.jit, static_argnames="size")
def _near_duplicates(image_emb: Array, target_emb: Array | None, threshold: float | Array, *, size: int) -> NearPairs:
    def search(image_emb: Array, others: Array) -> NearPairs:
        rows, columns = Blocks.of(len(image_emb)), Blocks.of(len(others))
        shift = 0 if target_emb is None else rows.rows
        tiling = Tiling(rows.count, columns.count, shift)
        f_nd, group_n = _pad(image_emb, rows, 0)
        g_nd, group_m = _pad(others, columns, shift)
        sides = rows.side, columns.side
        return find_pairs([f_nd], [g_nd], group_n, group_m, threshold, tiling, sides=sides, size=size).pairs

    others = image_emb if target_emb is None else target_emb
    return under_auto_axes(search, image_emb, others, rows_axis=None)


def _pad(emb: Array, blocks: Blocks, first_group: int) -> tuple[Array, Array]:
    """Whole blocks, and a group of its own for each row, none for those added and those that hold NaN."""
    missing = blocks.count * blocks.side - blocks.rows
    finite = jnp.isfinite(emb).all(axis=1)
    groups = jnp.where(finite, first_group + jnp.arange(blocks.rows), -1)
    emb = jnp.where(finite[:, None], emb, 0)
    return jnp.pad(emb, [(0, missing), (0, 0)]), jnp.pad(groups, (0, missing), constant_values=-1)


def find_pairs(
    rows: Sequence[Array],
    others: Sequence[Array],
    row_group: Int[Array, " b"],
    other_group: Int[Array, " n"],
    bound: float | Array,
    tiling: Tiling,
    *,
    sides: tuple[int, int],
    size: int,
    scales: tuple[Sequence[Array], Sequence[Array]] | None = None,
) -> FoundPairs:
    """Finds the pairs (i, j) with j + shift > i of which every cosine is at least the bound; not jitted.

    Args:
      rows: embeddings of the rows, one array for each kind of embedding (images, captions), shape (b, d); finite.
      others: likewise of the rows that they are compared with, shape (n, d).
      row_group: shape (b,): pairs of one group are left out, as are rows of a negative group. Where there is no
        shift that tells rows apart, the two groups' numbers must differ.
      other_group: shape (n,).
      bound: the least cosine.
      tiling: the tiles to compute.
      sides: rows and other rows of a tile; static, divisors of b and n.
      size: room for pairs; static.
      scales: factors that make cosines of the inner products, of rows and of others, for each kind shape (b,) and
        (n,); None for unit rows.

    Returns:
      The pairs, tile by tile, row by row; and the nearest of the rows of each, in its own group or not.
    """
    side_r, side_c = sides
    zero = zero_like(*rows, *others, row_group, other_group)
    none = [jnp.broadcast_to(zero - jnp.inf, group.shape) for group in (row_group, other_group)]
    start = FoundPairs(NearPairs(*_empty(zero, size)), *none)

    def scales_of(side: int, first: Array, count: int) -> list[Array | None]:
        if scales is None:
            return [None] * len(rows)
        return [jax.lax.dynamic_slice_in_dim(scale, first, count) for scale in scales[side]]

    def of_rows(r: Array, found: FoundPairs) -> FoundPairs:
        first_row = r * side_r
        f = [jax.lax.dynamic_slice_in_dim(emb, first_row, side_r) for emb in rows]
        group_r = jax.lax.dynamic_slice_in_dim(row_group, first_row, side_r)

        def of_tile(c: Array, found: FoundPairs) -> FoundPairs:
            first_other = c * side_c
            g = [jax.lax.dynamic_slice_in_dim(emb, first_other, side_c) for emb in others]
            group_c = jax.lax.dynamic_slice_in_dim(other_group, first_other, side_c)
            tile = scales_of(0, first_row, side_r), scales_of(1, first_other, side_c)
            cos_rc = functools.reduce(jnp.minimum, map(_scaled_cosines, f, g, *tile))
            row_r, other_c = first_row + jnp.arange(side_r), first_other + jnp.arange(side_c)

            def largest(cos_rc: Array) -> tuple[Array, Array]:
                return cos_rc.max(axis=1), cos_rc.max(axis=0)

            def largest_that_count() -> tuple[Array, Array]:
                place_r = jnp.where(group_r >= 0, row_r, _MOST)
                place_c = jnp.where(group_c >= 0, other_c + tiling.shift, -1)
                return largest(jnp.where(place_c > place_r[:, None], cos_rc, -jnp.inf))

            # Few tiles lie on the diagonal, where a row would meet itself, or lack a row.
            on_diagonal = first_other + tiling.shift <= first_row + side_r - 1
            lacks_rows = (group_r < 0).any() | (group_c < 0).any()
            nearest_r, nearest_c = jax.lax.cond(on_diagonal | lacks_rows, largest_that_count, lambda: largest(cos_rc))
            near_r = nearest_r >= bound
            # In a large group every row is near others, most of them of its own.
            near_r &= jax.lax.cond(
                near_r.sum() > _FEW,
                lambda: ((cos_rc >= bound) & (group_r[:, None] != group_c)).any(axis=1),
                lambda: near_r,
            )

            def add(at: Array, found: NearPairs) -> NearPairs:
                r = at_r[at]
                cos_c = jax.lax.dynamic_index_in_dim(cos_rc, r, keepdims=False)
                near_c = (cos_c >= bound) & (other_c + tiling.shift > row_r[r])
                near_c &= (group_c != group_r[r]) & (group_c >= 0)
                return _append(found, row_r[r], other_c, cos_c, near_c)

            # Rows with a pair are few: they alone are looked at, one by one.
            at_r = jnp.nonzero(near_r, size=side_r, fill_value=0)[0]
            return FoundPairs(
                jax.lax.fori_loop(0, near_r.sum(), add, found.pairs),
                _raise(found.row, nearest_r, first_row),
                _raise(found.other, nearest_c, first_other),
            )

        first_tile = jnp.maximum(0, first_row + 1 - tiling.shift) // side_c
        return jax.lax.fori_loop(first_tile, tiling.other_blocks, of_tile, found)

    return jax.lax.fori_loop(0, tiling.row_blocks, of_rows, start)


def _scaled_cosines(f_rd: Array, g_cd: Array, scale_r: Array | None, scale_c: Array | None) -> Array:
    """The inner products of rows that are scaled."""
    if scale_r is None or scale_c is None:
        return cosines(f_rd, g_cd)

    def scale_products(f_rd: Array, g_cd: Array, scale_r: Array, scale_c: Array) -> Array:
        return cosines(f_rd, g_cd) * scale_r[:, None] * scale_c

    def scale_rows(f_rd: Array, g_cd: Array, scale_r: Array, scale_c: Array) -> Array:
        return cosines(f_rd * scale_r[:, None], g_cd * scale_c[:, None])

    # A GPU multiplies float16 as it is; elsewhere rows are converted to float32 anyway, and fewer than products.
    given = f_rd, g_cd, scale_r, scale_c
    return jax.lax.platform_dependent(*given, cuda=scale_products, rocm=scale_products, default=scale_rows)


def _raise(largest: Array, values: Array, first: Array) -> Array:
    """Raises some consecutive numbers, from the first on, to others that are larger."""
    before = jax.lax.dynamic_slice_in_dim(largest, first, len(values))
    return jax.lax.dynamic_update_slice_in_dim(largest, jnp.maximum(before, values), first, axis=0)


def _empty(zero: Array, size: int) -> tuple[Array, Array, Array, Array]:
    none = jnp.broadcast_to(zero.astype(jnp.int32) - 1, (size,))
    return none, none, jnp.broadcast_to(zero, (size,)), zero.astype(jnp.int32)


def _append(found: NearPairs, row: Array, other_c: Array, cos_c: Array, near_c: Array) -> NearPairs:
    """Adds a row's pairs; those beyond the buffers are counted only."""
    size = len(found.row)
    at_c = jnp.where(near_c, found.total + jnp.cumsum(near_c) - 1, size)
    # A count beyond int32 would come around to the buffers' begin.
    total = jnp.where(found.total < _MOST, found.total + near_c.sum(), found.total)
    return NearPairs(
        found.row.at[at_c].set(row, mode="drop"),
        found.other.at[at_c].set(other_c, mode="drop"),
        found.cosine.at[at_c].set(cos_c, mode="drop"),
        total,
    )
