"""Sorting uids within a bound of memory, against sorting them at once."""

from __future__ import annotations

import numpy as np
import pytest

from clipdata_jax.formats import uid_files, uids


@pytest.mark.parametrize("memory", [1 << 26, 1600, 0])
@pytest.mark.parametrize("high", [2**64, 50, 1])
def test_the_file_is_that_of_sorting_at_once(tmp_path, memory, high):
    rng = np.random.default_rng(0)
    halves = rng.integers(0, high, 900, np.uint64), rng.integers(0, 400, 900, np.uint64)
    uid = uids.join_halves(*halves)
    uids.write_subset(str(tmp_path / "want.npy"), uid)
    (tmp_path / "scratch").mkdir()
    sorter = uid_files.UidSorter(lambda: str(tmp_path / "scratch"), memory)
    for start in range(0, 900, 70):
        sorter.add(uid[start : start + 70])
    assert sorter.write(str(tmp_path / "got.npy")) == len(np.unique(uid))
    assert (tmp_path / "got.npy").read_bytes() == (tmp_path / "want.npy").read_bytes()


def test_no_uids_are_a_file_too(tmp_path):
    assert uid_files.UidSorter(lambda: str(tmp_path)).write(str(tmp_path / "got.npy")) == 0
    assert len(uids.read_subset(str(tmp_path / "got.npy"))) == 0
