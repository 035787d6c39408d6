"""How pools are cut: equal groups, equal cells, fair dealing, nothing that depends on devices or order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.formats import hashing
from clipdata_jax.formats.embedding_shards import EmbeddingShard
from clipdata_jax.formats.uids import join_halves
from clipdata_jax.scoring import groups, reference_division

pytestmark = pytest.mark.optimized


def some_uids(rows: int, seed: int = 0) -> np.ndarray:
    halves = np.random.default_rng(seed).integers(0, 2**64, (2, rows), np.uint64)
    return join_halves(*halves)


def test_the_hash_is_fixed_for_ever_and_spreads():
    assert hashing.mix(0, 1, 2).item() == hashing.mix(0, np.uint64(1), np.array([2], np.uint64))[0].item()
    assert hashing.mix(1, 2).item() == 0xBCD9DBB49673066B
    assert hashing.mix(1, 2) != hashing.mix(2, 1)
    values = hashing.mix(0, np.arange(10_000, dtype=np.uint64))
    assert len(np.unique(values)) == 10_000
    counts = np.bincount((values >> np.uint64(60)).astype(int))
    assert len(counts) == 16
    assert counts.min() > 500


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3000),
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=3, unique=True),
    m=st.integers(1, 6),
    seed=st.integers(0, 5),
    mixed=st.booleans(),
)
def test_every_row_has_its_own_slot_and_batches_are_equal(rows, sizes, m, seed, mixed):
    planned = groups.plan_groups(rows, batch_sizes=sizes, group=m)
    assert sum(group.rows for group in planned) == rows
    assert max(group.rows for group in planned) - min(group.rows for group in planned) <= 1
    uid = some_uids(rows, seed)
    rows_of = groups.rows_of_groups(uid, planned, seed=seed, mixed=mixed)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows_of)), np.arange(rows))
    for index, (group, at) in enumerate(list(zip(planned, rows_of, strict=True))[:3]):
        slots = groups.slots_of_rows(uid[at], group, seed)
        assert len(np.unique(slots)) == group.rows
        assert slots.max() < group.cells * group.slots
        dealt = groups.deal_cells(group, repeats=3, seed=seed, name=index)
        assert dealt.shape == (len(sizes), 3 if max(group.batches) > 1 else 1, group.cells)
        for batches, divisions in zip(group.batches, dealt, strict=True):
            assert group.cells % batches == 0
            for batch_of_cell in divisions:
                held = np.bincount(batch_of_cell[slots // group.slots], minlength=batches)
                assert len(held) == batches
                assert held.max() - held.min() <= 1


def test_batches_are_about_the_size_asked_for():
    (group,) = groups.plan_groups(1_000, batch_sizes=[32_768], group=4)
    assert (group.batches, group.cells, group.rows) == ((1,), 1, 1_000)
    planned = groups.plan_groups(131_072, batch_sizes=[4_096], group=4)
    assert {(group.rows, group.batches, group.cells) for group in planned} == {(16_384, (4,), 64)}


@pytest.mark.parametrize(
    ("rows", "sizes", "batches", "cells"),
    [
        (131_072, [32_768, 16_384], (4, 8), 64),  # no more cells than the largest takes alone
        (131_072, [2_048, 32_768], (64, 4), 256),  # a sixteenth of it, of 4 cells
        (131_072, [32_768, 21_845], (4, 6), 72),
        (126_473, [32_768, 16_384, 8_192], (4, 8, 16), 64),  # a quarter of DataComp's files
        (1_000, [32_768, 256], (1, 4), 16),
        (3, [2, 1], (2, 2), 2),  # fewer rows than cells
    ],
)
def test_several_batch_sizes_are_made_of_the_same_cells(rows, sizes, batches, cells):
    (group,) = groups.plan_groups(rows, batch_sizes=sizes, group=4)
    assert (group.batches, group.cells) == (batches, cells)


def test_what_the_sizes_came_to_is_described():
    told = groups.describe([1_000, 300], batch_sizes=[100, 50], group=4)
    assert told["count"] == 3
    assert told["sizes"] == [
        {"batch_size": 100, "batches": 13, "effective": [100, 100]},
        {"batch_size": 50, "batches": 26, "effective": [50, 50]},
    ]
    told = reference_division.describe([1_000, 30], batch_sizes=[300])
    assert told == {"count": 2, "sizes": [{"batch_size": 300, "batches": 5, "effective": [30, 300]}]}


def test_a_cell_depends_on_the_rows_not_on_their_order():
    uid = some_uids(640)
    (group,) = groups.plan_groups(640, batch_sizes=[160], group=4)
    order = np.random.default_rng(0).permutation(640)
    slots = groups.slots_of_rows(uid, group, 7)
    np.testing.assert_array_equal(groups.slots_of_rows(uid[order], group, 7), slots[order])
    assert np.any(groups.slots_of_rows(uid, group, 8) != slots)


def test_divisions_differ_and_any_two_cells_meet_as_often_as_chance_has_it():
    (group,) = groups.plan_groups(6_400, batch_sizes=[1_600], group=4)
    (dealt,) = groups.deal_cells(group, repeats=400, seed=0, name=0)
    together = (dealt[:, :, None] == dealt[:, None, :]).mean(axis=0)
    off = together[~np.eye(group.cells, dtype=bool)]
    assert abs(off.mean() - 15 / 63) < 1e-9  # 15 of the other 63 cells, in every division
    assert np.abs(off - 15 / 63).max() < 5 * np.sqrt(15 / 63 / 400)
    assert np.any(groups.deal_cells(group, repeats=2, seed=0, name=1)[0] != dealt[:2])


@pytest.mark.parametrize(
    ("sizes", "want"),
    [([5], [1]), ([100, 100], [1, 1]), ([10, 10, 100, 7], [4]), ([60, 60, 60], [3]), ([100, 10], [2])],
)
def test_small_shards_are_joined_until_a_group_is_full(sizes, want):
    shards = [EmbeddingShard(str(i), "", "", "", rows) for i, rows in enumerate(sizes)]
    units = groups.plan_units(shards, 100)
    assert [len(unit) for unit in units] == want
    assert [shard for unit in units for shard in unit] == shards


def test_shards_of_a_topic_are_read_so_many_at_a_time():
    shards = [EmbeddingShard(str(i), "", "", "", 100) for i in range(7)]
    assert [len(unit) for unit in groups.plan_units(shards, 100, together=3)] == [3, 4]
    assert [len(unit) for unit in groups.plan_units(shards, 400, together=3)] == [7]


def test_mixed_rows_are_dealt_by_seed_and_uid_alone():
    uid = some_uids(1_000)
    planned = groups.plan_groups(1_000, batch_sizes=[50], group=5)
    first, *_ = groups.rows_of_groups(uid, planned, seed=3, mixed=True)
    order = np.random.default_rng(0).permutation(1_000)
    shuffled, *_ = groups.rows_of_groups(uid[order], planned, seed=3, mixed=True)
    np.testing.assert_array_equal(order[shuffled], first)
    assert 30 < (first < 250).sum() < 100  # a quarter of each quarter
    assert np.any(groups.rows_of_groups(uid, planned, seed=4, mixed=True)[0] != first)
    np.testing.assert_array_equal(groups.rows_of_groups(uid, planned, seed=3, mixed=False)[1], np.arange(250, 500))
