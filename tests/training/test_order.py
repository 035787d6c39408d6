"""The order of the pairs: a pure function, each epoch a permutation."""

import numpy as np
import pytest

from clipdata_jax.training import batch_rows


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
    assert rows.tolist() == [990, 299, 357, 329, 492, 865]


def test_rows_are_uniform():
    first = np.array([batch_rows(seed=seed, step=0, pairs=10, batch_size=1)[0] for seed in range(3000)])
    counts = np.bincount(first, minlength=10)
    assert np.sum((counts - 300) ** 2 / 300) < 27.9  # chi squared with 9 degrees, one in a thousand


def test_a_batch_larger_than_the_pool_is_refused():
    with pytest.raises(ValueError, match="batch_size is 24, expected 1 to 23"):
        batch_rows(seed=0, step=0, pairs=23, batch_size=24)
