"""The losses and their gradients against plain float64 formulas, on 1, 2 and 8 devices, with and without a mask."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.losses import contrastive_float64, sigmoid_float64

from clipdata_jax.runtime import parallel
from clipdata_jax.scores import log_sums, row_blocks
from clipdata_jax.training import contrastive_loss, sigmoid_loss

LOSSES = {"contrastive": contrastive_loss, "sigmoid": sigmoid_loss}
# Three pairs that match, and others that don't: the largest and smallest logits of a temperature.
TEMPERATURES = (0.01, 0.07, 1.0)


def unit_pairs(b=24, d=8):
    rng = np.random.default_rng(0)
    f, g = rng.standard_normal((2, b, d))
    g[:3] = f[:3] + 0.1 * rng.standard_normal((3, d))
    return tuple((emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32) for emb in (f, g))


FORMULAS = {"contrastive": contrastive_float64, "sigmoid": sigmoid_float64}


@functools.cache
def program(name, devices):
    """The loss and its gradient by all but the mask, jitted once."""
    mesh = None if devices is None else parallel.data_mesh(jax.devices()[:devices])

    def loss(mask, *arguments):
        return LOSSES[name](*arguments, mask=mask, mesh=mesh)

    count = 3 if name == "contrastive" else 4
    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(1, count + 1))))


@pytest.mark.parametrize("devices", [None, 1, 2, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_the_formula(name, devices):
    f, g = unit_pairs()
    for temperature in TEMPERATURES:
        scalars = (math.log(1 / temperature), -2.0)[: 1 if name == "contrastive" else 2]
        for real in (len(f), 13):
            mask = np.arange(len(f)) * 5 % len(f) < real  # masked rows on every device
            broken = [np.where(mask[:, None], emb, np.nan) for emb in (f, g)]
            got, gradient = program(name, devices)(mask, *broken, *map(jnp.float32, scalars))
            kept = [emb[mask].astype(np.float64) for emb in (f, g)]
            want, gradient64 = FORMULAS[name](*kept, *scalars)
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
            for one, one64 in zip(gradient[:2], gradient64[:2], strict=True):
                np.testing.assert_allclose(one[mask], one64, atol=1e-5 * max(1, np.abs(one64).max()))
                np.testing.assert_array_equal(one[~mask], 0)
            for one, one64 in zip(gradient[2:], gradient64[2:], strict=True):
                np.testing.assert_allclose(one, one64, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_batches_of_several_tiles_are_the_formula(name, monkeypatch):
    monkeypatch.setattr(log_sums, "_TILE", 8)
    monkeypatch.setattr(row_blocks, "_BLOCK", 8)
    (f, g), scalars = unit_pairs(b=27), (math.log(20), -2.0)[: 1 if name == "contrastive" else 2]
    program.cache_clear()
    got, gradient = program(name, None)(np.ones(27, bool), f, g, *map(jnp.float32, scalars))
    program.cache_clear()
    want, gradient64 = FORMULAS[name](f.astype(np.float64), g.astype(np.float64), *scalars)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for one, one64 in zip(gradient, gradient64, strict=True):
        np.testing.assert_allclose(one, one64, atol=1e-5)


def test_loss_of_pairs_that_are_all_the_same_is_log_b_and_of_none_0():
    same = np.tile(unit_pairs()[0][:1], (16, 1)).astype(np.float16)
    scale = jnp.float32(math.log(100))
    np.testing.assert_allclose(contrastive_loss(same, same, scale), math.log(16), rtol=1e-5)
    got, gradient = program("contrastive", 2)(np.zeros(24, bool), *unit_pairs(), scale)
    assert got == 0
    assert all((np.asarray(one) == 0).all() for one in gradient)


@pytest.mark.usefixtures("types_unchecked")
def test_impossible_arguments_are_named():
    mesh = parallel.data_mesh(jax.devices()[:2])
    with pytest.raises(ValueError, match=r"images \(4, 2\), texts \(3, 2\)"):
        contrastive_loss(jnp.ones((4, 2)), jnp.ones((3, 2)), jnp.float32(0))
    with pytest.raises(ValueError, match=r"3 rows don't divide over 2 devices"):
        sigmoid_loss(jnp.ones((3, 2)), jnp.ones((3, 2)), 0.0, 0.0, mesh=mesh)
    with pytest.raises(ValueError, match=r"mask is float32\[4\], expected bool of shape \(4,\)"):
        contrastive_loss(jnp.ones((4, 2)), jnp.ones((4, 2)), 0.0, mask=jnp.ones(4))


@pytest.mark.parametrize("name", LOSSES)
def test_no_collective_is_in_a_branch_or_loop_where_it_could_overtake_others(name):
    count = 1 if name == "contrastive" else 2
    f, g = unit_pairs()
    text = program(name, 2).lower(np.ones(24, bool), f, g, *[jnp.float32(0)] * count).compile().as_text()
    collectives = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    computations = {part.split(" ", 1)[0]: part for part in text.split("\n\n")}
    holding = [name for name, part in computations.items() if any(f" {word}(" in part for word in collectives)]
    assert holding == ["ENTRY"]


def test_a_batch_of_many_tiles_is_never_whole():
    b, mesh = 16_384, parallel.data_mesh(jax.devices()[:2])
    rows = jax.ShapeDtypeStruct((b, 4), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)

    def loss(f, g, scale):
        return contrastive_loss(f, g, scale, mesh=mesh) + sigmoid_loss(f, g, scale, scale, mesh=mesh)

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(rows, rows, scalar).as_text()
    sizes = {math.prod(map(int, shape.split("x"))) for shape in _shapes(text)}
    assert max(sizes) <= 2048**2


def _shapes(text):
    return {part.split(">")[0].rsplit("x", 1)[0] for part in text.split("tensor<")[1:] if part[0].isdigit()}
