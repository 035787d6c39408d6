"""Columns that join by uid, from parquet and npy files."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.formats import external_columns, uids

UID = np.array([(9, 1), (2, 7), (2, 3), (0, 5)], uids.DTYPE)
SCORES = [0.5, None, 2.0, -1.0]


def write(path, **columns):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("form", ["hex", "halves", "folder", "npy"])
def test_pairs_find_their_scores(tmp_path, form):
    if form == "hex":
        path = write(tmp_path / "x.parquet", uid=uids.to_hex(UID), x=SCORES, text=["a"] * 4)
    elif form == "halves":
        path = write(tmp_path / "x.parquet", uid_hi=UID["f0"], uid_lo=UID["f1"], x=SCORES)
    elif form == "folder":
        for part in (slice(0, 3), slice(3, 4)):
            write(tmp_path / f"f/{part.start}.parquet", uid=uids.to_hex(UID[part]), x=SCORES[part])
        path = str(tmp_path / "f")
    else:
        array = np.array([(*uid, score or np.nan) for uid, score in zip(UID.tolist(), SCORES)], "u8,u8,f8")
        np.save(tmp_path / "x.npy", array)
        path = str(tmp_path / "x.npy")
    (source,) = external_columns.open_columns([path])
    assert source.names == ("x",)
    found = source.read(["x"])
    got = found.of(np.array([(2, 3), (2, 4), (9, 1), (2, 7)], uids.DTYPE), "x")
    assert got.dtype == np.float64  # as in the file
    np.testing.assert_array_equal(got, [2, np.nan, 0.5, np.nan])
    assert found.facts() == {"rows": 4, "not_in_the_pool": 1, "pairs_found": 3}


def test_bad_parquet_columns_are_refused(tmp_path):
    names = uids.to_hex(UID)
    x = write(tmp_path / "x.parquet", uid=names, x=[1.0] * 4)
    with pytest.raises(InputError, match=r"column 'x' is in the score tables and in .*x\.parquet; rename it"):
        external_columns.check_usable(external_columns.open_columns([x]), ["x"], ["x"])
    with pytest.raises(InputError, match=r"column 'x' is in .*x\.parquet and in .*x\.parquet"):
        external_columns.check_usable(external_columns.open_columns([x, x]), [], ["x"])
    external_columns.check_usable(external_columns.open_columns([x, x]), ["x"], ["y"])
    words = external_columns.open_columns([write(tmp_path / "w.parquet", uid=names, word=["b", "a", None, "b"])])
    with pytest.raises(InputError, match=r"w\.parquet: column 'word' holds string, expected numbers"):
        external_columns.check_usable(words, [], ["word"])
    external_columns.check_usable(words, [], ["word"], texts=True)
    found = words[0].read(["word"]).of(UID, "word")
    assert found[0] == found[3] != found[1]
    assert np.isnan(found[2])
    twice = write(tmp_path / "t.parquet", uid=[*names[:2], names[0]], x=[1.0] * 3)
    with pytest.raises(InputError, match=rf"t\.parquet: row 2: uid {names[0]} occurs before"):
        external_columns.open_columns([twice])[0].read(["x"])
    for columns, words in (
        ({"name": names, "x": [1.0] * 4}, "has no column uid, nor uid_hi and uid_lo, .* it has name, x"),
        ({"uid": names, "lists": [[1.0]] * 4}, "has no numeric column"),
    ):
        with pytest.raises(InputError, match=words):
            external_columns.open_columns([write(tmp_path / "w.parquet", **columns)])
    short = write(tmp_path / "s.parquet", uid=[1.5], x=[1.0])
    with pytest.raises(InputError, match="column 'uid' holds double, expected text, integers or UUIDs"):
        external_columns.open_columns([short])[0].read(["x"])
    (tmp_path / "b.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match="not a parquet file"):
        external_columns.open_columns([str(tmp_path / "b.parquet")])
    with pytest.raises(InputError, match="no such file"):
        external_columns.open_columns([str(tmp_path / "none.parquet")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.parquet file"):
        external_columns.open_columns([str(tmp_path / "empty")])


def test_bad_npy_columns_are_refused(tmp_path):
    for name, array, words in (
        ("x", np.zeros(3, "u8,u8"), "expected uids and scores of dtype u8,u8,f4"),
        ("x", np.zeros(3), "holds float64"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputError, match=words):
            external_columns.open_columns([str(tmp_path / f"{name}.npy")])
    np.save(tmp_path / "x-y.npy", np.zeros(3, "u8,u8,f4"))
    (file,) = external_columns.open_columns([str(tmp_path / "x-y.npy")])
    assert (file.names, dict(file.renamed)) == (("x_y",), {"x_y": "x-y"})
    (tmp_path / "x.npy").write_bytes(b"no")
    with pytest.raises(InputError, match=r"is a text file, not a \.npy array"):
        external_columns.open_columns([str(tmp_path / "x.npy")])
