"""What divisions say of a pair: mean, spread and log-sums, on groups of every size and range."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from scores.formulas import deal, divided, neg_clip_loss, unit_pairs

import clipdata_jax as cj
from clipdata_jax.scores import neg_clip_loss_statistics

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize("real", [1, 2, 15, 16, 17, 31, 63, 64])
@pytest.mark.parametrize("t", [0.005, 0.01, 0.07, 0.2, 1.0])
def test_groups_of_any_size_are_the_formula(real, t):
    f, g = unit_pairs(real, 64, 12)
    keep = np.zeros(64, bool)
    keep[np.random.default_rng(real).permutation(64)[:real]] = True
    f[~keep], g[~keep] = np.nan, np.nan
    dealt = deal(0, 3, 4, 16)
    sums = divided(f, g, dealt, t, keep).mean(axis=1)
    cos = np.einsum("bd,bd->b", f.astype(float), g.astype(float))
    got = neg_clip_loss_statistics(f, g, dealt, temperature=t, mask=keep)
    want = (cos - t / 2 * sums.sum(axis=0))[keep]
    np.testing.assert_allclose(np.asarray(got.score)[keep], want, atol=5e-6, rtol=0)
    np.testing.assert_allclose(np.asarray(got.log_sum_text)[keep], sums[0, keep], atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(got.log_sum_image)[keep], sums[1, keep], atol=1e-5, rtol=1e-6)
    assert np.all(np.asarray(got.score)[~keep] == -np.inf)
    assert np.all(np.isnan(np.asarray(got.standard_error)[~keep]))


@pytest.mark.parametrize("batches", [2, 4])
def test_standard_error_is_the_spread_with_what_divisions_share(batches):
    f, g = unit_pairs(0, 96, 12)
    dealt = deal(1, 7, batches, 16)
    spread = np.var(0.05 / 2 * divided(f, g, dealt, 0.05).sum(axis=0), axis=0, ddof=1)
    n, cells = 16 // batches, 16
    q = (n - 1) / (cells - 1)
    want = np.sqrt(spread * (1 / 7 + (1 + q * (n - 1)) / ((n - 1) * (1 - q))))
    got = neg_clip_loss_statistics(f, g, dealt, temperature=0.05).standard_error
    np.testing.assert_allclose(got, want, rtol=2e-3)


@pytest.mark.parametrize(("batches", "repeats"), [(4, 4), (4, 40), (2, 10)])
def test_standard_error_is_the_true_spread_over_many_groups(batches, repeats):
    tracked, b, cells, trials = 8, 320, 16 * batches, 150
    random = np.random.default_rng(0)
    f_kept, g_kept = unit_pairs(0, tracked, 24, noise=1.2)
    scores, errors = [], []
    for trial in range(trials):
        f, g = unit_pairs(1000 + trial, b - b % cells, 24, noise=1.2)
        at = random.choice(len(f), tracked, replace=False)
        f[at], g[at] = f_kept, g_kept
        found = neg_clip_loss_statistics(f, g, deal(trial, repeats, batches, cells), temperature=0.05)
        scores.append(np.asarray(found.score)[at])
        errors.append(np.asarray(found.standard_error)[at])
    true = np.sqrt(np.var(scores, axis=0, ddof=1).mean())
    # The spread over divisions alone would say 0.4 of it at K = 40.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(true, rel=0.12)


@pytest.mark.parametrize(("repeats", "batches", "cells"), [(1, 4, 16), (5, 1, 16), (5, 16, 16)])
def test_no_standard_error_where_divisions_cannot_tell(repeats, batches, cells):
    f, g = unit_pairs(0, 32, 8)
    found = neg_clip_loss_statistics(f, g, deal(0, repeats, batches, cells))
    assert np.all(np.isnan(found.standard_error))
    assert np.all(np.isfinite(found.score))


def test_several_temperatures_and_sizes_are_those_one_by_one():
    f, g = unit_pairs(3, 96, 16)
    temperatures = np.array([0.005, 0.05, 1], np.float32)
    dealt = np.stack([deal(0, 5, 2, 12), deal(0, 5, 6, 12)])
    together = neg_clip_loss_statistics(f, g, dealt, temperature=temperatures)
    assert {array.shape for array in together} == {(3, 2, 96)}
    score = jax.eval_shape(lambda: cj.neg_clip_loss_divisions(f, g, dealt[0], temperature=temperatures))
    assert score.shape == (3, 96)
    assert jax.eval_shape(lambda: cj.neg_clip_loss_divisions(f, g, dealt)).shape == (2, 96)
    for i, t in enumerate(temperatures.tolist()):
        for j in range(2):
            alone = neg_clip_loss_statistics(f, g, dealt[j], temperature=t)
            for one, many in zip(alone, together, strict=True):
                np.testing.assert_allclose(many[i, j], one, atol=1e-6, rtol=1e-5)


def test_divisions_of_different_number_are_those_one_by_one():
    f, g = unit_pairs(4, 48, 16)
    several = [deal(0, 5, 2, 12), deal(0, 5, 2, 12)[:1], deal(1, 3, 6, 12)]
    together = neg_clip_loss_statistics(f, g, several, temperature=np.array([0.01, 0.1], np.float32))
    assert {array.shape for array in together} == {(2, 3, 48)}
    for index, dealt in enumerate(several):
        alone = neg_clip_loss_statistics(f, g, dealt, temperature=0.1)
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(many[1, index], one, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("b", [2049, 4096])
def test_more_rows_than_a_tile_holds(b):
    f, g = unit_pairs(b, b, 4)
    f[5], g[5], g[b - 1] = f[7], f[7], f[7]  # at t = 0.005 some tiles need each cell's own maximum
    got = np.asarray(cj.neg_clip_loss(f, g, temperature=0.005))
    rows = [0, 5, 7, 1024, 2047, 2048, b - 1]
    cos = f.astype(float) @ g.astype(float)[rows].T, f.astype(float)[rows] @ g.astype(float).T
    want = [
        cos[0][i, n] - 0.005 / 2 * (np.logaddexp.reduce(cos[0][:, n] / 0.005) + np.logaddexp.reduce(cos[1][n] / 0.005))
        for n, i in enumerate(rows)
    ]
    np.testing.assert_allclose(got[rows], want, atol=5e-6)


@pytest.mark.parametrize("t", [0.004, 0.05])  # 0.004: exp(1 / t) is beyond float32
def test_derivatives_are_the_softmax_in_every_range(t):
    f, g = (x.astype(np.float32) for x in unit_pairs(0, 32, 6))
    g[3], g[9] = f[3], -f[9]
    keep = np.arange(32) != 7
    f[7] = np.nan
    dealt = deal(2, 3, 2, 4)

    def total(f, t):
        return cj.neg_clip_loss_divisions(f, g, dealt, temperature=t, mask=keep).sum(where=keep)

    slopes, slope = jax.grad(total, argnums=(0, 1))(f, t)

    def formula(f, t):
        cos = np.einsum("bd,bd->b", f, g.astype(float))
        return (cos - t / 2 * divided(f, g, dealt, t, keep).mean(axis=1).sum(axis=0))[keep].sum()

    step, f64 = 1e-6, f.astype(float)
    want = (formula(f64, t + step) - formula(f64, t - step)) / (2 * step)
    np.testing.assert_allclose(slope, want, rtol=1e-3, atol=0.01)  # of terms of 100 a pair that cancel
    forward = jax.jvp(lambda t: total(f, t), (t,), (1.0,))[1]
    np.testing.assert_allclose(forward, slope, rtol=1e-4, atol=0.01)
    for row, axis in ((3, 0), (9, 1), (20, 5)):
        moved = np.zeros_like(f64)
        moved[row, axis] = step
        want = (formula(f64 + moved, t) - formula(f64 - moved, t)) / (2 * step)
        np.testing.assert_allclose(slopes[row, axis], want, atol=2e-3, rtol=1e-3)


def test_the_same_bits_in_any_program_and_on_any_device():
    f, g = unit_pairs(0, 256, 16)
    dealt = deal(0, 4, 4, 32)
    alone = [np.asarray(x) for x in neg_clip_loss_statistics(f, g, dealt)]
    for device in jax.devices()[::7]:
        placed = jax.device_put((f, g, dealt), device)
        for here, there in zip(alone, neg_clip_loss_statistics(*placed), strict=True):
            assert here.tobytes() == np.asarray(there).tobytes()
    np.testing.assert_array_equal(cj.neg_clip_loss_divisions(f, g, dealt), alone[0])


def test_several_groups_under_vmap():
    f, g = (np.stack(x) for x in zip(*(unit_pairs(seed, 16, 8) for seed in range(3)), strict=True))
    g[1] = f[1]
    got = jax.vmap(lambda f, g: cj.neg_clip_loss(f, g, temperature=jnp.float32(0.005)))(f, g)
    want = [neg_clip_loss(*pair, 0.005) for pair in zip(f, g, strict=True)]
    np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("dealt", "temperature", "words"),
    [
        (np.zeros((1, 2, 2, 4), int), 0.01, "batch_of_cell is int"),
        (np.zeros((2, 4)), 0.01, "batch_of_cell is float64"),
        (np.zeros((2, 4), int), np.ones((2, 2)), "temperature is of shape"),
        (np.zeros((2, 4), int), np.ones(0), "temperature is of shape"),
        (np.zeros((2, 3), int), 0.01, "don't divide into 3 cells"),
        ([], 0.01, "batch_of_cell is empty"),
        ([np.zeros((1, 2, 4), int)], 0.01, "expected a sequence of int"),
        ([np.zeros((2, 4), int), np.zeros((2, 8), int)], 0.01, "has 4 and 8 cells"),
    ],
)
def test_bad_divisions_are_named(dealt, temperature, words):
    with pytest.raises(ValueError, match=words):
        neg_clip_loss_statistics(*unit_pairs(0, 8, 8), dealt, temperature=temperature)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_groups_dealt_to_devices_in_a_shard_map_of_ones_own(kind):
    f, g = (np.stack(x) for x in zip(*(unit_pairs(seed, 32, 8) for seed in range(4)), strict=True))
    dealt = deal(0, 3, 2, 8)
    mesh = jax.make_mesh((2,), ("data",), (kind,), devices=jax.devices()[:2])

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    def scores(f, g):
        def of_group(pair):
            return cj.neg_clip_loss_divisions(*pair, dealt), cj.norm_sim(pair[0], pair[1], p=2)

        return jax.lax.map(of_group, (f, g))

    placed = jax.device_put((f, g), jax.NamedSharding(mesh, P("data")))
    for group, (divided_score, norm) in enumerate(zip(*scores(*placed), strict=True)):
        want = cj.neg_clip_loss_divisions(f[group], g[group], dealt)
        np.testing.assert_allclose(divided_score, want, atol=1e-6)
        np.testing.assert_allclose(norm, cj.norm_sim(f[group], g[group], p=2), rtol=1e-5)


@pytest.mark.parametrize("repeats", [10, 100])
def test_a_group_of_131072_needs_less_than_400_mb_beside_its_embeddings(repeats):
    def score(f, g, mask):
        return cj.neg_clip_loss_divisions(f, g, deal(0, repeats, 4, 64), mask=mask)

    emb = jax.ShapeDtypeStruct((131_072, 768), jnp.float16)
    program = jax.jit(score).lower(emb, emb, jax.ShapeDtypeStruct((131_072,), bool)).compile()
    assert program.memory_analysis().temp_size_in_bytes < 200e6  # twice as much with the threads' own
