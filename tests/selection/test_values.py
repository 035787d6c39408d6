"""Ranks, arithmetic on scores, and draws."""

from __future__ import annotations

import numpy as np

from clipdata_jax import selection
from clipdata_jax.formats import uids
from clipdata_jax.selection import column, parse, pools, rank, ranking, top


def made_pool(rows, seed=0):
    rng = np.random.default_rng(seed)
    uid = uids.join_halves(*rng.integers(0, 2**64, (2, rows), dtype=np.uint64))
    return {name: rng.normal(size=rows).astype(np.float32) for name in "ab"}, uid


def test_ranks_are_shares_of_the_pairs_with_a_score():
    uid = np.zeros(6, uids.DTYPE)
    columns = {"a": np.array([5, np.nan, 1, 1, np.inf, 9], np.float32)}
    with pools.ArrayPool(columns, uid) as pool:
        got = ranking.of_pool(pool, column("a").of)
    np.testing.assert_array_equal(got, [3 / 4, np.nan, 1.5 / 4, 1.5 / 4, np.nan, 1])
    # A rank is of the whole pool, whatever stands before it.
    assert (top("a", 0.5) >> (rank("a") < 0.7)).keep(columns, uid).tolist() == [False, False, True, False] + [False] * 2


def test_expressions_count_what_they_can_not_tell():
    uid = np.array([(0, i) for i in range(5)], uids.DTYPE)
    columns = {"a": np.array([1, np.nan, 0, 3, 1], np.float32), "b": np.array([0, 0, 0, np.inf, 2], np.float32)}
    with pools.ArrayPool(columns, uid) as pool:
        work = top(column("a") / column("b"), 1).apply(pool)
        assert np.concatenate([mask for _, mask in work]).tolist() == [False] * 4 + [True]
    assert work.without_score["a / b"] == {"null": 1, "infinite": 3}
    assert work.without_score["a"] == {"null": 1, "infinite": 0}


def test_arithmetic_is_done_in_float64():
    uid = np.array([(0, i) for i in range(3)], uids.DTYPE)
    columns = {"a": np.float32([1, 1, 1]), "b": np.float32([0, 1e-12, 0])}
    assert parse("top(a + b, 0.34)").keep(columns, uid).tolist() == [False, True, False]
    assert parse("top(2 - a - b * -3 / 2, 0.34)").keep(columns, uid).tolist() == [False, True, False]
    assert np.float32(2) * column("a") == 2 * column("a") == parse("(2.0 * a > 1)").left
    assert parse("(-a - -2 >= 0.5)") == (-column("a") - -2 >= 0.5)


def test_at_most_is_an_even_draw_that_smaller_numbers_share():
    columns, uid = made_pool(4000)
    first = (top("a", 0.5) >> selection.at_most(500)).keep(columns, uid)
    more = (top("a", 0.5) >> selection.at_most(1000)).keep(columns, uid)
    assert first.sum() == 500
    assert more.sum() == 1000
    assert not (first & ~more).any()
    half = top("a", 0.5).keep(columns, uid)
    assert (parse("top(a, 0.5) >> at_most(2_000)").keep(columns, uid) == half).all()
    # Even: of 2,000 pairs in the order of their scores, the mean place is 999.5, give or take 26 / 2.
    places = np.argsort(np.argsort(columns["a"][half]))[more[half]]
    assert abs(places.mean() - 999.5) < 4 * 13


def test_a_sample_follows_its_weights():
    uid = made_pool(40_000)[1]
    kinds = np.arange(40_000) % 2
    columns = {"a": kinds.astype(np.float32)}
    # exp(1 / 0.5) = 7.39 to 1; few enough are drawn that drawing without replacement hardly matters.
    for seed in (0, 1):
        drawn = selection.sample("a", 0.05, temperature=0.5, seed=seed).keep(columns, uid)
        assert drawn.sum() == 2000
        share = kinds[drawn].mean()
        assert abs(share - 0.878) < 4 * np.sqrt(0.878 * 0.122 / 2000) + 0.005
    other = selection.sample("a", 0.05, temperature=0.5).keep(columns, uid)
    assert 0 < (drawn & other).sum() < 400
    assert selection.sample(1, 100).keep({}, uid).sum() == 100
    cold = selection.sample("a", 20_000, temperature="1e-3").keep(columns, uid)
    assert (cold == top("a", 0.5).keep(columns, uid)).all()


def test_a_number_means_the_float32_that_is_stored_for_it():
    uid = np.zeros(1, uids.DTYPE)
    columns = {"a": np.array([0.3], np.float32)}
    assert column("a").equals(0.3).keep(columns, uid).all()
    assert not column("a").differs(0.3).keep(columns, uid).any()
    assert not (column("a") > 0.3).keep(columns, uid).any()
    assert (column("a") < 1e300).keep(columns, uid).all()
