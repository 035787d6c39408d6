"""How pools are cut: equal groups, equal cells, fair dealing, nothing that depends on devices or order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.data import hashing
from clipdata_jax.data.pool import Shard
from clipdata_jax.data.uids import join_halves
from clipdata_jax.pipeline import groups


def some_uids(rows: int, seed: int = 0) -> np.ndarray:
    halves = np.random.default_rng(seed).integers(0, 2**64, (2, rows), np.uint64)
    return join_halves(*halves)


def test_the_hash_is_fixed_for_ever_and_spreads():
    assert hashing.mix(0, 1, 2).item() == hashing.mix(0, np.uint64(1), np.array([2], np.uint64))[0].item()
    assert hashing.mix(1, 2).item() == 0xBCD9DBB49673066B and hashing.mix(1, 2) != hashing.mix(2, 1)
    values = hashing.mix(0, np.arange(10_000, dtype=np.uint64))
    assert len(np.unique(values)) == 10_000
    counts = np.bincount((values >> np.uint64(60)).astype(int))
    assert len(counts) == 16 and counts.min() > 500


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 3000), batch=st.integers(1, 500), m=st.integers(1, 6), seed=st.integers(0, 5))
def test_every_row_has_its_own_slot_and_batches_are_equal(rows, batch, m, seed):
    planned = groups.plan_groups(rows, batch_size=batch, group=m)
    assert sum(group.rows for group in planned) == rows
    assert max(group.rows for group in planned) - min(group.rows for group in planned) <= 1
    uid = some_uids(rows, seed)
    for index, group in enumerate(planned[:3]):
        assert group.cells % group.batches == 0
        slots = groups.slots_of_rows(uid[group.start : group.start + group.rows], group, seed)
        assert len(np.unique(slots)) == group.rows and slots.max() < group.cells * group.slots
        dealt = groups.deal_cells(group, repeats=3, seed=seed, name=index)
        assert dealt.shape == (3 if group.batches > 1 else 1, group.cells)
        for batch_of_cell in dealt:
            sizes = np.bincount(batch_of_cell[slots // group.slots], minlength=group.batches)
            assert sizes.max() - sizes.min() <= 1


def test_batches_are_about_the_size_asked_for():
    (group,) = groups.plan_groups(1_000, batch_size=32_768, group=4)
    assert (group.batches, group.cells, group.rows) == (1, 1, 1_000)
    planned = groups.plan_groups(131_072, batch_size=4_096, group=4)
    assert {(group.rows, group.batches, group.cells) for group in planned} == {(16_384, 4, 64)}


def test_a_cell_depends_on_the_rows_not_on_their_order():
    uid = some_uids(640)
    (group,) = groups.plan_groups(640, batch_size=160, group=4)
    order = np.random.default_rng(0).permutation(640)
    slots = groups.slots_of_rows(uid, group, 7)
    np.testing.assert_array_equal(groups.slots_of_rows(uid[order], group, 7), slots[order])
    assert np.any(groups.slots_of_rows(uid, group, 8) != slots)


def test_divisions_differ_and_any_two_cells_meet_as_often_as_chance_has_it():
    (group,) = groups.plan_groups(6_400, batch_size=1_600, group=4)
    dealt = groups.deal_cells(group, repeats=400, seed=0, name=0)
    together = (dealt[:, :, None] == dealt[:, None, :]).mean(axis=0)
    off = together[~np.eye(group.cells, dtype=bool)]
    assert abs(off.mean() - 15 / 63) < 1e-9  # 15 of the other 63 cells, in every division
    assert np.abs(off - 15 / 63).max() < 5 * np.sqrt(15 / 63 / 400)
    assert np.any(groups.deal_cells(group, repeats=2, seed=0, name=1) != dealt[:2])


@pytest.mark.parametrize(
    ("sizes", "want"),
    [([5], [1]), ([100, 100], [1, 1]), ([10, 10, 100, 7], [4]), ([60, 60, 60], [3]), ([100, 10], [2])],
)
def test_small_shards_are_joined_until_a_group_is_full(sizes, want):
    shards = [Shard(str(i), "", "", "", rows) for i, rows in enumerate(sizes)]
    units = groups.plan_units(shards, 100)
    assert [len(unit) for unit in units] == want
    assert [shard for unit in units for shard in unit] == shards
