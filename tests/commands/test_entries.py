"""The real `clipdata entries`, and the rule that balances by what it finds."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.formats import score_tables, uids
from clipdata_jax.selection import balanced, parse

ENTRIES = ["dog", "a dog", "New York", "cat", "river bank", "zebra", "!"]
CAPTIONS = [
    "a dog, a cat",
    "A dog",
    "dogs and cats",
    None,
    "New York\tby night!",
    "the river bank; a dog.",
    "",
    "cat cat",
]


def plain(caption):
    """The entries of a caption by searching for one after another."""
    text = f" {caption or ''} "
    for sign in ",.;:?!`":
        text = text.replace(sign, f" {sign} ")
    for sign in "\t\n\r":
        text = text.replace(sign, " ")
    return [number for number, entry in enumerate(ENTRIES) if f" {entry} " in text]


@pytest.fixture
def pool(tmp_path):
    """Two shards of metadata, a list of entries, and a score table; returns uids and captions."""
    rng = np.random.default_rng(0)
    captions = [CAPTIONS[i] for i in rng.integers(0, len(CAPTIONS), 300)]
    uid = uids.join_halves(*rng.integers(0, 2**64, (2, 300), dtype=np.uint64))
    (tmp_path / "metadata").mkdir()
    (tmp_path / "scores").mkdir()
    for name, rows in (("00", slice(0, 120)), ("01", slice(120, 300))):
        held = {"uid": uids.to_hex(uid[rows]), "text": pa.array(captions[rows], pa.string())}
        pq.write_table(pa.table(held), tmp_path / f"metadata/{name}.parquet")
        scores = {"a": np.arange(300, dtype=np.float32)[rows]}
        (tmp_path / f"scores/{name}.parquet").write_bytes(score_tables.part_bytes(uid[rows], scores))
    (tmp_path / "list.txt").write_text("\n".join(ENTRIES) + "\n\n")
    return uid, captions


def test_entries_are_what_a_plain_search_finds(tmp_path, pool, clipdata):
    uid, captions = pool
    done = clipdata("entries", "metadata", "--list", "list.txt", "--out", "entries", "--json")
    assert done.returncode == 0, done.stderr
    found = [plain(caption) for caption in captions]
    held = [pq.read_table(tmp_path / f"entries/{name}.parquet") for name in ("00", "01")]
    assert [row for one in held for row in one["entries"].to_pylist()] == found
    got = np.concatenate([uids.join_halves(one["uid_hi"].to_numpy(), one["uid_lo"].to_numpy()) for one in held])
    np.testing.assert_array_equal(got, uid)
    rows = list(csv.DictReader((tmp_path / "entries/entry_counts.csv").read_text().splitlines()))
    assert [row["entry"] for row in rows] == ENTRIES
    counts = [sum(number in one for one in found) for number in range(len(ENTRIES))]
    assert [int(row["captions"]) for row in rows] == counts
    facts = json.loads((tmp_path / "entries/_manifest.json").read_text())
    assert (facts["rows"], facts["matches"], facts["entries_found"]) == (300, sum(counts), np.count_nonzero(counts))
    assert clipdata("verify", "entries").returncode == 0
    assert (
        clipdata("entries", "metadata", "--list", "list.txt", "--out", "entries").stdout
        == "Already complete: entries\n"
    )


def test_shards_processes_and_stops_change_nothing(tmp_path, pool, clipdata):
    base = ["entries", "metadata", "--list", "list.txt", "--out"]
    assert clipdata(*base, "whole").returncode == 0
    assert clipdata(*base, "stopped", "--stop-after", "1").returncode == 75
    assert clipdata(*base, "stopped").returncode == 0
    for worker in ("1/2", "0/2"):
        assert clipdata(*base, "shared", "--worker", worker).returncode == 0
    for other in ("stopped", "shared"):
        for name in ("00.parquet", "01.parquet", "entry_counts.csv"):
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_json_list_is_read_and_wrong_input_refused(tmp_path, pool, clipdata):
    (tmp_path / "list.json").write_text(json.dumps(ENTRIES))
    assert clipdata("entries", "metadata", "--list", "list.json", "--out", "new").returncode == 0
    for name, content, words in (
        ("twice.txt", "a\nb\na\n", "entry 2 is 'a', as entry 0 is"),
        ("none.txt", "\n\n", "holds no entries"),
        ("odd.json", '{"a": 1}', "something else than a list of texts"),
        ("odd.txt", b"\xff", "can't be read as a list of entries"),
    ):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        done = clipdata("entries", "metadata", "--list", name, "--out", "x")
        assert done.returncode == 2
        assert words in done.stderr
    done = clipdata("entries", "metadata", "--list", "list.txt", "--out", "x", "--caption-column", "alt")
    assert done.returncode == 2
    assert "alt" in done.stderr


def test_pairs_are_balanced_by_the_counts(tmp_path, pool, clipdata):
    uid, captions = pool
    assert clipdata("entries", "metadata", "--list", "list.txt", "--out", "entries").returncode == 0
    rule = "balanced(entries, t=20) & top(a, 0.5)"
    done = clipdata("select", "scores", "entries", "--rule", rule, "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    lists = np.empty(300, object)
    lists[:] = [plain(caption) for caption in captions]
    kept = parse(rule).keep({"entries": lists, "a": np.arange(300.0)}, uid)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy", allow_pickle=False), np.sort(uid[kept]))
    done = clipdata("select", "scores", "entries", "--rule", "balanced(a, t=20)", "--out", "t.npy")
    assert done.returncode == 2
    assert "column 'a' holds float, expected lists of entries" in done.stderr


def published(rng, lists, t, entries):
    """MetaCLIP's balancing: every entry of a pair may keep it."""
    counts = np.bincount(np.concatenate(lists), minlength=entries)
    shares = t / np.maximum(counts, t)
    return np.array([any(rng.random() < shares[entry] for entry in one) for one in lists])


def test_the_chance_is_the_published_one(tmp_path):
    rng, rows, seeds = np.random.default_rng(1), 60, 800
    lists = np.empty(rows, object)
    lists[:] = [sorted(set(rng.integers(0, 8, rng.integers(0, 4)) ** 2 // 8)) for _ in range(rows)]
    lists[:] = [np.array(one, int) for one in lists]
    uid = uids.join_halves(*rng.integers(0, 2**64, (2, rows), dtype=np.uint64))
    ours = np.mean([balanced("e", t=6, seed=seed).keep({"e": lists}, uid) for seed in range(seeds)], axis=0)
    theirs = np.mean([published(rng, lists, 6, 8) for _ in range(seeds)], axis=0)
    assert (np.abs(ours - theirs) <= 4 * np.sqrt(0.5 / seeds)).all()
    counts = np.bincount(np.concatenate(lists), minlength=8)
    exact = [1 - np.prod([1 - min(1, 6 / counts[entry]) for entry in one]) for one in lists]
    assert (np.abs(ours - exact) <= 4 * np.sqrt(0.25 / seeds)).all()
    for text, words in (("balanced(e, t=0)", "t is 0"), ("balanced(e, 5)", "as in balanced(entries, t=20_000)")):
        with pytest.raises(InputError, match=re.escape(words)):
            parse(text)
