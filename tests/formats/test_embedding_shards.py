"""Rows that aren't unit vectors."""

import numpy as np
import pytest

from clipdata_jax.formats.embedding_shards import find_bad_rows


def test_float16_norms_equal_float32_norms():
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    rows = np.zeros((1 << 16, 2), np.float16)
    rows[:, 0], rows[:, 1] = bits, 0.5
    with np.errstate(all="ignore"):
        norm = np.linalg.norm(rows.astype(np.float32), axis=1)
    want = np.where(~np.isfinite(norm), 1, np.where(np.abs(norm - 1) > 2e-3, 3, 0))
    _, bad = find_bad_rows([rows])
    np.testing.assert_array_equal(bad, want)
    assert sorted(set(bad.tolist())) == [0, 1, 3]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f2"])
@pytest.mark.parametrize("normalize", [False, True])
def test_bad_rows_are_found(dtype, normalize):
    rows = np.zeros((1030, 4), dtype)  # more than are looked at at once
    rows[:, 1] = 1
    rows[3] = 0
    rows[600, 2] = np.nan
    rows[601, 2] = -np.inf
    rows[1029] = 60_000
    got, bad = find_bad_rows([rows[:, ::-1], rows], normalize=normalize)
    want = {3: 2, 600: 1, 601: 1, 1029: 0 if normalize else 3}
    assert {row: int(bad[row]) for row in want} == want
    assert bad.sum() == sum(want.values())
    if normalize:
        assert got[1].dtype == np.result_type(rows.dtype, np.float32)
        np.testing.assert_allclose(got[1][1029].astype(float), 0.5, atol=1e-7)
        unit, _ = find_bad_rows([rows[:3]], normalize=True)
        assert unit[0].dtype == rows.dtype
    else:
        assert got[1].dtype == rows.dtype
