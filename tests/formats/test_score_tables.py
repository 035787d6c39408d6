"""Score tables: parts on disk, joined by name and position."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.formats import score_tables, uids


def make(folder, sizes, names, seed=0):
    folder.mkdir()
    for index, rows in enumerate(sizes):
        rng = np.random.default_rng([seed, index])
        uid = uids.join_halves(np.arange(rows, dtype=np.uint64), np.full(rows, index, np.uint64))
        part = score_tables.part_bytes(uid, {name: rng.normal(size=rows) for name in names})
        (folder / f"{index:03d}.parquet").write_bytes(part)
    return str(folder)


def test_parts_are_deterministic(tmp_path):
    uid = np.array([(1, 2), (3, 4)], uids.DTYPE)
    columns = {"score": np.array([0.5, 0.25]), "count": np.array([3, 4])}
    data = score_tables.part_bytes(uid, columns, np.array([False, True]))
    assert data == score_tables.part_bytes(uid, columns, np.array([False, True]))
    table = pq.read_table(pa.BufferReader(data))
    assert [str(field.type) for field in table.schema] == ["uint64", "uint64", "float", "int32"]
    assert table["score"].to_pylist() == [0.5, None]
    assert table["uid_lo"].to_pylist() == [2, 4]


def test_null_is_nan_and_infinite_stays(tmp_path):
    uid = np.zeros(3, uids.DTYPE)
    (tmp_path / "0.parquet").write_bytes(
        score_tables.part_bytes(uid, {"a": np.array([1, np.inf, 2])}, np.array([False, False, True]))
    )
    _, columns = score_tables.open_tables([str(tmp_path)]).read(["a"])
    assert columns["a"].dtype == np.float32
    np.testing.assert_array_equal(columns["a"], [1, np.inf, np.nan])


def test_tables_of_one_pool_join(tmp_path):
    a = make(tmp_path / "a", [4, 0, 3], ["x"])
    b = make(tmp_path / "b", [4, 0, 3], ["y", "x"], seed=1)
    table = score_tables.open_tables([a, b])
    assert (len(table), table.parts, table.rows) == (7, ("000", "001", "002"), (4, 0, 3))
    assert dict(table.columns) == {"x": a, "y": b}
    uid, columns = table.read(["y", "x"])
    assert uid.tolist() == [(i, 0) for i in range(4)] + [(i, 2) for i in range(3)]
    np.testing.assert_array_equal(columns["x"], score_tables.open_tables([a]).read(["x"])[1]["x"])
    parts = list(table.iterate(["y"]))
    assert [part[0] for part in parts] == ["000", "001", "002"]
    np.testing.assert_array_equal(np.concatenate([part[2]["y"] for part in parts]), columns["y"])


def test_shared_columns_are_ambiguous(tmp_path):
    a, b = make(tmp_path / "a", [4], ["x", "y"]), make(tmp_path / "b", [4], ["x", "z"], seed=1)
    table = score_tables.open_tables([a, b])
    table.check_shared_names(["y", "z"])
    with pytest.raises(InputError, match=rf"column 'x' is in {a} and in {b}"):
        table.check_shared_names(["y", "x"])


def test_parts_with_other_columns_are_refused(tmp_path):
    a, b = make(tmp_path / "a", [4, 4], ["x", "y"]), make(tmp_path / "b", [4, 4], ["x"])
    (tmp_path / "b/001.parquet").rename(tmp_path / "a/001.parquet")
    with pytest.raises(InputError, match=r"a/001\.parquet: its columns differ .* \(see 'y'\)"):
        score_tables.open_tables([a])
    assert score_tables.open_tables([b]).parts == ("000",)


def test_no_columns_give_the_uids(tmp_path):
    uid, columns = score_tables.open_tables([make(tmp_path / "a", [4], ["x"])]).read([])
    assert len(uid) == 4
    assert columns == {}


def test_other_folders_are_refused(tmp_path):
    a = make(tmp_path / "a", [4], ["x"])
    other_sizes = make(tmp_path / "b", [5], ["y"])
    with pytest.raises(InputError, match=r"missing: no such folder"):
        score_tables.open_tables([str(tmp_path / "missing")])
    with pytest.raises(InputError, match="not scores of one pool"):
        score_tables.open_tables([a, other_sizes])
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="c: is empty"):
        score_tables.open_tables([str(tmp_path / "c")])
    (tmp_path / "c/0.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=r"0\.parquet: damaged or not a parquet file"):
        score_tables.open_tables([str(tmp_path / "c")])
    pq.write_table(pa.table({"uid": ["a"]}), tmp_path / "c/0.parquet")
    with pytest.raises(InputError, match="column 'uid_hi' is missing"):
        score_tables.open_tables([str(tmp_path / "c")])
    with pytest.raises(InputError, match="unknown column 'z'"):
        score_tables.open_tables([a]).read(["z"])


def test_tables_with_other_uids_are_refused(tmp_path):
    a = make(tmp_path / "a", [2], ["x"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b/000.parquet").write_bytes(
        score_tables.part_bytes(np.array([(1, 0), (0, 0)], uids.DTYPE), {"y": np.zeros(2)})
    )
    with pytest.raises(InputError, match="uids differ"):
        score_tables.open_tables([a, str(tmp_path / "b")]).read(["x", "y"])


def test_an_unfinished_table_is_refused(tmp_path):
    a = make(tmp_path / "a", [2], ["x"])
    (tmp_path / "a/_plan.json").write_text("{}")
    with pytest.raises(InputError, match="isn't finished"):
        score_tables.open_tables([a])
    (tmp_path / "a/_manifest.json").write_text("{}")
    assert len(score_tables.open_tables([a])) == 2
