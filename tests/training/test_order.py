"""The order of the pairs: a pure function, each epoch a permutation."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipdata_jax.training import batch_rows
from clipdata_jax.training.order import interleave, permute, share_out


def epoch(seed, number, pairs=23, batch_size=5):
    each = pairs // batch_size
    steps = range(number * each, (number + 1) * each)
    return [batch_rows(seed=seed, step=step, pairs=pairs, batch_size=batch_size) for step in steps]


def test_an_epoch_repeats_no_row_and_epochs_leave_out_different_ones():
    left_out = set()
    for number in range(8):
        rows = np.concatenate(epoch(0, number))
        assert len(np.unique(rows)) == 20
        assert rows.min() >= 0
        assert rows.max() < 23
        left_out.add(frozenset(range(23)) - frozenset(rows.tolist()))
    assert len(left_out) == 8


def test_order_is_pure_and_differs_by_seed_and_epoch():
    first = np.concatenate(epoch(3, 0))
    np.concatenate(epoch(4, 9))  # another call in between changes nothing
    np.testing.assert_array_equal(first, np.concatenate(epoch(3, 0)))
    assert (first != np.concatenate(epoch(3, 1))).any()
    assert (first != np.concatenate(epoch(4, 0))).any()


def test_order_is_this_one_forever():
    rows = batch_rows(seed=7, step=2, pairs=1000, batch_size=6)
    assert rows.tolist() == [982, 547, 387, 271, 673, 119]


def test_rows_are_uniform():
    first = np.array([batch_rows(seed=seed, step=0, pairs=10, batch_size=1)[0] for seed in range(1500)])
    counts = np.bincount(first, minlength=10)
    assert np.sum((counts - 150) ** 2 / 150) < 27.9  # chi squared with 9 degrees, one in a thousand


def test_a_batch_larger_than_the_pool_is_refused():
    with pytest.raises(ValueError, match="batch_size is 24, expected 1 to 23"):
        batch_rows(seed=0, step=0, pairs=23, batch_size=24)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 64, 1000, 65_537])
def test_permutations_are_one_to_one(size):
    places = permute(np.arange(size), size, seed=1, epoch=2)
    assert sorted(places.tolist()) == list(range(size))
    np.testing.assert_array_equal(permute(np.arange(size)[::-1], size, seed=1, epoch=2), places[::-1])


def test_permutations_of_three_are_equally_frequent():
    counts = collections.Counter(tuple(permute(np.arange(3), 3, seed=seed, epoch=0).tolist()) for seed in range(1200))
    assert len(counts) == 6
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 20.5  # 5 degrees, one in a thousand


def test_part_of_a_batch_is_that_part():
    options = {"seed": 1, "step": 5, "pairs": 40, "batch_size": 12}
    whole, some = batch_rows(**options), np.array([3, 4, 11])
    np.testing.assert_array_equal(batch_rows(**options, numbers=some), whole[some])
    drawn = batch_rows(**options, sampling="replacement")
    np.testing.assert_array_equal(batch_rows(**options, sampling="replacement", numbers=some), drawn[some])


def test_drawing_with_replacement_is_uniform():
    rows = batch_rows(seed=0, step=3, pairs=10, batch_size=3000, sampling="replacement")
    assert np.sum((np.bincount(rows, minlength=10) - 300) ** 2 / 300) < 27.9


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(1, 500))
def test_shares_add_up_and_are_within_one_of_the_weights(weights, batch_size):
    counts = share_out(weights, batch_size)
    assert sum(counts) == batch_size
    assert np.abs(np.array(counts) - np.array(weights) / np.sum(weights) * batch_size).max() < 1 + 1e-9


def test_sources_are_spread_evenly_over_a_batch():
    source, number = interleave([6, 2, 4])
    assert np.bincount(source[:6]).tolist() == [3, 1, 2]
    for i in range(3):
        assert number[source == i].tolist() == list(range([6, 2, 4][i]))
