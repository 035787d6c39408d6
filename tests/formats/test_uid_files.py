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
from clipdata_jax.formats import uid_files, uids

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
        ("u.csv", b"", r"expected a file that ends in \.npy, \.txt, \.parquet"),
        ("u.npy", b"\x93NUMPY", r"not a \.npy file of uids"),
        ("u.npy", np.zeros(3), r"holds float64 of shape \(3,\), expected uids of dtype u8,u8"),
        ("u.npy", np.zeros(3, "u4,u8"), "expected uids of dtype u8,u8"),
        ("u.npy", np.zeros((3, 3), "u8"), "expected uids of dtype u8,u8"),
        ("u.npy", np.array(["x"], object), r"not a \.npy file of uids"),
        ("u.txt", f"{GOOD}\n{GOOD}\nnonsense\n".encode(), "row 2: the uid is 'nonsense'"),
        ("u.txt", f"{GOOD}\n{GOOD[:-1]} \n".encode(), "row 1: the uid is '0123456789abcdef0123456789abcde'"),
        ("u.txt", b"x" * 1000, "row 0: the uid is 'xxx"),
        ("u.parquet", b"PAR1", "damaged or not a parquet file"),
        ("u.parquet", pa.table({"key": [GOOD]}), "no column 'uid', nor 'uid_hi' and 'uid_lo'; it has key"),
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
