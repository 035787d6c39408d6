"""The search for near-duplicates and their groups, against every pair compared in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.formats import uids
from clipdata_jax.scoring import duplicate_groups, duplicate_search
from clipdata_jax.scoring.duplicate_search import Among, Components, Criterion, join_near, near_targets_of

D = 16


def emb_with_copies(seed: int, rows: int, copies: int, noise: float = 0.02) -> np.ndarray:
    random = np.random.default_rng(seed)
    emb = random.normal(size=(rows, D))
    emb[random.permutation(rows)[:copies]] = emb[random.integers(rows, size=copies)]
    emb += noise * random.normal(size=emb.shape)
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float16)


def criterion_of(*emb: np.ndarray, threshold: float, bad=()) -> Criterion:
    stacked = np.stack(emb, axis=1)
    good = ~np.isin(np.arange(len(stacked)), bad)
    squares = np.einsum("nkd,nkd->nk", stacked.astype(float), stacked.astype(float))[good]
    return Criterion(stacked, tuple(range(len(emb))), good, threshold, (squares.min(), squares.max()))


def cosines_of(criterion: Criterion) -> np.ndarray:
    """Every pair's smallest cosine in float64, in which those of float16 rows are exact; -inf where none counts."""
    least = np.where(criterion.good[:, None] & criterion.good, np.inf, -np.inf)
    for kind in criterion.kinds:
        emb = criterion.emb[:, kind].astype(float)
        square = (emb * emb).sum(axis=1)
        least = np.minimum(least, emb @ emb.T / np.sqrt(square[:, None] * square))
    np.fill_diagonal(least, -np.inf)
    return least


def near_pairs(criterion: Criterion) -> np.ndarray:
    return cosines_of(criterion) >= criterion.threshold


def nearest_other(criterion: Criterion) -> np.ndarray:
    return cosines_of(criterion).max(axis=1)


def plain_roots(near: np.ndarray) -> np.ndarray:
    """The lowest row that each row is connected with, by spreading it until nothing changes."""
    roots = np.arange(len(near))
    while True:
        lowest = np.where(near, roots, len(near)).min(axis=1, initial=len(near))
        if (lowest >= roots).all():
            return roots
        roots = np.minimum(roots, lowest)


def roots_of(components: Components) -> np.ndarray:
    return components.roots(np.arange(len(components.parent)))


@pytest.fixture(scope="module")
def small_tiles():
    """Steps of two tiles of eight rows, so that a few rows are many steps, and few pairs fill a step's room."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BLOCK": 16, "_SIDE": 8, "_SMALL": 8, "_SMALL_SIDE": 4, "_SIZE": 32}.items():
            patch.setattr(duplicate_search, name, value)
        patch.setattr(duplicate_groups, "_BLOCK", 4)
        yield


def search(criterion: Criterion, nearest: np.ndarray | None = None) -> np.ndarray:
    rows = len(criterion.emb)
    components, compared = Components(rows), []
    nearest = np.full(rows, -np.inf, np.float32) if nearest is None else nearest
    steps = [
        Among(np.arange(rows), range(start, min(start + duplicate_search.BLOCK, rows)), components, nearest)
        for start in range(0, rows, duplicate_search.BLOCK)
    ]
    join_near(criterion, steps, compared.append)
    assert sum(compared) == rows * (rows - 1) // 2
    return roots_of(components)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), rows=st.integers(17, 60), threshold=st.sampled_from([0.99, 0.9, 0.6, 0.3, -0.2]))
def test_the_groups_are_those_of_all_pairs(small_tiles, seed, rows, threshold):
    criterion = criterion_of(emb_with_copies(seed, rows, rows // 3), threshold=threshold, bad=(3, 9))
    nearest = np.full(rows, -np.inf, np.float32)
    np.testing.assert_array_equal(search(criterion, nearest), plain_roots(near_pairs(criterion)))
    np.testing.assert_allclose(nearest, nearest_other(criterion), atol=1e-6)


def test_both_embeddings_must_be_near(small_tiles):
    images, texts = emb_with_copies(0, 50, 20), emb_with_copies(1, 50, 20)
    texts[:25] = images[:25]
    criterion = criterion_of(images, texts, threshold=0.9)
    want, nearest = plain_roots(near_pairs(criterion)), np.full(50, -np.inf, np.float32)
    assert 5 < len(np.unique(want)) < 50
    np.testing.assert_array_equal(search(criterion, nearest), want)
    np.testing.assert_allclose(nearest, nearest_other(criterion), atol=1e-6)


def test_rows_that_are_all_the_same_are_one_group_and_few_pairs(small_tiles, monkeypatch):
    criterion, decided = criterion_of(np.tile(emb_with_copies(0, 1, 0), (60, 1)), threshold=1), []
    real = Criterion.are_near
    monkeypatch.setattr(Criterion, "are_near", lambda *given: decided.append(len(given[1])) or real(*given))
    assert not search(criterion).any()
    assert sum(decided) < 4 * 60, "of 1,770 pairs"


def test_pairs_at_the_threshold_are_decided_exactly(small_tiles):
    emb = emb_with_copies(0, 40, 20)
    exact = emb.astype(float) @ emb.astype(float).T
    squares = np.diag(exact)
    cosines = exact / np.sqrt(squares[:, None] * squares)
    for threshold in np.sort(cosines[np.triu_indices(40, 1)])[-4:]:
        for least in (threshold, np.nextafter(threshold, 2)):
            criterion = criterion_of(emb, threshold=float(least))
            np.testing.assert_array_equal(search(criterion), plain_roots(near_pairs(criterion)))


def test_the_same_groups_on_any_number_of_devices(small_tiles, monkeypatch):
    criterion = criterion_of(emb_with_copies(5, 60, 30), threshold=0.7)
    devices, found = jax.devices(), []
    for count in (1, 2, 8):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: devices[:count])
        nearest = np.full(60, -np.inf, np.float32)
        found.append((search(criterion, nearest), nearest))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def plain_representatives(near: np.ndarray, order: np.ndarray, *, greedy: bool) -> np.ndarray:
    """One row after another in order: the first of those before it, all or those that stay, that is near."""
    found = np.arange(len(near))
    for at, row in enumerate(order):
        for before in order[:at]:
            if near[row, before] and not (greedy and found[before] != before):
                found[row] = found[before]
                break
    return found


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), rule=st.sampled_from(["components", "greedy", "semdedup"]))
def test_representatives_are_those_of_the_plain_loop(small_tiles, seed, rule):
    criterion = criterion_of(emb_with_copies(seed, 40, 25, noise=0.2), threshold=0.8)
    random = np.random.default_rng(seed)
    score = random.integers(4, size=40).astype(float)
    score[random.integers(40, size=5)] = np.nan
    uid = uids.from_hex([f"{n:032x}" for n in random.permutation(40)])
    near = near_pairs(criterion)
    order = np.lexsort((uid["f1"], uid["f0"], -np.nan_to_num(score, nan=-1)))
    roots = plain_roots(near)
    if rule == "components":
        want = np.array([next(row for row in order if roots[row] == root) for root in roots])
    else:
        want = plain_representatives(near, order, greedy=rule == "greedy")
    members = np.flatnonzero(np.bincount(roots, minlength=40)[roots] > 1)
    found = duplicate_groups.group(criterion, members, roots[members], score[members], uid[members], rule)
    got = np.arange(40)
    got[found.row] = found.representative
    np.testing.assert_array_equal(got, want)
    assert (np.bincount(want, minlength=40)[found.representative] > 1).all()
    np.testing.assert_array_equal(found.cosine, criterion.cosines(found.row, found.representative))
    assert set(found.dropped) == set(np.flatnonzero(want != np.arange(40)))


def test_rows_near_a_target_set(small_tiles):
    emb = emb_with_copies(0, 40, 0)
    one, other = emb_with_copies(1, 9, 0), emb_with_copies(2, 5, 0)
    one[[2, 7]], other[4] = emb[[30, 11]], emb[11]
    criterion = criterion_of(emb, threshold=0.95, bad=(30,))
    first, second = near_targets_of(criterion, np.arange(40), [one, other])
    assert (first.row.tolist(), first.target_row.tolist(), first.cosine.tolist()) == ([11], [7], [1.0])
    assert (second.row.tolist(), second.target_row.tolist()) == ([11], [4])
    loose = criterion_of(emb, threshold=0.5)
    (found,) = near_targets_of(loose, np.arange(40), [one])
    f, t = emb.astype(float), one.astype(float)
    cos = f @ t.T / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(t, axis=1)
    np.testing.assert_array_equal(found.row, np.flatnonzero(cos.max(axis=1) >= 0.5))
    np.testing.assert_allclose(found.cosine, cos.max(axis=1)[found.row], atol=1e-3)
