"""Files of uids in every form."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import ids, uid_files, uids

NAMES = ("u.npy", "u.txt", "u.parquet")
ROWS = uids.join_halves(*np.random.default_rng(0).integers(0, 2**64, (2, 50), dtype=np.uint64))
HEX = uids.to_hex(ROWS)


@pytest.fixture
def opened(tmp_path):
    """Opens a path as the command does."""
    (tmp_path / "scratch").mkdir()
    return lambda path: uid_files.open_uids(str(path), str(tmp_path / "scratch"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.sampled_from(NAMES), st.integers(1, 9))
def test_files_round_trip(tmp_path_factory, words, name, rows):
    folder = tmp_path_factory.mktemp("uids")
    values = uids.sort(uids.join_halves(np.array(words, np.uint64), np.array(words[::-1], np.uint64)))
    blocks = [values[start : start + rows] for start in range(0, len(values), rows)]
    for halves in (False, True):
        path = str(folder / name)
        assert uid_files.write(path, blocks, halves=halves) == len(values)
        source = uid_files.open_uids(path, str(folder))
        assert source.rows.tolist() == values.tolist()
        assert source.repeats == len(words) - len(set(values.tolist()))
        assert source.form == ""


def test_npy_bytes_equal_numpys(tmp_path):
    uid_files.write(str(tmp_path / "u.npy"), [ROWS[:20], ROWS[20:]])
    np.save(tmp_path / "numpys.npy", ROWS)
    assert (tmp_path / "u.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()


def test_object_stores_are_read_and_written(opened):
    for name in NAMES:
        uid_files.write(f"memory://uid-files/{name}", [ROWS])
        assert opened(f"memory://uid-files/{name}").rows.tolist() == sorted(ROWS.tolist())
    assert storage.size("memory://uid-files/u.npy") == 128 + 50 * 16


@pytest.mark.parametrize(
    "text",
    ["\n".join(HEX), "\n".join(HEX).upper() + "\n", "\r\n".join(HEX), "\n\n".join(HEX), "  \n".join(HEX)],
    ids=["no last end", "upper case", "carriage returns", "blank lines", "blanks"],
)
def test_text_variants_are_read(tmp_path, opened, monkeypatch, text):
    monkeypatch.setattr(uid_files, "_ROWS", 4)
    (tmp_path / "u.txt").write_bytes(text.encode())
    assert opened(tmp_path / "u.txt").rows.tolist() == sorted(ROWS.tolist())


def test_a_folder_of_parquet_files_is_one_list(tmp_path, opened):
    (tmp_path / "pool").mkdir()
    for index, part in enumerate((ROWS[:20], ROWS[20:])):
        uid_files.write(f"{tmp_path}/pool/{index}.parquet", [part], halves=bool(index))
    source = opened(tmp_path / "pool")
    assert source.rows.tolist() == sorted(ROWS.tolist())
    assert source.order.unsorted_at == 1


@pytest.mark.parametrize(
    "rows",
    [
        ROWS.astype(">u8,>u8"),
        np.stack([ROWS["f0"], ROWS["f1"]], axis=1),
        np.asfortranarray(np.stack([ROWS["f0"], ROWS["f1"]], axis=1)),
        ROWS.astype([("hi", "u8"), ("lo", "u8")]),
    ],
    ids=["big-endian", "two columns", "two columns, Fortran's order", "named"],
)
def test_other_npy_forms_are_read(tmp_path, opened, rows):
    np.save(tmp_path / "u.npy", rows)
    source = opened(tmp_path / "u.npy")
    assert source.rows.tolist() == sorted(ROWS.tolist())
    assert str(rows.dtype) in source.form
    assert str(rows.shape) in source.form


GOOD = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.npy", None, "no such file"),
        ("u.ids", b"", r"expected a file that ends in \.npy, \.txt, \.csv, \.tsv, \.parquet"),
        ("u.csv", b"a,b\n1,2\n", "no column is called uid or id; it has a, b"),
        ("u.npy", b"\x93NUMPY", r"not a \.npy file of uids"),
        ("u.npy", np.zeros(3), r"holds float64 of shape \(3,\), expected uids of dtype u8,u8"),
        ("u.npy", np.zeros(3, "u4,u8"), "expected uids of dtype u8,u8"),
        ("u.npy", np.zeros((3, 3), "u8"), "expected uids of dtype u8,u8"),
        ("u.npy", np.array(["x"], object), r"not a \.npy file of uids"),
        ("u.txt", b"\xff" * 40, "is not UTF-8 text; expected a uid or other id a line"),
        ("u.txt", b"PAR1\xff", "u.txt: is a parquet file, not a text file"),
        ("u.parquet", b"PAR1", "damaged or not a parquet file"),
        ("u.parquet", pa.table({"key": [GOOD], "n": [1]}), "no column is called uid or id; it has key, n"),
        ("u.parquet", pa.table({"uid": [1.0]}), "column 'uid' holds double, expected text, integers or UUIDs; pandas"),
        ("u.parquet", pa.table({"uid": [[1]]}), "column 'uid' holds list<"),
        ("u.parquet", pa.table({"uid": [GOOD, None]}), "row 1: the uid is missing"),
        ("u.parquet", pa.table({"uid_hi": [1], "uid_lo": [2]}), "column 'uid_hi' is int64, expected uint64"),
        (
            "u.parquet",
            pa.table({"uid_hi": pa.array([1], pa.uint64()), "uid_lo": pa.array([None], pa.uint64())}),
            "column 'uid_lo' has 1 nulls",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, opened, name, content, words):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=words) as error:
        opened(path)
    assert str(path) in str(error.value)


def test_endless_lines_are_refused(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(uid_files, "_ROWS", 2)
    (tmp_path / "u.txt").write_bytes(b"0" * 1000)
    with pytest.raises(InputError, match=r"u\.txt: 132 bytes without an end of line"):
        opened(tmp_path / "u.txt")


def test_an_empty_folder_and_an_unfinished_run_are_refused(tmp_path, opened):
    (tmp_path / "pool").mkdir()
    with pytest.raises(InputError, match=r"the folder holds no \.parquet file"):
        opened(tmp_path / "pool")
    uid_files.write(f"{tmp_path}/pool/0.parquet", [ROWS])
    (tmp_path / "pool/_plan.json").write_text("{}")
    with pytest.raises(InputError, match="isn't finished"):
        opened(tmp_path / "pool")


def test_subset_files_of_every_kind_are_read_into_memory(tmp_path):
    for name in (*NAMES, "u.csv"):
        uid_files.write(str(tmp_path / name), [ROWS, ROWS[:2]])
        found, times = uid_files.read_multiset(str(tmp_path / name))
        assert found.tolist() == uid_files.read_subset(str(tmp_path / name)).tolist() == sorted(ROWS.tolist())
        assert sorted(times.tolist()) == [1] * 48 + [2] * 2


def test_ids_of_other_kinds_are_taken(tmp_path, opened):
    names = ["a, b", 'c "d"', HEX[0], "17"]
    wanted = sorted(map(ids.uid_of_id, names))
    (tmp_path / "u.txt").write_text("\ufeff" + "\n".join(names))
    (tmp_path / "u.csv").write_text('id,n\n"a, b",1\n"c ""d""",2\n' + f"{HEX[0]},3\n17,4\n")
    (tmp_path / "u.tsv").write_text("uid\tid\n" + "".join(f"{name}\tother\n" for name in names))
    pq.write_table(pa.table({"n": [1] * 4, "id": pa.array(names).dictionary_encode()}), tmp_path / "u.parquet")
    for form in ("txt", "csv", "tsv", "parquet"):
        source = opened(tmp_path / f"u.{form}")
        assert (uids.to_hex(source.rows), source.hashed) == (wanted, 3)


@pytest.mark.parametrize(
    "content",
    [
        np.zeros(3),
        np.zeros((2, 2), uids.DTYPE),
        np.array(["x"], object),
        np.zeros(3, "u4,u8"),
        b"",
        b"\x93NUMPY",
        b"x" * 99,
        b"PK\x03\x04 and no more",
    ],
    ids=["floats", "two dimensions", "pickled", "other fields", "empty", "cut", "noise", "cut zip"],
)
def test_other_subsets_are_refused(tmp_path, content):
    path = tmp_path / "s.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(InputError, match=r"s\.npy: "):
        uid_files.read_subset(str(path))


def test_npz_is_refused(tmp_path):
    np.savez(tmp_path / "s.npz", a=np.zeros(3))
    with pytest.raises(InputError, match=r"s\.npz: expected a file that ends in \.npy"):
        uid_files.read_subset(str(tmp_path / "s.npz"))
