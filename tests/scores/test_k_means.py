"""k-means' kernels against the plain formula, on any number of devices, and what lowers."""

from __future__ import annotations

import importlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

import clipdata_jax as cj
from clipdata_jax.scores import k_means

pytestmark = pytest.mark.optimized

SUM_ROWS = jax.jit(k_means._sum_rows, static_argnums=2)


def unit(seed: int, rows: int, dim: int, dtype=np.float32) -> np.ndarray:
    emb = np.random.default_rng(seed).normal(size=(rows, dim))
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(dtype)


def mesh_of(devices: int, kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("data",), (kind,), devices=jax.devices()[:devices])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of eight rows, so that a few rows are many blocks."""
    monkeypatch.setattr(importlib.import_module("clipdata_jax.scores.row_blocks"), "_BLOCK", 8)
    jax.clear_caches()
    yield
    jax.clear_caches()


def plain_step(f, mask, c):
    """The step in float64, a cluster at a time."""
    cos = f.astype(float) @ c.astype(float).T
    cluster = np.where(mask, cos.argmax(axis=1), len(c))
    sums = np.stack([f[cluster == j].astype(float).sum(axis=0) for j in range(len(c))])
    norm = np.linalg.norm(sums, axis=1, keepdims=True)
    centroids = np.where(norm > 0, sums / np.where(norm > 0, norm, 1), c)
    return (np.where(mask, cos.max(axis=1), 0), cluster, centroids, np.bincount(cluster, minlength=len(c) + 1)[:-1])


@pytest.mark.parametrize(
    ("dtype", "meshes"),
    [
        (np.float16, [(1, AxisType.Auto), (2, AxisType.Auto), (8, AxisType.Auto)]),
        (np.float32, [(1, AxisType.Auto), (8, AxisType.Explicit)]),
    ],
)
def test_a_step_is_the_formula_and_the_same_bits_on_any_mesh(small_blocks, dtype, meshes):
    f, mask = unit(0, 128, 16, dtype), np.arange(128) < 121
    c = unit(1, 20, 16)
    c[7] = -f[mask].astype(np.float32).sum(axis=0)  # hardly a row is nearest to it
    c[7] /= np.linalg.norm(c[7])
    c[11] = c[3]  # none is: the lower of equals counts
    want = plain_step(f, mask, c)
    found = [
        jax.tree.map(np.asarray, cj.lloyd_step(f, mask, c, mesh=mesh_of(devices, kind))) for devices, kind in meshes
    ]
    for step in found:
        assert step.cluster.dtype == step.size.dtype == np.int32
        np.testing.assert_allclose(step.score, want[0], atol=1e-6)
        np.testing.assert_array_equal(step.cluster, want[1])
        np.testing.assert_allclose(step.centroids, want[2], atol=2e-6)
        np.testing.assert_array_equal(step.size, want[3])
        for one, other in zip(step, found[0], strict=True):
            np.testing.assert_array_equal(one, other)
    assert found[0].size[11] == 0


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_assignments_are_the_lowest_of_the_nearest(small_blocks, devices):
    f, c = unit(2, 64, 16, np.float16), 3 * unit(3, 9, 16)
    c = np.concatenate([c, c])
    found = cj.assign_clusters(f, c, mesh=mesh_of(devices))
    cos = f.astype(float) @ c.astype(float).T
    np.testing.assert_array_equal(found.row, cos.argmax(axis=1))
    np.testing.assert_allclose(found.score, cos.max(axis=1), atol=5e-6)
    np.testing.assert_array_equal(found.row, cj.assign_clusters(f, c).row)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), tiny=st.sampled_from([1.0, 1e-2, 1e-5]))
def test_sums_of_whole_numbers_are_near_the_exact_sum_in_any_order(seed, tiny):
    random = np.random.default_rng(seed)
    f = random.normal(size=(40, 6)) * np.where(random.random((40, 6)) < 0.5, 1, tiny)
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float16)
    cluster = random.integers(0, 4, 40)  # 3 is left out
    sums, size = SUM_ROWS(f, cluster.astype(np.int32), 3)
    order = random.permutation(40)
    again, _ = SUM_ROWS(f[order], cluster[order].astype(np.int32), 3)
    np.testing.assert_array_equal(sums, again)
    exact = np.stack([f[cluster == j].astype(float).sum(axis=0) for j in range(3)])
    high, low = np.split(np.asarray(sums, float), 2, axis=1)
    np.testing.assert_allclose((high * 2**10 + low) / 2**20, exact, atol=40 * 2.0**-21)
    assert size.tolist() == [(cluster == j).sum() for j in range(3)]


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, c: cj.assign_clusters(f, c[:, 1:]), "dimensions differ"),
        (lambda f, c: cj.assign_clusters(f[:7], c, mesh=mesh_of(2)), "7 rows don't divide over 2 devices"),
        (lambda f, c: cj.lloyd_step(f, np.ones(3, bool), c, mesh=mesh_of(1)), r"mask is bool\[3\]"),
        (lambda f, c: cj.lloyd_step(f, np.ones(8, bool), c[:0], mesh=mesh_of(1)), "empty"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(unit(0, 8, 4), unit(1, 3, 4))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_every_kernel_lowers(platform):
    images = jax.ShapeDtypeStruct((8 * 4096, 64), jnp.float16)
    mask = jax.ShapeDtypeStruct((8 * 4096,), jnp.bool_)
    centroids = jax.ShapeDtypeStruct((3000, 64), jnp.float32)
    mesh = mesh_of(8)
    step = jax.jit(lambda f, m, c: cj.lloyd_step(f, m, c, mesh=mesh))
    assert jax.export.export(step, platforms=[platform])(images, mask, centroids).mlir_module()
    for kernel in (cj.assign_clusters, lambda f, c: cj.assign_clusters(f, c, mesh=mesh)):
        assert jax.export.export(jax.jit(kernel), platforms=[platform])(images, centroids).mlir_module()
