"""The order of sources that are read one after the other."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.training.block_order import BlockOrder


@settings(max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 24), st.integers(1, 50), st.integers(0, 9))
def test_an_epoch_repeats_no_row_and_leaves_out_less_than_a_batch(counts, batch_size, window, seed):
    batch_size = min(batch_size, sum(counts))
    order = BlockOrder(np.array(counts), batch_size=batch_size, window=window, seed=seed)
    steps = sum(counts) // batch_size
    for epoch in (0, 1):
        rows = np.concatenate([order.rows(step) for step in range(epoch * steps, (epoch + 1) * steps)])
        assert len(set(rows.tolist())) == steps * batch_size
        assert 0 <= rows.min() <= rows.max() < sum(counts)


def test_rows_come_from_neighbours_but_for_the_window():
    order = BlockOrder(np.full(64, 100), batch_size=32, window=320, seed=0)
    assert order.lanes == 32
    rows = np.stack([order.rows(step) for step in range(200)])
    # A lane's 200 rows are two sources or parts of three, in windows of 10.
    assert max(len(set((rows[:, lane] // 100).tolist())) for lane in range(32)) <= 3
    windows = rows.reshape(20, 10, 32)
    assert (np.ptp(windows, axis=1) == 9).mean() > 0.9
    assert (np.diff(windows, axis=1) != 1).any()


def test_the_order_is_this_one_for_ever():
    order = BlockOrder(np.array([5, 4, 6]), batch_size=6, window=4, seed=1)
    assert order.rows(0).tolist() == [3, 2, 1, 0, 4, 9]
