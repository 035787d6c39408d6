"""The rule for keys that repeat, over units of any sizes."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from clipdata_jax.formats.copying import sample_keys
from clipdata_jax.formats.copying.sample_keys import find_repeats, hash_keys, number_repeats, rename

# Keys that are the new keys of others are frequent.
keys = st.lists(st.sampled_from(["a", "a-1", "a-2", "a-3", "a-1-1", "a-1-2", "a-2-1", "b"]), max_size=8)
units_of_keys = st.lists(keys, max_size=5)


def number_all(units: list[list[str]]) -> list[list[str]]:
    """What an output of these units holds."""
    held = {f"{i}": number_repeats(unit) for i, unit in enumerate(units)}
    taken, repeats = find_repeats({name: hash_keys(unit) for name, unit in held.items()})
    return [rename(unit, repeats[name], taken) if name in repeats else unit for name, unit in held.items()]


@given(units_of_keys)
@example([["a", "a-1"], ["a", "a-1-1"], ["a-1", "a"], ["a"]])
def test_no_two_samples_of_an_output_share_a_key(units):
    found = number_all(units)
    flat = [key for unit in found for key in unit]
    assert len(set(flat)) == len(flat)
    before: set[str] = set()
    for unit, now in zip(units, found, strict=True):
        for sample in zip(unit, number_repeats(unit), now, strict=True):
            assert sample[0] == sample[2] or before & set(sample[:2])
            assert re.fullmatch(rf"{sample[0]}(-\d+)*", sample[2])
            before |= set(sample)


@given(st.lists(st.text(max_size=20), unique=True), st.integers(1, 4))
def test_keys_that_differ_stay_and_their_hashes_depend_on_nothing_else(texts, pieces):
    texts = [text.replace("\0", "") for text in texts]
    texts = list(dict.fromkeys(texts))
    units = [texts[i::pieces] for i in range(pieces)]
    assert number_all(units) == units
    alone = [int(hash_keys([text])[0]) for text in texts]
    assert hash_keys(texts).tolist() == alone
    assert hash_keys([*texts, "x" * 200])[:-1].tolist() == alone
    assert len(set(alone)) == len(texts)


def test_keys_whose_hashes_are_equal_still_differ(monkeypatch):
    monkeypatch.setattr(sample_keys, "hash_keys", lambda some: np.array([len(key) for key in some], np.uint64))
    held = {"0": ["aa", "b"], "1": ["cc", "dd-1"], "2": ["aa"]}
    taken, repeats = find_repeats({name: sample_keys.hash_keys(unit) for name, unit in held.items()})
    found = [
        key for name, unit in held.items() for key in (rename(unit, repeats[name], taken) if name in repeats else unit)
    ]
    assert len(set(found)) == 5


def test_the_next_copies_are_numbered_from_one():
    assert number_all([["k", "k"], ["x"]]) == [["k", "k-1"], ["x"]]
    assert number_all([["k", "x"], ["k"], ["k", "y"]]) == [["k", "x"], ["k-1"], ["k-2", "y"]]
    assert number_all([["k"]] * 300)[-1] == ["k-299"]
