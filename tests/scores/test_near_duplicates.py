"""Near-duplicates' kernel against the plain formula, and what lowers."""

from __future__ import annotations

import importlib

import jax
import jax.export
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

import clipdata_jax as cj
from clipdata_jax.scores.near_duplicates import Tiling, find_pairs


def rows_with_copies(seed: int, rows: int, dim: int, copies: int, dtype=np.float32) -> np.ndarray:
    random = np.random.default_rng(seed)
    emb = random.normal(size=(rows, dim))
    emb[random.permutation(rows)[:copies]] = emb[random.integers(rows, size=copies)]
    emb += 0.02 * random.normal(size=emb.shape)
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(dtype)


def plainly(f, g, threshold, *, above: bool):
    cos = f.astype(float) @ g.astype(float).T
    near = np.triu(cos >= threshold, 1) if above else cos >= threshold
    # No pair is near enough to the threshold for float32 to matter.
    assert np.abs(cos - threshold).min() > 1e-6
    return {(int(i), int(j)) for i, j in np.argwhere(near)}, cos


def pairs_of(found) -> set[tuple[int, int]]:
    total = int(found.total)
    return set(zip(np.asarray(found.row)[:total].tolist(), np.asarray(found.other)[:total].tolist(), strict=True))


@pytest.fixture(scope="module")
def small_blocks():
    """Blocks of eight rows, so that a few rows are many tiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("clipdata_jax.scores.row_blocks"), "_BLOCK", 8)
        jax.clear_caches()
        yield
    jax.clear_caches()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_pairs_are_those_of_the_formula(small_blocks, dtype):
    f, g = rows_with_copies(0, 37, 16, 12, dtype), rows_with_copies(1, 21, 16, 0, dtype)
    g[[2, 3, 20]] = f[[0, 36, 36]]
    want, cos = plainly(f, f, 0.9, above=True)
    found = cj.near_duplicates(f, threshold=0.9, size=64)
    assert pairs_of(found) == want
    assert len(want) >= 10
    total = len(want)
    np.testing.assert_allclose(found.cosine[:total], cos[found.row[:total], found.other[:total]], atol=1e-6)
    assert (found.row[total:] == -1).all()
    assert not found.cosine[total:].any()
    want, _ = plainly(f, g, 0.9, above=False)
    assert {(0, 2), (36, 3), (36, 20)} <= want
    assert pairs_of(cj.near_duplicates(f, g, threshold=0.9, size=64)) == want


def test_what_doesnt_fit_is_counted(small_blocks):
    f = np.tile(rows_with_copies(0, 1, 16, 0), (37, 1))
    found = cj.near_duplicates(f, threshold=0.9, size=64)
    assert int(found.total) == 37 * 36 // 2
    listed = set(zip(np.asarray(found.row).tolist(), np.asarray(found.other).tolist(), strict=True))
    assert len(listed) == 64
    assert all(i < j for i, j in listed)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), threshold=st.floats(-0.5, 1))
def test_any_threshold(small_blocks, seed, threshold):
    f = rows_with_copies(seed, 37, 16, 12)
    cos = f.astype(float) @ f.astype(float).T
    sure, possible = (np.triu(cos >= threshold + slack, 1) for slack in (1e-6, -1e-6))
    found = pairs_of(cj.near_duplicates(f, threshold=threshold, size=37 * 18))
    assert {(int(i), int(j)) for i, j in np.argwhere(sure)} <= found
    assert found <= {(int(i), int(j)) for i, j in np.argwhere(possible)}


def test_a_row_of_nan_is_in_no_pair(small_blocks):
    f = rows_with_copies(0, 37, 16, 12)
    f[5] = np.nan
    found = pairs_of(cj.near_duplicates(f, threshold=-1.01, size=37 * 18))
    assert found == {(i, j) for i in range(37) for j in range(i + 1, 37) if 5 not in (i, j)}


def test_pairs_of_one_group_are_left_out_and_all_cosines_count():
    f, g = rows_with_copies(0, 16, 8, 10), rows_with_copies(3, 16, 8, 10)
    group = np.array([0, 0, 1, 2, -1, 3, *range(4, 14)])
    tiling = Tiling(2, 2, 0)
    search = jax.jit(
        lambda *given: find_pairs(given[:2], given[:2], given[2], given[2], 0.1, tiling, sides=(8, 8), size=99).pairs
    )
    want = {
        pair
        for pair in plainly(f, f, 0.1, above=True)[0] & plainly(g, g, 0.1, above=True)[0]
        if group[pair[0]] != group[pair[1]] and min(group[list(pair)]) >= 0
    }
    assert pairs_of(search(f, g, group)) == want != set()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_may_be_sharded(kind):
    f = rows_with_copies(0, 32, 16, 12)
    mesh = jax.make_mesh((8,), ("data",), (kind,))
    placed = jax.device_put(f, jax.NamedSharding(mesh, jax.P("data")))
    assert pairs_of(cj.near_duplicates(placed, threshold=0.9, size=64)) == plainly(f, f, 0.9, above=True)[0]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_it_lowers(platform):
    rows = jax.ShapeDtypeStruct((4096, 64), np.float16)
    search = jax.jit(lambda f: cj.near_duplicates(f, threshold=0.95, size=1024))
    assert jax.export.export(search, platforms=[platform])(rows).platforms == (platform,)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("shapes", "size", "words"),
    [
        (((0, 4), None), 4, "image_emb is empty"),
        (((3, 4), (2, 5)), 4, "dimensions differ: images 4, target 5"),
        (((3, 4), None), 0, "size is 0, expected at least 1"),
        (((3,), None), 4, "expected floats of shape"),
    ],
)
def test_wrong_arguments(shapes, size, words):
    given = [None if shape is None else np.ones(shape, np.float32) for shape in shapes]
    with pytest.raises(ValueError, match=words):
        cj.near_duplicates(*given, threshold=0.9, size=size)
