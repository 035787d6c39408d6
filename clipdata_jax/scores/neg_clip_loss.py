"""negCLIPLoss (also s-CLIPLoss): a pair's cosine less how well its halves match the rest of the batch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from clipdata_jax.scores.log_sums import log_sum_tables
from clipdata_jax.scores.products import check_mask, check_pairs, check_temperature, cosines, paired_cosines


def neg_clip_loss(
    image_emb: Float[Array, "b d"],
    text_emb: Float[Array, "b d"],
    *,
    temperature: float | Float[Array, ""] = 0.01,
    mask: Bool[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """Scores each pair by its cosine, less how well it matches the rest of the batch.

        s_i = f_i.g_i - t/2 (log sum_j exp(f_i.g_j / t) + log sum_j exp(f_j.g_i / t))

    The negCLIPLoss of Wang et al. 2024, arXiv:2405.19547 (s-CLIPLoss in its later versions); the sums are
    over the whole batch, j = i included. The b x b matrix is never kept.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d); row i is the caption of picture i.
      temperature: t > 0, the teacher's 1/exp(logit_scale); traced, so it may be learnt.
      mask: shape (b,), False for rows that are padding: they count nowhere and score -inf.

    Returns:
      s, shape (b,), float32, in cosine units (not nats), at most 0. Higher is a better match.

    Raises:
      ValueError: the shapes differ or are not (b, d), or a Python temperature is not above 0.
    """
    check_pairs(image_emb, text_emb)
    check_mask(mask, image_emb.shape[0])
    check_temperature(temperature)
    return _neg_clip_loss(image_emb, text_emb, temperature, mask)


@jax.jit
def _neg_clip_loss(image_emb: Array, text_emb: Array, temperature: Array, mask: Array | None) -> Array:
    row_bc, col_bc = log_sum_tables(image_emb, text_emb, mask, cells=1, temperature=temperature)
    score_b = paired_cosines(image_emb, text_emb) - temperature / 2 * (row_bc[:, 0] + col_bc[:, 0])
    return score_b if mask is None else jnp.where(mask, score_b, -jnp.inf)


def cell_log_sums(
    image_emb: Float[Array, "b d"],
    text_emb: Float[Array, "b d"],
    *,
    cells: int,
    temperature: float | Float[Array, ""] = 0.01,
    mask: Bool[Array, " b"] | None = None,
) -> tuple[Float[Array, "b cells"], Float[Array, "b cells"]]:
    """Sums the exponentials of each pair's similarities over every cell of the rows.

        row[i, c] = log sum_{j in cell c} exp(f_i.g_j / t),   col[i, c] = log sum_{j in cell c} exp(f_j.g_i / t)

    Cell c is the c-th of `cells` equal runs of rows. Any batch that is a union of cells has its log-sums in
    these tables (the normaliser of arXiv:2405.19547), so all divisions into batches cost this one pass.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d).
      cells: how many cells; it must divide b (pad the rows of a cell and mask them).
      temperature: t > 0, traced.
      mask: shape (b,), False for rows that count nowhere.

    Returns:
      row and col, each shape (b, cells), float32, in nats; -inf where a cell has no unmasked row.

    Raises:
      ValueError: wrong shapes, `cells` does not divide b, or a Python temperature is not above 0.
    """
    check_pairs(image_emb, text_emb)
    check_mask(mask, image_emb.shape[0])
    check_temperature(temperature)
    if cells < 1 or image_emb.shape[0] % cells:
        raise ValueError(f"{image_emb.shape[0]} rows don't divide into {cells} cells: pad each cell and mask")
    return _cell_log_sums(image_emb, text_emb, temperature, mask, cells=cells)


@functools.partial(jax.jit, static_argnames="cells")
def _cell_log_sums(
    image_emb: Array, text_emb: Array, temperature: Array, mask: Array | None, *, cells: int
) -> tuple[Array, Array]:
    return log_sum_tables(image_emb, text_emb, mask, cells=cells, temperature=temperature)


def neg_clip_loss_divisions(
    image_emb: Float[Array, "b d"],
    text_emb: Float[Array, "b d"],
    batch_of_cell: Int[Array, "k cells"],
    *,
    temperature: float | Float[Array, ""] = 0.01,
    mask: Bool[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """Averages negCLIPLoss over K divisions of the rows into batches, in one pass for any K.

        s_i = f_i.g_i - t/2K sum_k (log sum_{j in B_k(i)} exp(f_i.g_j / t) + log sum_{j in B_k(i)} exp(f_j.g_i / t))

    B_k(i) is the batch of division k that holds row i: the union of the cells that `batch_of_cell[k]` gives
    the same number as row i's cell. arXiv:2405.19547, section 3, with the divisions made of whole cells.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d); row i is the caption of picture i.
      batch_of_cell: shape (K, cells), any integer dtype: the batch of each cell in each division.
      temperature: t > 0, traced.
      mask: shape (b,), False for rows that count nowhere; they score -inf.

    Returns:
      s, shape (b,), float32, in cosine units, at most 0.

    Raises:
      ValueError: wrong shapes, the cells do not divide b, or a Python temperature is not above 0.
    """
    check_pairs(image_emb, text_emb)
    check_mask(mask, image_emb.shape[0])
    check_temperature(temperature)
    if (
        batch_of_cell.ndim != 2
        or 0 in batch_of_cell.shape
        or not jnp.issubdtype(batch_of_cell.dtype, jnp.integer)
    ):
        raise ValueError(
            f"batch_of_cell is {batch_of_cell.dtype}{list(batch_of_cell.shape)}, expected int (K, cells)"
        )
    if image_emb.shape[0] % batch_of_cell.shape[1]:
        cells = batch_of_cell.shape[1]
        raise ValueError(f"{image_emb.shape[0]} rows don't divide into {cells} cells: pad each cell and mask")
    return _neg_clip_loss_divisions(image_emb, text_emb, batch_of_cell, temperature, mask)


@jax.jit
def _neg_clip_loss_divisions(
    image_emb: Array, text_emb: Array, batch_of_cell: Array, temperature: Array, mask: Array | None
) -> Array:
    cells = batch_of_cell.shape[1]
    tables = log_sum_tables(image_emb, text_emb, mask, cells=cells, temperature=temperature)
    by_cell = [
        table.reshape(cells, -1, cells) for table in tables
    ]  # (cell of the row, row in it, cell summed)

    def add(total: Array, batch_c: Array) -> tuple[Array, None]:
        together = (batch_c[:, None] == batch_c[None, :])[:, None, :]
        sums = [jax.nn.logsumexp(table, axis=2, where=together) for table in by_cell]
        return total + (sums[0] + sums[1]).reshape(-1), None

    total_b, _ = jax.lax.scan(add, jnp.zeros(image_emb.shape[0], jnp.float32), batch_of_cell)
    score_b = paired_cosines(image_emb, text_emb) - temperature / 2 * total_b / batch_of_cell.shape[0]
    return score_b if mask is None else jnp.where(mask, score_b, -jnp.inf)


def neg_clip_loss_sharded(
    image_emb: Float[Array, "b d"],
    text_emb: Float[Array, "b d"],
    *,
    mesh: Mesh,
    temperature: float | Float[Array, ""] = 0.01,
    mask: Bool[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """`neg_clip_loss` of one batch whose rows are sharded over the mesh axis "data".

    Blocks of texts travel once round the ring of devices with their column sums: each of the n devices
    keeps (b/n)^2 floats at a time, none ever b x b.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      text_emb: g, unit-norm rows, shape (b, d); row i is the caption of picture i.
      mesh: a mesh with an axis "data", Auto or Explicit, whose size divides b.
      temperature: t > 0, traced.
      mask: shape (b,), False for rows that are padding: they count nowhere and score -inf.

    Returns:
      s, shape (b,), float32, sharded over "data".

    Raises:
      ValueError: the shapes differ, the rows don't divide over the devices, or a bad Python temperature.
    """
    check_pairs(image_emb, text_emb)
    check_mask(mask, image_emb.shape[0])
    check_temperature(temperature)
    if image_emb.shape[0] % mesh.shape["data"]:
        raise ValueError(
            f"{image_emb.shape[0]} rows don't divide over {mesh.shape['data']} devices: pad and mask"
        )
    if mask is None:
        mask = jnp.ones(image_emb.shape[0], bool)
    rows = jax.NamedSharding(mesh, P("data"))
    placed = jax.device_put((image_emb, text_emb, mask), rows)
    return _neg_clip_loss_sharded(*placed, jnp.float32(temperature), mesh=mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _neg_clip_loss_sharded(
    image_emb: Array, text_emb: Array, mask: Array, temperature: Array, *, mesh: Mesh
) -> Array:
    n = mesh.shape["data"]

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P("data"), P("data"), P("data"), P()), out_specs=P("data")
    )
    def ring(f_bd: Array, g_bd: Array, mask_b: Array, t: Array) -> Array:
        empty_b = jax.lax.pcast(jnp.full(mask_b.shape, -jnp.inf), "data", to="varying")

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            row_b, (h_bd, m_b, col_b) = carry
            logits = cosines(f_bd, h_bd) / t
            pair = mask_b[:, None] & m_b[None, :]
            row_b = jnp.logaddexp(row_b, jax.nn.logsumexp(logits, axis=1, where=pair))
            col_b = jnp.logaddexp(col_b, jax.nn.logsumexp(logits, axis=0, where=pair))
            hop = [(i, (i + 1) % n) for i in range(n)]
            return (row_b, jax.lax.ppermute((h_bd, m_b, col_b), "data", hop)), None

        start = empty_b, (g_bd, mask_b, empty_b)
        (row_b, (_, _, col_b)), _ = jax.lax.scan(step, start, length=n)  # n hops: home again
        return jnp.where(mask_b, paired_cosines(f_bd, g_bd) - t / 2 * (row_b + col_b), -jnp.inf)

    return ring(image_emb, text_emb, mask, temperature)
