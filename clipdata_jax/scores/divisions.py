"""negCLIPLoss over many divisions of the rows into batches, for the price of one pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from clipdata_jax.scores.division_sums import division_sums
from clipdata_jax.scores.log_sums import log_sum_tables
from clipdata_jax.scores.products import (
    AnyArray,
    check_mask,
    check_pairs,
    check_temperature,
    paired_cosines,
    under_auto_axes,
)


class NegClipLossStatistics(NamedTuple):
    """Statistics of each pair over K divisions; all float32, of shape (*temperatures, *sizes, b).

    Attributes:
      score: negCLIPLoss averaged over the divisions, in cosine units, at most 0; -inf for masked rows.
      standard_error: of `score` as an estimate of its mean over all batches of an unlimited pool, in cosine
        units. NaN for masked rows, and where it is not defined: one division, one batch, or cells that are
        batches.
      log_sum_text: the mean over divisions of log sum_j exp(f_i.g_j / t), how well the image matches the
        texts of its batch, in nats; -inf for masked rows.
      log_sum_image: the same of exp(f_j.g_i / t), how well the text matches the images.
    """

    score: Float[Array, "*settings b"]
    standard_error: Float[Array, "*settings b"]
    log_sum_text: Float[Array, "*settings b"]
    log_sum_image: Float[Array, "*settings b"]


def cell_log_sums(
    image_emb: Float[AnyArray, "b d"],
    text_emb: Float[AnyArray, "b d"],
    *,
    cells: int,
    temperature: float | Float[AnyArray, ""] = 0.01,
    mask: Bool[AnyArray, " b"] | None = None,
) -> tuple[Float[Array, "b cells"], Float[Array, "b cells"]]:
    """Sums the exponentials of each pair's similarities over every cell of the rows.

        row[i, c] = log sum_{j in cell c} exp(f_i.g_j / t),   col[i, c] = log sum_{j in cell c} exp(f_j.g_i / t)

    Cell c is the c-th of `cells` equal runs of rows. Any batch that is a union of cells has its log-sums in
    these tables (the normaliser of arXiv:2405.19547), so all divisions into batches cost this one pass.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d).
      cells: number of cells; it must divide b (pad the rows of a cell and mask them).
      temperature: t > 0, traced.
      mask: shape (b,), False for rows that count nowhere.

    Returns:
      row and col, each shape (b, cells), float32, in nats; -inf where a cell has no unmasked row, and in
      masked rows.

    Raises:
      ValueError: wrong shapes, `cells` does not divide b, or a Python temperature is not above 0.

    >>> import numpy as np
    >>> from clipdata_jax import cell_log_sums
    >>> images, texts = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.0, 1.0]])
    >>> row, col = cell_log_sums(images, texts, cells=2, temperature=0.1)
    >>> print(np.asarray(row).round(3))
    [[ 8.  0.]
     [ 6. 10.]]
    """
    check_pairs(image_emb, text_emb)
    check_mask(mask, image_emb.shape[0])
    check_temperature(temperature)
    _check_cells(image_emb, cells)
    return _cell_log_sums(image_emb, text_emb, temperature, mask, cells=cells)


@functools.partial(jax.jit, static_argnames="cells")
def _cell_log_sums(
    image_emb: Array, text_emb: Array, temperature: Array, mask: Array | None, *, cells: int
) -> tuple[Array, Array]:
    def tables(image_emb: Array, text_emb: Array, temperature: Array, mask: Array | None) -> tuple[Array, Array]:
        temperatures = jnp.asarray(temperature, jnp.float32)[None]
        row, col = log_sum_tables(image_emb, text_emb, mask, cells=cells, temperatures=temperatures)
        return row[0], col[0]

    return under_auto_axes(tables, image_emb, text_emb, temperature, mask)


def neg_clip_loss_divisions(
    image_emb: Float[AnyArray, "b d"],
    text_emb: Float[AnyArray, "b d"],
    batch_of_cell: Integer[AnyArray, "*sizes k cells"] | Sequence[Integer[AnyArray, "_ cells"]],
    *,
    temperature: float | Float[AnyArray, "*temperatures"] = 0.01,
    mask: Bool[AnyArray, " b"] | None = None,
) -> Float[Array, "*temperatures *sizes b"]:
    """Averages negCLIPLoss over K divisions of the rows into batches, in one pass for any K.

        s_i = f_i.g_i - t/2K sum_k (log sum_{j in B_k(i)} exp(f_i.g_j / t) + log sum_{j in B_k(i)} exp(f_j.g_i / t))

    B_k(i) is the batch of division k that holds row i: the union of the cells that `batch_of_cell[k]` gives
    the same number as row i's cell. arXiv:2405.19547, section 3, with the divisions made of whole cells.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d); row i is the caption of image i.
      batch_of_cell: shape (K, cells), any integer dtype: the batch of each cell in each division; or
        (sizes, K, cells), K divisions for each of several batch sizes; or a sequence of (K, cells), which is
        such an axis where K differs.
      temperature: t > 0, traced; or shape (temperatures,), each > 0.
      mask: shape (b,), False for rows that count nowhere; they score -inf.

    Returns:
      s, shape (b,), float32, in cosine units, at most 0. Several temperatures and several sizes, all from
      one pass over the embeddings, come as leading axes: (temperatures, sizes, b), without those not given.

    Raises:
      ValueError: wrong shapes, the cells do not divide b, or a Python temperature is not above 0.

    >>> import numpy as np
    >>> from clipdata_jax import neg_clip_loss_divisions
    >>> images = texts = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
    >>> divisions = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])  # four cells of a row, two batches, twice
    >>> print(np.asarray(neg_clip_loss_divisions(images, texts, divisions, temperature=0.5)).round(3))
    [-0.125 -0.125 -0.125 -0.125]
    """
    _check_divisions(image_emb, text_emb, batch_of_cell, temperature, mask)
    return _score(image_emb, text_emb, _as_arrays(batch_of_cell), temperature, mask)


def neg_clip_loss_statistics(
    image_emb: Float[AnyArray, "b d"],
    text_emb: Float[AnyArray, "b d"],
    batch_of_cell: Integer[AnyArray, "*sizes k cells"] | Sequence[Integer[AnyArray, "_ cells"]],
    *,
    temperature: float | Float[AnyArray, "*temperatures"] = 0.01,
    mask: Bool[AnyArray, " b"] | None = None,
) -> NegClipLossStatistics:
    """Scores as `neg_clip_loss_divisions` does, with the standard error and the two log-sums, in the same pass.

        SE_i^2 = sigma_i^2 (1/K + (1 - 1/K) / m),   sigma_i^2 = spread_i / (1 - 1/m)

    for m batches of many cells: divisions of one group share their negatives, so the variance `spread_i` of
    pair i's score over the K divisions is too small, and more divisions do not make SE vanish. A batch of n
    of the C cells always holds the row's own; the form used is exact for that, with q = (n-1) / (C-1):

        SE_i^2 = spread_i (1/K + (1 + q (n-1)) / ((n-1) (1-q)))

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d); row i is the caption of image i.
      batch_of_cell: as in `neg_clip_loss_divisions`; the standard error assumes that a division assigns the
        cells at random to batches of equal size.
      temperature: t > 0, traced; or shape (temperatures,), each > 0.
      mask: shape (b,), False for rows that count nowhere.

    Returns:
      Four float32 arrays of shape (b,), or (temperatures, sizes, b) without the axes not given.

    Raises:
      ValueError: wrong shapes, the cells do not divide b, or a Python temperature is not above 0.

    >>> import numpy as np
    >>> from clipdata_jax import neg_clip_loss_statistics
    >>> images = texts = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
    >>> divisions = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    >>> found = neg_clip_loss_statistics(images, texts, divisions, temperature=0.5)
    >>> print(np.asarray(found.standard_error).round(3))
    [0.136 0.136 0.136 0.136]
    """
    _check_divisions(image_emb, text_emb, batch_of_cell, temperature, mask)
    return _statistics(image_emb, text_emb, _as_arrays(batch_of_cell), temperature, mask)


@jax.jit
def _score(*arguments: Any) -> Array:
    return _statistics(*arguments).score  # what is not returned is not computed


@jax.jit
def _statistics(
    image_emb: Array, text_emb: Array, batch_of_cell: Array | tuple[Array, ...], temperature: Array, mask: Array | None
) -> NegClipLossStatistics:
    several = isinstance(batch_of_cell, tuple) or batch_of_cell.ndim == 3
    args = image_emb, text_emb, batch_of_cell, temperature, mask
    return under_auto_axes(_of_group, *args, rows_axis=jnp.ndim(temperature) + several)


def _of_group(
    image_emb: Array, text_emb: Array, batch_of_cell: Array | tuple[Array, ...], temperature: Array, mask: Array | None
) -> NegClipLossStatistics:
    several = batch_of_cell if isinstance(batch_of_cell, tuple) else (batch_of_cell,)
    sizes = (len(several),) if isinstance(batch_of_cell, tuple) else batch_of_cell.shape[:-2]
    cells = several[0].shape[-1]
    temperature = jnp.asarray(temperature, jnp.float32)
    temperatures = temperature.reshape(-1)
    tables = log_sum_tables(image_emb, text_emb, mask, cells=cells, temperatures=temperatures)
    # A cell at a time: XLA makes a product of it, with float32 copies of what it takes.
    pairs = [None if x is None else x.reshape(cells, -1, *x.shape[1:]) for x in (image_emb, text_emb, mask)]
    cos_b = jax.lax.map(lambda pair: paired_cosines(*pair), pairs).reshape(-1)

    def at(setting: tuple[Array, Array, Array]) -> NegClipLossStatistics:
        t, row_bc, col_bc = setting

        def of_size(batch_kc: Array) -> NegClipLossStatistics:
            sums = division_sums(row_bc, col_bc, batch_kc)
            sum_b, error_b = sums.row + sums.col, t / 2 * jnp.sqrt(sums.variance)
            if mask is None:
                return NegClipLossStatistics(cos_b - t / 2 * sum_b, error_b, sums.row, sums.col)
            # Masked twice: 0 * inf would reach the derivative by the temperature.
            score_b = jnp.where(mask, cos_b - t / 2 * jnp.where(mask, sum_b, 0), -jnp.inf)
            error_b = jnp.where(mask, error_b, jnp.nan)
            return NegClipLossStatistics(score_b, error_b, sums.row, sums.col)

        found = [jax.lax.map(of_size, one.reshape(-1, *one.shape[-2:])) for one in several]
        return found[0] if len(found) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)

    statistics = jax.lax.map(at, (temperatures, *tables))
    shape = (*temperature.shape, *sizes, len(image_emb))
    return NegClipLossStatistics(*(array.reshape(shape) for array in statistics))


def _as_arrays(batch_of_cell: AnyArray | Sequence[AnyArray]) -> Array | tuple[Array, ...]:
    listed = isinstance(batch_of_cell, Sequence)
    return tuple(map(jnp.asarray, batch_of_cell)) if listed else jnp.asarray(batch_of_cell)


def _check_divisions(
    image_emb: AnyArray,
    text_emb: AnyArray,
    batch_of_cell: AnyArray | Sequence[AnyArray],
    temperature: float | AnyArray,
    mask: AnyArray | None,
) -> None:
    check_pairs(image_emb, text_emb)
    check_mask(mask, image_emb.shape[0])
    check_temperature(temperature)
    if jnp.ndim(temperature) > 1 or 0 in jnp.shape(temperature):
        raise ValueError(f"temperature is of shape {jnp.shape(temperature)}, expected () or (temperatures,)")
    several: list[Any] = [batch_of_cell]
    axes: tuple[int, ...] = (2, 3)
    expected = "int (K, cells) or (sizes, K, cells)"
    if isinstance(batch_of_cell, Sequence):
        several, axes, expected = list(batch_of_cell), (2,), "a sequence of int (K, cells)"
    if not several:
        raise ValueError(f"batch_of_cell is empty, expected {expected}")
    for one in several:
        shape = one.shape
        if len(shape) not in axes or 0 in shape or not jnp.issubdtype(one.dtype, jnp.integer):
            raise ValueError(f"batch_of_cell is {one.dtype}{list(shape)}, expected {expected}")
        if shape[-1] != several[0].shape[-1]:
            raise ValueError(f"batch_of_cell has {several[0].shape[-1]} and {shape[-1]} cells, expected one number")
    _check_cells(image_emb, several[0].shape[-1])


def _check_cells(image_emb: AnyArray, cells: int) -> None:
    if cells < 1 or image_emb.shape[0] % cells:
        raise ValueError(f"{image_emb.shape[0]} rows don't divide into {cells} cells: pad each cell and mask")
