"""Every score against its formula written plainly in float64, and against reference values."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from scores.formulas import deal, log_sum, unit_pairs
from scores.formulas import neg_clip_loss as formula

import clipdata_jax as cj

pytestmark = pytest.mark.optimized


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    path = Path(__file__).parents[1] / "golden" / "reference_scores.npz"
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("t", [0.005, 0.01, 0.07, 0.2, 1.0])
def test_divisions_of_real_looking_pairs_are_the_formula(reference, t):
    f, g = reference["img"], reference["txt"]
    dealt = deal(0, 3, 4, 20)
    sums = np.zeros((2, 1000))
    for batches in dealt:
        batch = np.repeat(batches, 50)
        logits = np.where(batch[:, None] == batch, f.astype(float) @ g.astype(float).T / t, -np.inf)
        sums += [np.logaddexp.reduce(logits, axis=axis) / 3 for axis in (1, 0)]
    want = np.einsum("bd,bd->b", f.astype(float), g.astype(float)) - t / 2 * sums.sum(axis=0)
    got = cj.neg_clip_loss_divisions(f, g, dealt, temperature=t)
    np.testing.assert_allclose(got, want, atol=5e-6, rtol=0)


@pytest.mark.parametrize("t", ["0.01", "0.07"])
def test_neg_clip_loss_is_the_reference_value_in_every_row(reference, t):
    f, g, size = reference["img"], reference["txt"], int(reference["batch_size"])
    total = np.zeros(len(f))
    for order in reference["permutations"]:
        for start in range(0, len(f), size):
            rows = order[start : start + size]
            total[rows] += cj.neg_clip_loss(f[rows], g[rows], temperature=float(t))
    want = reference[f"tau{t}_negcliploss_float64"]
    np.testing.assert_allclose(total / len(reference["permutations"]), want, atol=5e-6, rtol=0)
    finite = np.isfinite(reference[f"tau{t}_negcliploss"])
    assert finite.sum() == (999 if t == "0.01" else 1000)
    np.testing.assert_allclose(want[finite], reference[f"tau{t}_negcliploss"][finite], atol=5e-6)


def test_clip_score_is_the_reference_value(reference):
    want = np.einsum("bd,bd->b", reference["img"].astype(float), reference["txt"].astype(float))
    np.testing.assert_allclose(cj.clip_score(reference["img"], reference["txt"]), want, atol=1e-6)


def adversarial() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Groups of unit rows that break a careless shift of the exponentials."""
    f, g = (x.astype(np.float32) for x in unit_pairs(0, 64, 32))
    axis = np.eye(32, dtype=np.float32)
    same = np.repeat(axis[:1], 64, axis=0)
    far_f, far_g = np.repeat(axis[:1], 64, axis=0), np.repeat(axis[:1], 64, axis=0)
    far_f[9], far_g[9] = -axis[0], axis[1]
    low = 0.3 * axis[0] + math.sqrt(1 - 0.09) * axis[1:][np.arange(64) % 31]
    twin_f, twin_g = np.repeat(axis[:1], 64, axis=0), low.copy()
    twin_g[[4, 50]] = axis[0]
    mixed_f, mixed_g = np.repeat(axis[:1], 64, axis=0), -0.9 * axis[0] + math.sqrt(1 - 0.81) * low
    mixed_g /= np.linalg.norm(mixed_g, axis=1, keepdims=True)
    mixed_g[3] = axis[0]
    return {
        "random": (f, g),
        "all the same": (same, same),
        "opposite": (same, -same),
        "identical pairs": (f, f),
        "one far": (far_f, far_g),
        "a duplicate at 1, the rest at 0.3": (twin_f, twin_g),
        "mixed scales": (mixed_f, mixed_g),
        "perfect match elsewhere": (f, np.roll(f, 16, axis=0)),
        "one far, as text": (far_g, far_f),
        "a duplicate at 1, as text": (twin_g, twin_f),
        "mixed scales, as text": (mixed_g, mixed_f),  # an image's best cosine is -0.9, another's is 1
    }


@pytest.mark.parametrize("t", [0.005, 0.01, 0.07, 0.2, 1.0])
@pytest.mark.parametrize("name", list(adversarial()))
def test_divisions_are_the_formula_at_every_temperature(name, t):
    f, g = adversarial()[name]
    random = np.random.default_rng(1)
    divisions = np.stack([random.permutation(np.repeat(np.arange(4), 2)) for _ in range(3)]).astype(np.int32)
    want = np.zeros(64)
    for batch_of_cell in divisions:
        batch = np.repeat(batch_of_cell, 8)
        for j in range(4):
            want[batch == j] += formula(f[batch == j], g[batch == j], t) / 3
    got = cj.neg_clip_loss_divisions(f, g, divisions, temperature=t)
    np.testing.assert_allclose(got, want, atol=5e-6, rtol=0)
    np.testing.assert_allclose(cj.neg_clip_loss(f, g, temperature=t), formula(f, g, t), atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("b", "cells", "tile"), [(48, 4, 5), (48, 4, 24), (48, 12, 1024), (40, 1, 7), (6, 6, 4), (1, 1, 4)]
)
def test_cells_of_any_size_beside_the_tile(monkeypatch, b, cells, tile):
    monkeypatch.setattr("clipdata_jax.scores.log_sums._TILE", tile)
    jax.clear_caches()
    f, g = unit_pairs(b, b, 12)
    mask = np.random.default_rng(b).random(b) > 0.2
    mask[0] = True
    rows, cols = cj.cell_log_sums(f, g, cells=cells, temperature=0.05, mask=mask)
    cos = f.astype(float) @ g.astype(float).T / 0.05
    cell = np.arange(b) // (b // cells)
    for c in range(cells):
        inside = (cell == c) & mask
        for i in np.flatnonzero(mask):
            for got, values in ((rows, cos[i, inside]), (cols, cos[inside, i])):
                want = log_sum(values) if inside.any() else -np.inf
                np.testing.assert_allclose(got[i, c], want, rtol=1e-5, atol=1e-5)
    jax.clear_caches()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), real=st.integers(1, 24))
def test_masked_rows_count_nowhere_and_score_minus_infinity(seed, real):
    f, g = unit_pairs(seed, 24, 8)
    keep = np.zeros(24, bool)
    keep[np.random.default_rng(seed).permutation(24)[:real]] = True
    f[~keep], g[~keep] = np.nan, np.nan
    got = np.asarray(cj.neg_clip_loss(f, g, mask=keep))
    np.testing.assert_allclose(got[keep], formula(f[keep], g[keep], 0.01), atol=5e-6)
    assert np.all(got[~keep] == -np.inf)
    divided = np.asarray(cj.neg_clip_loss_divisions(f, g, np.zeros((2, 8), np.int32), mask=keep))
    np.testing.assert_allclose(divided, got, atol=2e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("devices", "real"), [(1, 16), (2, 16), (8, 16), (8, 13), (8, 1)])
def test_sharded_score_is_the_formula_on_any_mesh(kind, devices, real):
    f, g = unit_pairs(seed=0, b=16, d=8)
    mesh = jax.make_mesh((devices,), ("data",), (kind,), devices=jax.devices()[:devices])
    got = cj.neg_clip_loss_sharded(f, g, mesh=mesh, mask=np.arange(16) < real)
    assert got.sharding.is_equivalent_to(jax.NamedSharding(mesh, P("data")), got.ndim)
    want = [*formula(f[:real], g[:real], 0.01), *[-np.inf] * (16 - real)]
    np.testing.assert_allclose(np.asarray(got), want, atol=5e-6)


@pytest.mark.parametrize("t", [0.005, 0.01, 0.07, 0.2, 1.0])
def test_sharded_score_is_the_formula_at_every_temperature(t):
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    keep = np.arange(64) % 9 != 1
    for f, g in adversarial().values():
        f, g = f.copy(), g.copy()
        f[~keep], g[~keep] = np.nan, np.nan
        got = cj.neg_clip_loss_sharded(f, g, mesh=mesh, temperature=jnp.float32(t), mask=keep)
        np.testing.assert_allclose(got[keep], formula(f[keep], g[keep], t), atol=5e-6, rtol=0)


def test_sharded_score_has_the_derivatives_of_the_score():
    f, g = (x.astype(np.float32) for x in unit_pairs(0, 16, 8))
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    keep = np.arange(16) < 13

    def slopes(score):
        def total(f, g, t):
            return jnp.where(keep, score(f, g, temperature=t, mask=keep), 0).sum()

        return jax.grad(total, argnums=(0, 1, 2))(f, g, 0.05)

    wanted = slopes(cj.neg_clip_loss)
    for got, want in zip(slopes(functools.partial(cj.neg_clip_loss_sharded, mesh=mesh)), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_sharded_batch_beyond_one_device_is_never_b_by_b():
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,), devices=jax.devices())
    emb = jax.ShapeDtypeStruct((8 * 65_536, 64), jnp.float16, sharding=jax.NamedSharding(mesh, P("data")))
    program = jax.jit(lambda f, g: cj.neg_clip_loss_sharded(f, g, mesh=mesh)).lower(emb, emb).compile()
    assert program.memory_analysis().temp_size_in_bytes < 400e6  # a block of two devices' rows takes 17 GB


def test_rows_may_lie_sharded_over_an_explicit_mesh():
    f, g = unit_pairs(seed=0, b=32, d=8)
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Explicit,), devices=jax.devices()[:2])
    dealt = deal(0, 3, 2, 8)

    @jax.jit
    def scores(f, g):
        return (
            cj.neg_clip_loss_statistics(f, g, dealt, temperature=jnp.array([0.01, 0.1])),
            cj.nearest_target(f, g),
            cj.norm_sim_moment(f, cj.second_moment(g)),
        )

    placed = jax.device_put((f, g), jax.NamedSharding(mesh, P("data")))
    for got, want in zip(*map(jax.tree.leaves, (scores(*placed), scores(f, g))), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
        assert got.sharding.spec[got.shape.index(32)] == "data"


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_any_float_dtype_gives_float32(dtype):
    f, g = (jnp.asarray(x, dtype) for x in unit_pairs(0, 16, 8))
    scores = [cj.clip_score(f, g), cj.neg_clip_loss(f, g), cj.norm_sim(f, g), cj.norm_sim(f, g, p=2)]
    scores.append(cj.neg_clip_loss_divisions(f, g, np.zeros((1, 4), np.int32)))
    assert all(score.dtype == jnp.float32 and score.shape == (16,) for score in scores)


def test_temperature_may_be_learnt():
    f, g = (x.astype(np.float32) for x in unit_pairs(0, 16, 8))
    slope = jax.grad(lambda t: cj.neg_clip_loss(f, g, temperature=t).mean())(0.05)
    finite = (formula(f, g, 0.05 + 1e-5).mean() - formula(f, g, 0.05 - 1e-5).mean()) / 2e-5
    np.testing.assert_allclose(slope, finite, rtol=1e-3)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, g: cj.neg_clip_loss(f, g[:4]), "shapes differ"),
        (lambda f, g: cj.neg_clip_loss(f, g, temperature=0), "temperature is 0"),
        (lambda f, g: cj.neg_clip_loss(f, g, temperature=float("nan")), "temperature is nan"),
        (lambda f, g: cj.neg_clip_loss(f, g, mask=np.ones(3, bool)), "mask is bool"),
        (lambda f, g: cj.clip_score(f.astype(int), g), "image_emb is int"),
        (lambda f, g: cj.clip_score(f, g.tolist()), "text_emb is a list, .*numpy.asarray makes an array of it"),
        (lambda f, g: cj.neg_clip_loss_sharded(f, g, mesh=jax.make_mesh((1,), ("x",))), "expected one named data"),
        (lambda f, g: cj.cell_log_sums(f, g, cells=3), "don't divide into 3 cells"),
        (lambda f, g: cj.neg_clip_loss_divisions(f, g, np.zeros((0, 2), int)), "batch_of_cell is int"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(*unit_pairs(0, 8, 8))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_every_kernel_lowers(platform):
    pair = [jax.ShapeDtypeStruct((2048, 64), jnp.float16)] * 2
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    divisions = np.zeros((2, 16), np.int32)
    kernels = [
        cj.clip_score,
        cj.neg_clip_loss,
        lambda f, g: cj.cell_log_sums(f, g, cells=4, temperature=0.01),
        lambda f, g: cj.neg_clip_loss_divisions(f, g, divisions),
        lambda f, g: cj.neg_clip_loss_sharded(f, g, mesh=mesh),
    ]
    for kernel in kernels:
        assert jax.export.export(jax.jit(kernel), platforms=[platform])(*pair).mlir_module()
