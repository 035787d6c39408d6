"""uids as text and as numbers."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.errors import InputError
from clipdata_jax.formats import uids

halves = st.integers(0, 3) | st.integers(0, 2**64 - 1)
pairs = st.lists(st.tuples(halves, halves), max_size=40)
GOOD = "00112233445566778899aAbBcCdDeEfF"


@settings(max_examples=100, deadline=None)
@given(pairs)
def test_text_and_numbers_are_the_same_uids(values):
    text = [f"{high:016x}{low:016x}" for high, low in values]
    got = uids.from_hex(text)
    assert got.dtype == np.dtype("u8,u8")
    assert got.tolist() == values
    assert uids.to_hex(got) == text
    assert uids.from_hex([uid.upper() for uid in text]).tolist() == values


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x", None, GOOD, GOOD]).slice(2),
        pa.chunked_array([[GOOD], [], [GOOD]], pa.string()),
        pa.array([GOOD, GOOD], pa.large_string()),
        pa.array([GOOD, GOOD]).dictionary_encode(),
        pa.chunked_array([pa.array([GOOD, GOOD], pa.string_view())]),
    ],
    ids=["slice", "chunks", "large", "dictionary", "view"],
)
def test_every_kind_of_text_column_is_read(column):
    assert uids.to_hex(uids.from_hex(column)) == [GOOD.lower()] * 2


def test_an_empty_column():
    assert uids.from_hex([]).shape == (0,)
    assert uids.from_hex(pa.chunked_array([], pa.string())).dtype == uids.DTYPE


@pytest.mark.parametrize("wrong", ["", "zz", GOOD[:-1], GOOD + "0", "g" * 32, "é" * 16, "é" * 32, None, " " * 32])
def test_wrong_uids_name_file_row_and_value(wrong):
    with pytest.raises(InputError, match=r"part.parquet: row 1: .*expected 32 hex digits"):
        uids.from_hex([GOOD, wrong], "part.parquet")
    assert not uids.is_uid(wrong)


@pytest.mark.parametrize(("column", "kind"), [(pa.array([1]), "int64"), (pa.chunked_array([[1.5]]), "double")])
def test_a_column_of_numbers_is_named(column, kind):
    with pytest.raises(InputError, match=f"p: the uid column is {kind}, expected text of 32 hex digits"):
        uids.from_hex(column, "p")


def test_what_a_uid_is():
    assert uids.is_uid(GOOD)
    assert not any(map(uids.is_uid, (17, None, GOOD.encode(), "\ud800" * 32, "０" * 32)))


def test_derived_uids_are_sha256():
    assert uids.uid_of("00000.tar", "a/7") == hashlib.sha256(b"00000.tar\0a/7").hexdigest()[:32]
    assert uids.uid_of("00000.tar", "\udcff") == hashlib.sha256(b"00000.tar\0\xff").hexdigest()[:32]
    assert uids.uid_of("ab", "c") != uids.uid_of("a", "bc")


@settings(max_examples=200, deadline=None)
@given(pairs, pairs)
def test_sorting_and_finding(values, wanted):
    ordered = uids.sort_unique(np.array(values, uids.DTYPE))
    assert ordered.tolist() == sorted(set(values))
    at = uids.find(ordered, np.array([*wanted, *values], uids.DTYPE))
    lookup = {pair: index for index, pair in enumerate(sorted(set(values)))}
    assert at.tolist() == [lookup.get(pair, -1) for pair in [*wanted, *values]]


def test_a_subset_file_is_sorted_unique_and_datacomps(tmp_path):
    path = str(tmp_path / "s.npy")
    uids.write_subset(path, np.array([(2, 0), (1, 9), (2, 0), (1, 3)], uids.DTYPE))
    with open(path, "rb") as file:
        assert np.load(file, allow_pickle=False).tolist() == [(1, 3), (1, 9), (2, 0)]
