"""Sets and multisets of uids against Python's own; cutting, checking and sorting of arrays."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.formats import uid_sets, uids

halves = st.integers(0, 2) | st.integers(0, 2**64 - 1)
uid_lists = st.lists(st.tuples(halves, halves), max_size=30)
several = st.lists(uid_lists, min_size=1, max_size=4)


def as_sorted(values) -> np.ndarray:
    return np.array(sorted(values), uids.DTYPE)


def joined(parts) -> list[tuple[int, int]]:
    return [uid for part in parts for uid in part.tolist()]


PLAIN = {
    "union": (set.union, Counter.__add__),
    "intersect": (set.intersection, Counter.__and__),
    "minus": (set.difference, Counter.__sub__),
}


@settings(max_examples=150, deadline=None)
@given(several, st.sampled_from(sorted(PLAIN)), st.integers(1, 9))
def test_operations_are_pythons(lists, operation, rows):
    arrays = [as_sorted(values) for values in lists]
    of_sets, of_counters = PLAIN[operation]
    got = joined(uid_sets.combine(operation, part) for part in uid_sets.parts(arrays, rows))
    assert got == sorted(reduce(of_sets, map(set, lists)))
    got = joined(uid_sets.combine(operation, part, multiset=True) for part in uid_sets.parts(arrays, rows))
    assert got == sorted(reduce(of_counters, map(Counter, lists)).elements())


@settings(max_examples=100, deadline=None)
@given(several, st.booleans(), st.integers(1, 9))
def test_overlaps_are_pythons(lists, multiset, rows):
    found = [uid_sets.overlap(part, multiset=multiset) for part in uid_sets.parts(list(map(as_sorted, lists)), rows)]
    plain = [Counter(values) if multiset else Counter(set(values)) for values in lists]
    want = [[(one & other).total() for other in plain] for one in plain]
    assert sum(part.both for part in found).tolist() == want
    assert sum(part.any for part in found) == len(set().union(*lists))
    assert sum(part.all for part in found) == len(set.intersection(*map(set, lists)))


@settings(max_examples=100, deadline=None)
@given(several, st.integers(1, 9))
def test_parts_hold_every_uid_once(lists, rows):
    arrays = [as_sorted(values) for values in lists]
    parts = list(uid_sets.parts(arrays, rows))
    for i, array in enumerate(arrays):
        assert joined(part[i] for part in parts) == array.tolist()
    inside = [set(joined(part)) for part in parts]
    assert sum(map(len, inside)) == len(set().union(*lists))


def test_parts_are_about_as_large_as_asked():
    rng = np.random.default_rng(0)
    arrays = [as_sorted(map(tuple, rng.integers(0, 2**64, (n, 2), dtype=np.uint64).tolist())) for n in (9000, 70)]
    sizes = [sum(map(len, part)) for part in uid_sets.parts(arrays, 1000)]
    assert sum(sizes) == 9070
    assert max(sizes) <= 2000
    assert 8 <= len(sizes) <= 11


@settings(max_examples=150, deadline=None)
@given(uid_lists)
def test_sorting_is_pythons(values):
    assert uids.sort(np.array(values, uids.DTYPE)).tolist() == sorted(values)


@pytest.mark.parametrize("multiset", [False, True])
@pytest.mark.parametrize("memory", [1 << 26, 1600, 0])
@pytest.mark.parametrize("high", [2**64, 50, 1])
def test_external_sort_is_pythons(tmp_path, monkeypatch, high, memory, multiset):
    monkeypatch.setattr(uid_sets, "_PART", 64)
    monkeypatch.setattr(uid_sets, "_SLICE", 4)
    rng = np.random.default_rng(0)
    uid = uids.join_halves(rng.integers(0, high, 900, np.uint64), rng.integers(0, 400, 900, np.uint64))
    sorter = uid_sets.UidSorter(lambda: str(tmp_path), multiset=multiset, memory=memory)
    for start in range(0, 900, 70):
        sorter.add(uid[start : start + 70])
    assert joined(sorter.blocks()) == sorted(uid.tolist() if multiset else set(uid.tolist()))
    assert list(tmp_path.iterdir()) == []


def test_external_sort_of_nothing_is_empty():
    (block,) = uid_sets.UidSorter(lambda: "no folder is needed").blocks()
    assert block.shape == (0,)
    assert block.dtype == uids.DTYPE


@settings(max_examples=100, deadline=None)
@given(uid_lists, st.booleans())
def test_order_is_checked_across_blocks(values, in_order):
    values = sorted(values) if in_order else values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uid_sets, "_BLOCK", 4)
        got = uid_sets.check_order(np.array(values, uids.DTYPE))
    pairs = list(itertools.pairwise(values))
    falls = [row for row, (one, other) in enumerate(pairs, 1) if other < one]
    same = [row for row, (one, other) in enumerate(pairs, 1) if other == one]
    assert got == (falls[0] if falls else None, len(same), same[0] if same else None)
