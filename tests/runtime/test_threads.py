"""Results that threads compute ahead, in order."""

from __future__ import annotations

import threading

import pytest

from clipdata_jax.runtime import threads


def test_results_come_in_order_and_errors_in_their_place():
    assert list(threads.prefetch(lambda x: x * x, range(50), threads=3)) == [x * x for x in range(50)]
    results = threads.prefetch(lambda x: 1 // x, [1, 2, 0, 3], threads=2)
    assert [next(results), next(results)] == [1, 0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_more_is_begun_than_asked_for():
    begun, before = [], set(threading.enumerate())
    results = threads.prefetch(begun.append, range(100), threads=2, ahead=6)
    next(results)
    assert len(begun) <= 7
    results.close()
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if thread.name.startswith("prefetch")]


def test_items_are_yielded_late():
    made = []
    late = threads.in_flight((made.append(x) or x for x in range(9)), 2)
    assert next(late) == 0
    assert made == [0, 1, 2]
    assert [*late] == [*range(1, 9)]


def test_passes_are_prefetched_and_may_end_anywhere():
    begun = []

    def read(number):
        begun.append(number)
        return 100 // (number - 30)

    read_ahead = threads.PassPrefetcher(read, 40, threads=4)
    for end in (20, 30):
        assert [read_ahead(number) for number in range(end)] == [100 // (number - 30) for number in range(end)]
    with pytest.raises(ZeroDivisionError):
        read_ahead(30)
    assert read_ahead(31) == 100
    read_ahead.close()
    # Three are begun ahead of a pass that ends, and again behind the error: none is read twice otherwise.
    assert 20 + 32 <= len(begun) <= 23 + 34 + 4


def test_scattered_numbers_prefetch_nothing():
    begun = []
    read_ahead = threads.PassPrefetcher(begun.append, 100, threads=8)
    for number in (0, 5, 5, 9, 50, 2):
        read_ahead(number)
    read_ahead.close()
    assert begun == [0, 5, 5, 9, 50, 2]
