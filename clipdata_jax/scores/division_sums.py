"""Log-sums of batches made of whole cells: means over divisions and how they spread."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clipdata_jax.scores.log_sums import SMALLEST, log_sum_exp


class DivisionSums(NamedTuple):
    """Log-sums of each row over K divisions, in nats.

    Attributes:
      row: mean over divisions of log sum_{j in B_k(i)} exp(f_i.g_j / t), nats.
      col: the same of exp(f_j.g_i / t).
      variance: of the mean of row + col, nats^2; NaN where it is not defined.
    """

    row: Float[Array, " b"]
    col: Float[Array, " b"]
    variance: Float[Array, " b"]


def division_sums(
    row_bc: Float[Array, "b cells"], col_bc: Float[Array, "b cells"], batch_kc: Int[Array, "k cells"]
) -> DivisionSums:
    """Sums the cells of each row's batch in every division, a cell of rows at a time."""
    cells = batch_kc.shape[1]

    def of_cell(inputs: tuple[Array, Array, Array]) -> DivisionSums:
        row_sc, col_sc, own = inputs
        together_kc = batch_kc == batch_kc[:, own][:, None]
        row_sk, col_sk = _sum_cells(row_sc, together_kc), _sum_cells(col_sc, together_kc)
        return DivisionSums(row_sk.mean(axis=1), col_sk.mean(axis=1), _variance(row_sk + col_sk, together_kc))

    by_cell = [table.reshape(cells, -1, cells) for table in (row_bc, col_bc)]
    sums = jax.lax.map(of_cell, (*by_cell, jnp.arange(cells)))
    return DivisionSums(*(array.reshape(-1) for array in sums))


def _sum_cells(table_sc: Array, together_kc: Array) -> Array:
    """Each row's logsumexp over the cells that are together: (rows of a cell, K)."""
    most_s = jax.lax.stop_gradient(table_sc.max(axis=1))
    empty_s = most_s == -jnp.inf
    most_s = jnp.where(empty_s, 0, most_s)
    exp_sc = jnp.exp(table_sc - most_s[:, None])
    sum_sk = jnp.einsum("sc,kc->sk", exp_sc, together_kc.astype(jnp.float32), precision="highest")
    # The cell that holds the row's largest term may lie in another batch, whose terms would then underflow.
    fits = jnp.all((sum_sk > SMALLEST) | empty_s[:, None])

    def careful(_: None) -> Array:
        return jax.lax.map(lambda c: log_sum_exp(jnp.where(c, table_sc, -jnp.inf), axis=1), together_kc).T

    def quick(_: None) -> Array:
        positive = sum_sk > 0  # log 0 must not reach a derivative
        return jnp.where(positive, jnp.log(jnp.where(positive, sum_sk, 1)) + most_s[:, None], -jnp.inf)

    return jax.lax.cond(fits, quick, careful, None)


def _variance(sum_sk: Array, together_kc: Array) -> Array:
    """The variance of the mean over divisions about the mean over all batches of an unlimited pool.

    Divisions of a group draw from the same C cells and always hold the row's own. With n cells a batch,
    v a cell's share in a batch's variance and q = (n - 1) / (C - 1) the chance that another cell is in the
    row's batch, one division spreads about the group's mean by v (n - 1) (1 - q), and the group's mean
    about the pool's by v (1 + q (n - 1)). Many cells make it sigma^2 (1/K + (1 - 1/K) / m).
    """
    divisions, cells = together_kc.shape
    spread_s = jnp.var(sum_sk, axis=1) * divisions / max(divisions - 1, 1)
    met = together_kc.sum() - divisions  # an int, so that none and all compare exactly
    known = (divisions > 1) & (met > 0) & (met < divisions * (cells - 1))
    others = met / divisions
    q = others / max(cells - 1, 1)
    shared = (1 + q * others) / jnp.where(known, others * (1 - q), 1)
    return jnp.where(known, spread_s * (shared + 1 / divisions), jnp.nan)
