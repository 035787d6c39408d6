"""Work that threads do in order."""

from __future__ import annotations

import pytest

from clipdata_jax.runtime import threads


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


def test_passes_are_begun_ahead_in_order_and_ended_anywhere():
    begun = []

    def read(number):
        begun.append(number)
        return 100 // (number - 30)

    ahead = threads.Ahead(read, 40, threads=4)
    for end in (20, 30):
        assert [ahead(number) for number in range(end)] == [100 // (number - 30) for number in range(end)]
    with pytest.raises(ZeroDivisionError):
        ahead(30)
    assert ahead(31) == 100
    ahead.close()
    assert 20 + 32 <= len(begun) <= 23 + 35  # none twice in a pass, and a few that nobody asked for


def test_who_asks_for_some_only_is_read_nothing_else():
    begun = []
    ahead = threads.Ahead(begun.append, 100, threads=8)
    for number in (0, 5, 5, 9, 50, 2):
        ahead(number)
    ahead.close()
    assert begun == [0, 5, 5, 9, 50, 2]
