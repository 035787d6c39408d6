"""NormSim: how strongly an image is aligned with a set of target images, and which of them is nearest."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clipdata_jax.scores.products import AnyArray, check_rows, cosines, under_auto_axes, zero_like
from clipdata_jax.scores.row_blocks import Blocks
from clipdata_jax.scores.second_moment import norm_sim_moment, second_moment


class NearestTarget(NamedTuple):
    """The target nearest to each image.

    Attributes:
      score: shape (b,), float32: NormSim with p = inf.
      row: shape (b,), int32: the row of the target that has it; the lowest of several.
    """

    score: Float[Array, " b"]
    row: Int[Array, " b"]


class Reduced(NamedTuple):
    """Running reduction over the targets, per image: the largest |c|, sum_j (|c_j| / largest)^p, its row."""

    most: Float[Array, " b"]
    total: Float[Array, " b"]
    row: Int[Array, " b"]


def norm_sim(
    image_emb: Float[AnyArray, "b d"], target_emb: Float[AnyArray, "n d"], *, p: float = math.inf, signed: bool = False
) -> Float[Array, " b"]:
    """Scores each image by the p-norm of its cosines with the target images.

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

    >>> import numpy as np
    >>> from clipdata_jax import norm_sim
    >>> images, targets = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]])
    >>> print(norm_sim(images, targets))
    [1.  0.8]
    >>> print(np.asarray(norm_sim(images, targets, p=2)).round(3))
    [1.414 1.   ]
    """
    check_norm(image_emb, target_emb, p, signed)
    if p == 2:
        return norm_sim_moment(image_emb, second_moment(target_emb))
    return _norm_sim(image_emb, target_emb, p=float(p), signed=signed)


def nearest_target(
    image_emb: Float[AnyArray, "b d"], target_emb: Float[AnyArray, "n d"], *, signed: bool = False
) -> NearestTarget:
    """Finds the target nearest to each image, and its NormSim with p = inf.

        score = max_j |t_j . f|,   row = the lowest j that attains it

    Args:
      image_emb: f, unit-norm rows, shape (b, d), any float dtype; computed in float32.
      target_emb: T, unit-norm rows, shape (n, d), n >= 1.
      signed: take the largest cosine itself rather than the largest absolute one; static.

    Returns:
      score, the same as `norm_sim`'s, and row: shape (b,) each, float32 and int32.

    Raises:
      ValueError: wrong shapes or an empty target.

    >>> import numpy as np
    >>> from clipdata_jax import nearest_target
    >>> images, targets = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]])
    >>> score, row = nearest_target(images, targets)
    >>> print(score, row)
    [1.  0.8] [2 1]
    """
    check_norm(image_emb, target_emb, math.inf, signed)
    return _nearest_target(image_emb, target_emb, signed=signed)


@functools.partial(jax.jit, static_argnames=("p", "signed"))
def _norm_sim(image_emb: Array, target_emb: Array, *, p: float, signed: bool) -> Array:
    def score(image_emb: Array, target_emb: Array) -> Array:
        return finish(reduce_targets(image_emb, target_emb, p=p, signed=signed), p)

    return under_auto_axes(score, image_emb, target_emb)


@functools.partial(jax.jit, static_argnames="signed")
def _nearest_target(image_emb: Array, target_emb: Array, *, signed: bool) -> NearestTarget:
    def nearest(image_emb: Array, target_emb: Array) -> NearestTarget:
        found = reduce_targets(image_emb, target_emb, signed=signed, nearest=True)
        return NearestTarget(found.most, found.row)

    return under_auto_axes(nearest, image_emb, target_emb)


def reduce_targets(
    image_emb: Array, target_emb: Array, *, p: float = math.inf, signed: bool = False, nearest: bool = False
) -> Reduced:
    """Streams the targets past the images, tile by tile; `total` is 0 for p = inf, `row` unless `nearest`."""
    rows, targets = Blocks.of(len(image_emb)), Blocks.of(len(target_emb))
    zero = zero_like(image_emb, target_emb)

    def of_rows(row_block: Array) -> Reduced:
        f_rd, _ = rows.cut(image_emb, row_block)

        def step(seen: Reduced, block: Array) -> tuple[Reduced, None]:
            t_cd, fresh_c = targets.cut(target_emb, block)
            cos = cosines(f_rd, t_cd)
            size = cos if signed else jnp.abs(cos)
            most_r, row_r = size.max(axis=1), seen.row
            if nearest:
                here_r = targets.start(block) + _first_equal(size, most_r)
                row_r = jnp.where(most_r > seen.most, here_r, row_r)
            most_r = jnp.maximum(seen.most, most_r)
            if p == math.inf:
                return Reduced(most_r, seen.total, row_r), None
            scale_r = jnp.where(most_r > 0, most_r, 1)
            powers = jnp.where(fresh_c, _power(size / scale_r[:, None], p), 0)
            total_r = seen.total * _power(seen.most / scale_r, p) + powers.sum(axis=1)
            return Reduced(most_r, total_r, row_r), None

        zero_r = jnp.broadcast_to(zero, f_rd.shape[:1])
        # Below every cosine, so that a target is found even where all are orthogonal.
        start = Reduced(zero_r - (jnp.inf if p == math.inf else 0), zero_r, zero_r.astype(jnp.int32))
        return jax.lax.scan(step, start, jnp.arange(targets.count))[0]

    return Reduced(*map(rows.join, jax.lax.map(of_rows, jnp.arange(rows.count))))


def _power(x: Array, p: float) -> Array:
    """x^p; of a whole p by repeated squaring, about twice as fast as the general power at p = 30."""
    return jax.lax.integer_pow(x, int(p)) if p == int(p) else x**p


def _first_equal(size_rc: Array, most_r: Array) -> Array:
    """The first column of each row that holds its maximum.

    A minimum is many times faster than an argmax, on a CPU most of all that of floats, which hold a block's columns.
    """
    columns = jnp.arange(size_rc.shape[1], dtype=jnp.float32)
    found_r = jnp.where(size_rc == most_r[:, None], columns, size_rc.shape[1] - 1).min(axis=1)
    return found_r.astype(jnp.int32)


def finish(found: Reduced, p: float) -> Array:
    """The p-norm from a finished reduction."""
    return found.most if p == math.inf else found.most * found.total ** (1 / p)


def check_norm(image_emb: AnyArray, target_emb: AnyArray, p: float, signed: bool) -> None:
    """Raises ValueError unless the shapes fit and p is a norm."""
    for name, emb in (("image_emb", image_emb), ("target_emb", target_emb)):
        check_rows(name, emb)
    if image_emb.shape[1] != target_emb.shape[1]:
        raise ValueError(f"dimensions differ: images {image_emb.shape[1]}, target {target_emb.shape[1]}")
    if not target_emb.shape[0]:
        raise ValueError("the target is empty, expected at least one row")
    if isinstance(p, str) or not p >= 1:
        raise ValueError(f"p is {p!r}, expected a number of at least 1, or math.inf")
    if signed and p != math.inf:
        raise ValueError(f"signed is for p = inf only, p is {p}")
