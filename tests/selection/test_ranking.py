"""The exact choice of the first rows, against sorting all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.formats import uids
from clipdata_jax.selection import ranking

small = st.integers(0, 3)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(small, small, small, st.booleans()), min_size=1, max_size=40), count=st.integers(0, 45))
def test_first_is_what_sorting_gives(rows, count):
    a, b, c, among = (np.array(values) for values in zip(*rows, strict=True))
    order = sorted((i for i in range(len(rows)) if among[i]), key=lambda i: (a[i], b[i], c[i], i))
    got = ranking.first((a.astype(np.float32), b.astype(np.uint64), c.astype(np.uint64)), count, among)
    assert got.dtype == bool
    assert np.flatnonzero(got).tolist() == sorted(order[:count])


def test_first_of_no_rows_is_none():
    assert ranking.first((np.empty(0),), 3, np.empty(0, bool)).shape == (0,)


def test_negative_zero_ties_with_zero():
    values = np.array([0.0, -0.0, 0.0, -0.0], np.float32)
    got = ranking.first((values, np.array([3, 2, 1, 0], np.uint64)), 2, np.ones(4, bool))
    assert got.tolist() == [False, False, True, True]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(small, small), max_size=30))
def test_repeats_are_rows_less_distinct_uids(pairs):
    high, low = np.array(pairs, np.uint64).reshape(-1, 2).T
    assert ranking.count_repeats(uids.join_halves(high, low)) == len(pairs) - len(set(pairs))
