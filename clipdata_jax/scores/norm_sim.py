"""NormSim: how strongly a picture is aligned with a set of target pictures."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clipdata_jax.scores.products import cosines, zero_like

_BLOCK = 2048  # rows and targets of one tile: 16 MiB of float32


def norm_sim(
    image_emb: Float[Array, "b d"],
    target_emb: Float[Array, "n d"],
    *,
    p: float = math.inf,
    signed: bool = False,
) -> Float[Array, " b"]:
    """Scores each picture by the p-norm of its cosines with the target pictures.

        NormSim_p(x) = || T f(x) ||_p = (sum_j |t_j . f|^p)^(1/p),   p = inf: max_j |t_j . f|

    Wang et al. 2024, arXiv:2405.19547, section 4. The targets are streamed in blocks with a running maximum
    M and the sum of (|c| / M)^p, since |c|^30 underflows; nothing of size b x n is kept. p = 2 goes through
    the d x d second moment.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      target_emb: T, unit-norm rows, shape (n, d), n >= 1.
      p: the norm, at least 1; static.
      signed: p = inf only: the largest cosine itself rather than the largest absolute one; static.

    Returns:
      shape (b,), float32; p = inf: at most 1. Higher is closer to the target.

    Raises:
      ValueError: wrong shapes, an empty target, p < 1, or `signed` with a finite p.
    """
    for name, emb in (("image_emb", image_emb), ("target_emb", target_emb)):
        if emb.ndim != 2 or not jnp.issubdtype(emb.dtype, jnp.floating):
            raise ValueError(f"{name} is {emb.dtype}{list(emb.shape)}, expected floats of shape (rows, dim)")
    if image_emb.shape[1] != target_emb.shape[1]:
        raise ValueError(f"dimensions differ: images {image_emb.shape[1]}, target {target_emb.shape[1]}")
    if not target_emb.shape[0]:
        raise ValueError("the target is empty, expected at least one row")
    if not p >= 1:
        raise ValueError(f"p is {p}, expected a number of at least 1, or inf")
    if signed and p != math.inf:
        raise ValueError(f"signed is for p = inf only, p is {p}")
    if p == 2:
        return norm_sim_moment(image_emb, second_moment(target_emb))
    return _norm_sim(image_emb, target_emb, p=float(p), signed=signed)


@functools.partial(jax.jit, static_argnames=("p", "signed"))
def _norm_sim(image_emb: Array, target_emb: Array, *, p: float, signed: bool) -> Array:
    targets, real = _blocks(target_emb)

    def of_rows(f_rd: Array) -> Array:
        def step(carry: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            most_r, sum_r = carry
            cos = cosines(f_rd, block[0])
            size = jnp.where(block[1], cos, -jnp.inf) if signed else jnp.abs(cos)  # padding: cosine 0
            new_r = jnp.maximum(most_r, size.max(axis=1))
            if p == math.inf:
                return (new_r, sum_r), None
            scale_r = jnp.where(new_r > 0, new_r, 1)
            sum_r = sum_r * (most_r / scale_r) ** p + ((size / scale_r[:, None]) ** p).sum(axis=1)
            return (new_r, sum_r), None

        zero_r = jnp.broadcast_to(zero_like(image_emb, target_emb), f_rd.shape[:1])
        start = zero_r - (jnp.inf if signed else 0), zero_r
        (most_r, sum_r), _ = jax.lax.scan(step, start, (targets, real))
        return most_r if p == math.inf else most_r * sum_r ** (1 / p)

    rows, _ = _blocks(image_emb)
    return jax.lax.map(of_rows, rows).reshape(-1)[: image_emb.shape[0]]


def _blocks(emb: Array) -> tuple[Array, Array]:
    """Rows in blocks of equal size, zeros added at the end, and which rows are real."""
    rows, d = emb.shape
    count = max(1, -(-rows // _BLOCK))
    side = -(-rows // count)
    padded = jnp.pad(emb, ((0, count * side - rows), (0, 0)))
    real = jnp.arange(count * side) < rows
    return padded.reshape(count, side, d), real.reshape(count, side)


def second_moment(target_emb: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """The second moment of target embeddings, all that NormSim_2 needs of them.

        S = T'T = sum_j t_j t_j'

    Args:
      target_emb: T, shape (n, d), any float dtype; summed in float32, block by block.

    Returns:
      S, shape (d, d), float32, symmetric.

    Raises:
      ValueError: not (n, d) floats.
    """
    if target_emb.ndim != 2 or not jnp.issubdtype(target_emb.dtype, jnp.floating):
        raise ValueError(
            f"target_emb is {target_emb.dtype}{list(target_emb.shape)}, expected floats (rows, dim)"
        )
    return _second_moment(target_emb)


@jax.jit
def _second_moment(target_emb: Array) -> Array:
    def add(total: Array, block: Array) -> tuple[Array, None]:
        block = block.astype(jnp.float32)
        return total + jnp.einsum("nd,ne->de", block, block, precision="highest"), None

    d = target_emb.shape[1]
    empty = jnp.broadcast_to(zero_like(target_emb), (d, d))
    return jax.lax.scan(add, empty, _blocks(target_emb)[0])[0]


def norm_sim_moment(image_emb: Float[Array, "b d"], moment: Float[Array, "d d"]) -> Float[Array, " b"]:
    """NormSim_2 from the target's second moment.

        NormSim_2(x) = sqrt(f' S f),   S = T'T

    Wang et al. 2024, arXiv:2405.19547. Its square with S = T'T / n is VAS, arXiv:2402.02055.

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      moment: S, shape (d, d), symmetric, positive semi-definite (`second_moment`).

    Returns:
      shape (b,), float32, at least 0.

    Raises:
      ValueError: the shapes don't fit.
    """
    if image_emb.ndim != 2 or moment.shape != (image_emb.shape[-1],) * 2:
        raise ValueError(
            f"shapes don't fit: images {image_emb.shape}, moment {moment.shape}, expected (b, d), (d, d)"
        )
    return _norm_sim_moment(image_emb, moment)


@jax.jit
def _norm_sim_moment(image_emb: Array, moment: Array) -> Array:
    f_bd = image_emb.astype(jnp.float32)
    projected = jnp.einsum("bd,de->be", f_bd, moment.astype(jnp.float32), precision="highest")
    # Rounding can leave a tiny negative number where a picture is orthogonal to every target.
    return jnp.sqrt(jnp.maximum(jnp.einsum("be,be->b", projected, f_bd, precision="highest"), 0))
