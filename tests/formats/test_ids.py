"""Ids of every kind as uids: the rule written plainly, the documented vectors, and what is refused."""

from __future__ import annotations

import hashlib
import re
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.errors import InputError
from clipdata_jax.formats import ids, uids

DASHED = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
PLAIN = "6f9619ff8b86d011b42d00c04fc964ff"
VECTORS = {
    DASHED: PLAIN,
    PLAIN.upper(): PLAIN,
    "12345": "5994471abb01112afcc18159f6cc74b4",
    "flickr/0001.jpg": "dd41ef06a94658677263170c53045304",
    f"{{{DASHED}}}": None,  # braces, other places of the dashes and white space are other text
    DASHED[:-1] + "g": None,
    PLAIN[:-1]: None,
    f"{PLAIN} ": None,
    PLAIN.replace("6", " "): None,
    "6f9619-ff8b86d0-11b42d00-c04fc964-ff": None,
    "é" * 16: None,
}


def by_hand(text):
    try:
        if len(text) in (32, 36):
            dashes = len(text) == 36
            if not dashes or all(text[at] == "-" for at in (8, 13, 18, 23)):
                digits = text.replace("-", "") if dashes else text
                if len(digits) == 32 and set(digits.lower()) <= set("0123456789abcdef"):
                    return digits.lower()
    except ValueError:
        pass
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@pytest.mark.parametrize("text", VECTORS)
def test_documented_vectors(text):
    wanted = VECTORS[text] or hashlib.sha256(text.encode()).hexdigest()[:32]
    assert ids.uid_of_id(text) == by_hand(text) == wanted
    assert uids.to_hex(ids.from_column([text], "f").uid) == [wanted]


def test_the_documentation_s_rule_and_vectors():
    text = (Path(__file__).parents[2] / "docs/uids.md").read_text()
    rows = re.findall(r"^\| (.+) \| `([0-9a-f]{32})` \|$", text, re.M)
    assert len(rows) == 5
    space = {}
    exec(text.split("```python\n")[1].split("```")[0], space)
    for named, wanted in rows:
        quoted = re.findall("`(.+?)`", named)
        if len(quoted) == 2:
            assert uids.uid_of(*quoted) == wanted
        else:
            assert ids.uid_of_id(quoted[0]) == space["uid"](quoted[0]) == wanted
    assert ids.uid_of_id(17) == space["uid"](17)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(min_size=1), st.uuids().map(str), st.uuids().map(lambda one: one.hex)), max_size=9))
def test_a_column_is_its_ids_one_by_one(texts):
    texts = [text for text in texts if text.isprintable()]
    found = ids.from_column(texts, "f")
    assert uids.to_hex(found.uid) == list(map(by_hand, texts)) == list(map(ids.uid_of_id, texts))
    assert found.hashed == sum(by_hand(text) != text.replace("-", "").lower() for text in texts)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x", None, "a", "b"]).slice(2),
        pa.chunked_array([["a"], [], ["b"]], pa.string()),
        pa.array(["a", "b"], pa.large_string()),
        pa.array([b"a", b"b"], pa.binary()),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.chunked_array([pa.array(["a", "b"], pa.string_view())]),
    ],
    ids=["slice", "chunks", "large", "binary", "category", "view"],
)
def test_every_kind_of_text_column_is_read(column):
    assert uids.to_hex(ids.from_column(column, "f").uid) == [by_hand("a"), by_hand("b")]


def test_integers_are_their_decimal_text_and_binary_uuids_are_themselves():
    for kind in (pa.int64(), pa.int32(), pa.uint8()):
        assert uids.to_hex(ids.from_column(pa.array([0, 7], kind), "f").uid) == [by_hand("0"), by_hand("7")]
    assert uids.to_hex(ids.from_column(pa.array([-1, 2**62]), "f").uid) == [by_hand("-1"), by_hand(str(2**62))]
    assert ids.uid_of_id(-1) == by_hand("-1")
    binary = pa.array([uuid.UUID(PLAIN).bytes], pa.binary(16))
    for column in (binary, pa.chunked_array([pa.ExtensionArray.from_storage(pa.uuid(), binary)])):
        found = ids.from_column(column, "f")
        assert (uids.to_hex(found.uid), found.hashed) == ([PLAIN], 0)


@pytest.mark.parametrize("column", [[], pa.array([], pa.int64()), pa.chunked_array([], pa.string())])
def test_no_ids(column):
    assert ids.from_column(column, "f").uid.tolist() == []


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["a", None], "f: row 11: the uid is missing, expected text or an integer"),
        (["a", ""], "f: row 11: the uid is empty"),
        (pa.array([1, None]), "f: row 11: the uid is missing"),
        (pa.nulls(1), "f: row 10: the uid is missing"),
        (pa.array([1.0]), "f: column 'uid' holds double, expected text, integers or UUIDs; pandas makes floats"),
        (pa.array([[1]]), "f: column 'uid' holds list<item: int64>, expected text"),
        (pa.array([True]), "f: column 'uid' holds bool, expected text"),
        (pa.array([b"abc"], pa.binary(3)), "f: column 'uid' holds fixed_size_binary"),
    ],
)
def test_wrong_columns_are_refused(column, words):
    with pytest.raises(InputError) as error:
        ids.from_column(column, "f", 10)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("value", [None, "", 1.5, True, [1], {}, "\ud800"])
def test_wrong_ids_are_refused(value):
    with pytest.raises(InputError, match="its uid"):
        ids.uid_of_id(value)


def test_collisions_are_found(monkeypatch):
    # Only an id that is another one's hash has its uid, unless the hash is broken.
    with pytest.raises(InputError, match=f"f: the ids 'a' and '{by_hand('a')}' have the same uid; rename one"):
        ids.from_column(["b", "a", "a", by_hand("a")], "f")
    assert len(np.unique(ids.from_column(["a", DASHED, PLAIN, "a"], "f").uid)) == 2
