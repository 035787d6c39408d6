"""NormSim in all its forms against its formula in float64 and against reference values."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scores.formulas import unit_pairs

import clipdata_jax as cj

pytestmark = pytest.mark.optimized


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    path = Path(__file__).parents[1] / "golden" / "reference_scores.npz"
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def small_blocks(monkeypatch):
    """Tiles of at most seven rows, so that a few rows are many blocks and the last overlaps the one before."""
    monkeypatch.setattr(importlib.import_module("clipdata_jax.scores.row_blocks"), "_BLOCK", 7)
    jax.clear_caches()
    yield
    jax.clear_caches()


def formula(f: np.ndarray, target: np.ndarray, p: float) -> np.ndarray:
    cos = np.abs(f.astype(float) @ target.astype(float).T)
    most = cos.max(axis=1)
    return most if p == math.inf else most * ((cos / most[:, None]) ** p).sum(axis=1) ** (1 / p)


def mesh_of(devices: int, kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("data",), (kind,), devices=jax.devices()[:devices])


def faint_targets() -> tuple[np.ndarray, np.ndarray]:
    """Images whose cosines with the targets are at most about 0.03: powers of them underflow."""
    random = np.random.default_rng(0)
    f, target = random.normal(size=(50, 64)), np.zeros((300, 64))
    f[:, :8] *= 0.02
    target[:, :8] = random.normal(size=(300, 8))
    f, target = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (f, target))
    assert formula(f, target, math.inf).max() < 0.04
    return f, target


@pytest.mark.parametrize("p", [2, 3, 4, math.inf])
def test_the_reference_value(reference, p):
    got = cj.norm_sim(reference["img"], reference["target"], p=p)
    np.testing.assert_allclose(got, reference[f"normsim_{p}"], rtol=1e-5)
    sharded = cj.norm_sim_sharded(reference["img"], reference["target"], p=p, mesh=mesh_of(8))
    np.testing.assert_allclose(sharded, reference[f"normsim_{p}"], rtol=1e-5)


def test_vas_is_the_reference_value(reference):
    got = cj.vas(reference["img"], reference["target_second_moment"])
    np.testing.assert_allclose(got, reference["vas"], atol=1e-6, rtol=1e-6)
    moment = cj.second_moment(reference["target"])
    np.testing.assert_allclose(np.sqrt(got * 300), cj.norm_sim_moment(reference["img"], moment), rtol=1e-5)


@pytest.mark.parametrize("p", [1, 1.5, 2, 30, 100, math.inf])
def test_it_neither_underflows_nor_overflows(p):
    f, target = faint_targets()
    np.testing.assert_allclose(cj.norm_sim(f, target, p=p), formula(f, target, p), rtol=1e-5)
    sharded = cj.norm_sim_sharded(f, target, p=p, mesh=mesh_of(2))
    np.testing.assert_allclose(sharded, formula(f, target, p), rtol=1e-5)


@pytest.mark.parametrize(("rows", "targets"), [(1, 1), (13, 8), (23, 31)])
def test_blocks_count_every_target_once(small_blocks, rows, targets):
    f, target = unit_pairs(rows, 31, 16)
    f, target = f[:rows], target[:targets]
    for p in (2, 3, math.inf):
        np.testing.assert_allclose(cj.norm_sim(f, target, p=p), formula(f, target, p), rtol=1e-5, atol=1e-6)
    cos = f.astype(float) @ target.astype(float).T
    np.testing.assert_allclose(cj.norm_sim(f, target, signed=True), cos.max(axis=1), atol=1e-6)


def test_orthogonal_and_opposite_targets(small_blocks):
    _, target = unit_pairs(3, 33, 16)
    np.testing.assert_allclose(cj.norm_sim(-target[:1], target[:1], signed=True), [-1], atol=1e-3)
    nothing = np.zeros((2, 16), np.float32)
    assert not np.any(cj.norm_sim(nothing, target, p=3))
    assert not np.any(cj.norm_sim(nothing, target))
    assert cj.nearest_target(nothing, target).row.tolist() == [0, 0]
    assert cj.norm_sim(nothing[:0], target).shape == (0,)


@pytest.mark.parametrize("signed", [False, True])
def test_the_nearest_target_is_the_lowest_of_equals(small_blocks, signed):
    f, target = (x.astype(np.float32) for x in unit_pairs(3, 33, 16))
    cos = f.astype(float) @ target.astype(float).T
    want = (cos if signed else np.abs(cos)).argmax(axis=1)
    # Each target stands three times: in its own block, in a later one, and at the very end.
    tripled = np.concatenate([target, target, target])
    for found in (
        cj.nearest_target(f, tripled, signed=signed),
        *(cj.nearest_target_sharded(f, tripled, mesh=mesh_of(n), signed=signed) for n in (2, 8)),
    ):
        assert found.row.dtype == np.int32
        np.testing.assert_array_equal(found.row, want)
        np.testing.assert_allclose(found.score, cj.norm_sim(f, tripled, signed=signed), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "devices", "targets"),
    [(AxisType.Auto, 1, 5), (AxisType.Auto, 2, 32), (AxisType.Auto, 8, 3), (AxisType.Explicit, 8, 33)],
)
def test_sharded_targets_give_the_formula_on_any_mesh(kind, devices, targets):
    f, target = unit_pairs(5, 33, 16)
    target, mesh = target[:targets], mesh_of(devices, kind)
    cos = f.astype(float) @ target.astype(float).T
    for p in (2, 3, math.inf):
        got = cj.norm_sim_sharded(f, target, p=p, mesh=mesh)
        assert got.sharding.is_fully_replicated
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, formula(f, target, p), rtol=1e-5, atol=1e-6)
    found = cj.nearest_target_sharded(f, target, mesh=mesh, signed=True)
    np.testing.assert_array_equal(found.row, cos.argmax(axis=1))
    np.testing.assert_allclose(found.score, cos.max(axis=1), atol=1e-6)


def test_a_target_that_lies_sharded_stays_where_it_is():
    f, target = unit_pairs(5, 32, 16)
    mesh = mesh_of(8)
    placed = jax.device_put(target, jax.NamedSharding(mesh, jax.P("data")))
    with jax.transfer_guard_device_to_device("disallow"):
        got = cj.norm_sim_sharded(jax.device_put(f, jax.NamedSharding(mesh, jax.P())), placed, mesh=mesh)
    np.testing.assert_allclose(got, formula(f, target, math.inf), rtol=1e-5)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, g: cj.norm_sim(f, g[:, :4]), "dimensions differ: images 8, target 4"),
        (lambda f, g: cj.norm_sim(f, g[:0]), "the target is empty"),
        (lambda f, g: cj.norm_sim(f, g.astype(int)), "target_emb is int64"),
        (lambda f, g: cj.norm_sim(f, g, p=0.5), "p is 0.5"),
        (lambda f, g: cj.norm_sim(f, g, p=math.nan), "p is nan"),
        (lambda f, g: cj.norm_sim(f, g, p=3, signed=True), "signed"),
        (lambda f, g: cj.nearest_target(f, g[:0]), "the target is empty"),
        (lambda f, g: cj.norm_sim_sharded(f, g, p=0, mesh=mesh_of(1)), "p is 0"),
        (lambda f, g: cj.nearest_target_sharded(f, g[:, 1:], mesh=mesh_of(1)), "dimensions differ"),
        (lambda f, g: cj.norm_sim_moment(f, np.eye(4)), "don't fit"),
        (lambda f, g: cj.vas(f[0], np.eye(8)), r"image_emb is float16\[8\], expected floats"),
        (lambda f, g: cj.norm_sim(f, g, p="inf"), "p is 'inf', expected a number of at least 1, or math.inf"),
        (lambda f, g: cj.norm_sim(f.tolist(), g), r"image_emb is a list, expected floats of shape \(rows, dim\)"),
        (lambda f, g: cj.norm_sim_sharded(f, g, mesh=jax.make_mesh((1,), ("x",))), "the mesh has the axes x, expected"),
        (lambda f, g: cj.second_moment(f[0]), "expected floats"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(*unit_pairs(0, 8, 8))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_every_kernel_lowers(platform):
    images, targets = (jax.ShapeDtypeStruct((rows, 64), jnp.float16) for rows in (2500, 4001))
    mesh = mesh_of(8)
    kernels = [
        cj.norm_sim,
        lambda f, g: cj.norm_sim(f, g, p=2),
        lambda f, g: cj.norm_sim(f, g, p=3),
        lambda f, g: cj.norm_sim(f, g, p=1.5),
        cj.nearest_target,
        lambda f, g: cj.vas(f, cj.second_moment(g)),
        lambda f, g: cj.norm_sim_sharded(f, g, mesh=mesh),
        lambda f, g: cj.norm_sim_sharded(f, g, mesh=mesh, p=2),
        lambda f, g: cj.norm_sim_sharded(f, g, mesh=mesh, p=3),
        lambda f, g: cj.nearest_target_sharded(f, g, mesh=mesh),
    ]
    for kernel in kernels:
        assert jax.export.export(jax.jit(kernel), platforms=[platform])(images, targets).mlir_module()
