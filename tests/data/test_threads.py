"""Work that threads do in order."""

from __future__ import annotations

import pytest

from clipdata_jax.data import threads


def test_results_come_in_order_and_errors_in_their_place():
    assert list(threads.in_order(lambda x: x * x, range(50), threads=3)) == [x * x for x in range(50)]
    results = threads.in_order(lambda x: 1 // x, [1, 2, 0, 3], threads=2)
    assert [next(results), next(results)] == [1, 0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_more_is_begun_than_a_few():
    begun = []
    next(threads.in_order(begun.append, range(100), threads=2, ahead=3))
    assert len(begun) <= 7
