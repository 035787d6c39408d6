"""The real `clipdata uids` on real files."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest

from clipdata_jax.formats import uid_files, uids

rng = np.random.default_rng(5)
POOL = uids.sort_unique(uids.join_halves(*rng.integers(0, 2**64, (2, 400), dtype=np.uint64)))
# Mine and theirs share 100; theirs is a multiset in no order, as published training sets are.
MINE, THEIRS = POOL[:200], rng.permutation(np.concatenate([POOL[100:300], POOL[100:150], POOL[100:150]]))


@pytest.fixture(autouse=True)
def subsets(tmp_path):
    np.save(tmp_path / "mine.npy", MINE)
    np.save(tmp_path / "theirs.npy", THEIRS)
    uid_files.write(f"{tmp_path}/third.txt", [POOL[150:160]])


def ran(done, *lines):
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(lines)


def refused(done, *words):
    assert done.returncode == 2, (done.stdout, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("clipdata uids: ")
    assert "Traceback" not in done.stderr
    assert all(word in last for word in words), last


def test_union_intersection_and_difference(tmp_path, clipdata):
    ran(
        clipdata("uids", "union", "mine.npy", "theirs.npy", "third.txt", "--out", "u.npy"),
        "mine.npy: 200 uids",
        "theirs.npy: 300 uids, 100 repeats left out (--multiset keeps them), not in order: sorted",
        "third.txt: 10 uids",
        "union: 300 uids: u.npy",
    )
    assert np.load(tmp_path / "u.npy").tolist() == POOL[:300].tolist()
    done = clipdata("uids", "intersect", "mine.npy", "theirs.npy", "third.txt", "--out", "i.npy")
    assert done.stdout.splitlines()[-1] == "intersect: 10 uids, 5.00 % of mine.npy: i.npy"
    assert np.load(tmp_path / "i.npy").tolist() == POOL[150:160].tolist()
    done = clipdata("uids", "minus", "mine.npy", "theirs.npy", "third.txt", "--out", "m.npy")
    assert done.stdout.splitlines()[-1] == "minus: 100 uids, 50.00 % of mine.npy: m.npy"
    assert np.load(tmp_path / "m.npy").tolist() == POOL[:100].tolist()


def test_multisets_keep_their_repeats(tmp_path, clipdata):
    mine, theirs = Counter(MINE.tolist()), Counter(THEIRS.tolist())
    for name, plain in (("union", mine + theirs), ("minus", theirs - mine), ("intersect", mine & theirs)):
        files = ("mine.npy", "theirs.npy") if name == "union" else ("theirs.npy", "mine.npy")
        done = clipdata("uids", name, *files, "--multiset", "--out", f"{name}.npy")
        assert "theirs.npy: 300 uids, 100 repeats kept, not in order: sorted" in done.stdout
        assert np.load(tmp_path / f"{name}.npy").tolist() == sorted(plain.elements())


def test_overlaps_are_counted_and_shared_out(clipdata):
    done = clipdata("uids", "stats", "mine.npy", "theirs.npy")
    ran(
        done,
        "     rows  uids  repeats  file",
        "------------------------------",
        "[1]   200   200        0  mine.npy",
        "[2]   300   200      100  theirs.npy (not sorted)",
        "",
        "each once  in both  of the first  of the second",
        "-----------------------------------------------",
        "[1] [2]        100       50.00 %        50.00 %",
        "",
        "300 distinct uids in any of them, 100 in all",
    )
    text = clipdata("uids", "stats", "mine.npy", "theirs.npy", "--multiset").stdout
    assert re.search(r"\[1\] +\[2\] +100 +50.00 % +33.33 %$", text, re.M)
    assert "with repeats" in text
    many = clipdata("uids", "stats", *["mine.npy", "theirs.npy"] * 5).stdout
    assert re.search(r"\[9\] \[10\] +100 +50.00 % +50.00 %$", many, re.M)
    assert max(map(len, many.splitlines())) <= 80
    assert "in both" not in clipdata("uids", "stats", "mine.npy").stdout


def test_forms_turn_into_each_other_and_back(tmp_path, clipdata):
    steps = ("theirs.npy", "t.txt", "t.parquet", "halves.parquet", "back.npy")
    for source, target in itertools.pairwise(steps):
        halves = ["--halves"] if target.startswith("halves") else []
        done = clipdata("uids", "convert", source, "--multiset", "--out", target, *halves)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"convert: 300 uids: {target}"
    assert np.load(tmp_path / "back.npy").tolist() == sorted(THEIRS.tolist())
    assert clipdata("uids", "convert", "t.txt", "--out", "set.npy").returncode == 0
    assert np.load(tmp_path / "set.npy").tolist() == POOL[100:300].tolist()


def test_the_manifest_says_what_the_file_is_made_of(tmp_path, clipdata):
    arguments = ("uids", "union", "mine.npy", "theirs.npy", "--out", "u.npy")
    assert clipdata(*arguments).returncode == 0
    text = (tmp_path / "u.npy.manifest.json").read_bytes()
    content = json.loads(text)
    assert [entry["relative"] for entry in content["inputs"]] == ["mine.npy", "theirs.npy"]
    assert all(entry["digest"].startswith("sha256:") for entry in content["inputs"])
    assert content["outputs"]["u.npy"]["bytes"] == 128 + 300 * 16
    assert content["uids"] == 300
    counts = {"path": "theirs.npy", "rows": 300, "repeats": 100, "is_sorted": False, "hashed": 0}
    assert content["files"][1] == counts
    assert content["options"]["operation"] == "union"
    assert clipdata(*arguments).returncode == 0  # the same run may write its file again
    assert (tmp_path / "u.npy.manifest.json").read_bytes() == text


def test_another_runs_file_stays(tmp_path, clipdata):
    assert clipdata("uids", "union", "mine.npy", "third.txt", "--out", "u.npy").returncode == 0
    before = (tmp_path / "u.npy").read_bytes()
    refused(
        clipdata("uids", "minus", "mine.npy", "third.txt", "--out", "u.npy"),
        'u.npy: already holds the results of another run (--operation was "union", now "minus")',
    )
    others = f'(--files was ["{tmp_path}/mine.npy", "{tmp_path}/third.txt"], now ["{tmp_path}/mine.npy"])'
    refused(clipdata("uids", "union", "mine.npy", "--out", "u.npy"), others[:60])
    refused(
        clipdata("uids", "union", "mine.npy", "--out", "third.txt"),
        "third.txt: already exists and was not written by this command",
    )
    assert (tmp_path / "u.npy").read_bytes() == before


def test_good_files_are_verified(tmp_path, clipdata):
    uid_files.write(f"{tmp_path}/pool/0.parquet", [POOL[:111]])
    uid_files.write(f"{tmp_path}/pool/1.parquet", [POOL[111:]], halves=True)
    ran(
        clipdata("uids", "verify", "mine.npy", "third.txt", "--pool", "pool"),
        "mine.npy: good: 200 uids, sorted, unique, all in pool",
        "third.txt: good: 10 uids, sorted, unique, all in pool",
    )
    np.save(tmp_path / "twice.npy", np.repeat(MINE, 2))
    ran(clipdata("uids", "verify", "twice.npy", "--multiset"), "twice.npy: good: 400 uids, sorted")


def test_what_is_wrong_with_a_file_is_found(tmp_path, clipdata):
    np.save(tmp_path / "twice.npy", np.append(MINE, MINE[-1:]))
    np.save(tmp_path / "big.npy", MINE.astype(">u8,>u8"))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    refused(clipdata("uids", "verify", "theirs.npy"), "theirs.npy: not sorted: row ", "; 100 rows repeat a uid")
    refused(clipdata("uids", "verify", "twice.npy"), "twice.npy: 1 row repeats a uid, the first in row 200")
    done = clipdata("uids", "verify", "mine.npy", "big.npy", "broken.npy", "nothing.npy")
    assert done.stdout == "mine.npy: good: 200 uids, sorted, unique\n"
    words = ("big.npy: holds [('f0', '>u8'), ('f1', '>u8')]", "broken.npy: not a .npy", "nothing.npy: no such file")
    refused(done, *words, "`clipdata uids convert`")
    refused(
        clipdata("uids", "verify", "third.txt", "mine.npy", "--pool", "theirs.npy"),
        f"mine.npy: 100 uids not in theirs.npy, e.g. {', '.join(uids.to_hex(MINE[:3]))}. ",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["union"], "give at least one file of uids"),
        (["union", "mine.npy"], "union writes a file; name it with --out"),
        (["union", "mine.npy", "--out", "u.ids"], "--out is 'u.ids', expected a file name that ends in .npy"),
        (["union", "gone.npy", "--out", "u.npy"], "gone.npy: no such file or folder"),
        (["minus", "mine.npy", "--out", "u.npy"], "minus takes two files or more, found one"),
        (["convert", "mine.npy", "third.txt", "--out", "u.npy"], "convert takes one file, found 2"),
        (["stats", "mine.npy", "--out", "u.npy"], "--out is 'u.npy', expected no value with stats"),
        (["union", "mine.npy", "--out", "u.npy", "--pool", "p"], "--pool is 'p', expected no value except with verify"),
        (["union", "mine.npy", "--out", "u.npy", "--halves"], "--halves needs an --out that ends in .parquet"),
    ],
)
def test_wrong_options(tmp_path, clipdata, arguments, words):
    refused(clipdata("uids", *arguments), words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.npy", "theirs.npy", "third.txt"]


def test_empty_files_are_sets_too(tmp_path, clipdata):
    np.save(tmp_path / "empty.npy", MINE[:0])
    for name, count in (("union", 200), ("minus", 0), ("intersect", 0)):
        done = clipdata("uids", name, "empty.npy", "mine.npy", "--out", f"{name}.npy")
        assert done.returncode == 0
        assert ("no uids are left" in done.stdout) == (not count)
        assert len(np.load(tmp_path / f"{name}.npy")) == count
    assert "- " in clipdata("uids", "stats", "empty.npy", "mine.npy").stdout
