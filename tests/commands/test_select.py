"""The real `clipdata select` on made score tables."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pools import make_pool

from clipdata_jax import config, selection
from clipdata_jax.commands import select
from clipdata_jax.formats import score_tables, uids

RULE = "top(neg_clip_loss, 0.3) >> top(norm_sim_inf, 0.2)"


def make_table(folder: Path, sizes=(40, 25, 35), columns=("neg_clip_loss", "norm_sim_inf"), seed=0):
    """Writes a score table; returns the uids and columns of all parts, one after another."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    whole = []
    for index, rows in enumerate(sizes):
        uid = uids.join_halves(*np.random.default_rng(index).integers(0, 2**64, (2, rows), dtype=np.uint64))
        values = {name: rng.normal(size=rows).astype(np.float32) for name in columns}
        (folder / f"{index:08d}.parquet").write_bytes(score_tables.part_bytes(uid, values))
        whole.append((uid, values))
    joined = {name: np.concatenate([values[name] for _, values in whole]) for name in columns}
    return np.concatenate([uid for uid, _ in whole]), joined


def two_steps(uid, columns):
    """The paper's selection of 100 pairs by a full sort."""
    first = np.argsort(-columns["neg_clip_loss"])[:30]
    return np.sort(uid[first[np.argsort(-columns["norm_sim_inf"][first])[:20]]])


def refused(done, *words):
    """One complaint on stderr, exit status 2, nothing on stdout."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("clipdata select: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    return True


def test_a_column_that_two_tables_have_can_not_be_asked_for(tmp_path, clipdata):
    make_table(tmp_path / "old", columns=("a", "b"))
    make_table(tmp_path / "new", columns=("a", "c"))
    done = clipdata("select", "old", "new", "--rule", "top(a, 0.3)", "--out", "s.npy")
    assert refused(done, "column 'a' is in old and in new")
    assert clipdata("select", "old", "new", "--rule", "top(c, 0.3)", "--out", "s.npy").returncode == 0


def test_the_subset_is_what_sorting_gives(tmp_path, clipdata):
    uid, columns = make_table(tmp_path / "scores")
    done = clipdata("select", "scores", "--rule", RULE, "--out", "new/subset.npy")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr
    subset = np.load(tmp_path / "new/subset.npy", allow_pickle=False)
    assert subset.dtype == np.dtype("u8,u8")
    np.testing.assert_array_equal(subset, two_steps(uid, columns))
    assert done.stdout.splitlines() == [
        "kept 20 of 100 pairs (20.00 %): new/subset.npy",
        "considered  kept  step",
        "----------------------",
        "       100    30  top(neg_clip_loss, 0.3)",
        "        30    20  top(norm_sim_inf, 0.2)",
    ]


def test_a_number_of_pairs_is_kept(tmp_path, clipdata):
    uid, columns = make_table(tmp_path / "scores")
    flags = ("select", "scores", "--memory-gb", 0, "--rule")
    assert clipdata(*flags, "top(neg_clip_loss, n=7)", "--out", "s.npy").returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), np.sort(uid[np.argsort(-columns["neg_clip_loss"])[:7]]))
    done = clipdata(*flags, "bottom(norm_sim_inf, n=1_000)", "--out", "all.npy")
    assert len(np.load(tmp_path / "all.npy")) == 100
    assert "bottom(norm_sim_inf, n=1000) (1,000 asked for)" in done.stdout


def test_the_manifest_says_all_of_it_and_is_deterministic(tmp_path, clipdata):
    make_table(tmp_path / "scores")
    written = []
    for _ in range(2):
        assert clipdata("select", "scores", "--rule", RULE, "--out", "s.npy").returncode == 0
        written.append((tmp_path / "s.npy.manifest.json").read_bytes())
    assert written[0] == written[1]
    content = json.loads(written[0])
    assert (content["command"], content["rule"]) == ("select", RULE)
    assert (content["pairs"], content["kept"], content["uids"], content["repeats"]) == (100, 20, 20, 0)
    assert content["without_score"]["norm_sim_inf"] == {"null": 0, "infinite": 0}
    assert [step["kept"] for step in content["steps"]] == [30, 20]
    assert [Path(entry["name"]).name for entry in content["inputs"]] == [f"{i:08d}.parquet" for i in range(3)]
    assert content["outputs"]["s.npy"]["bytes"] == (tmp_path / "s.npy").stat().st_size


def test_the_stability_of_the_selection_is_said(tmp_path, clipdata):
    make_table(tmp_path / "scores", columns=("neg_clip_loss", "neg_clip_loss_se", "norm_sim_inf"))
    done = clipdata("select", "scores", "--rule", RULE, "--out", "s.npy")
    share = json.loads((tmp_path / "s.npy.manifest.json").read_text())["replaced_share"]
    assert 0 < share < 1
    words = "another draw of the batches would replace about {:.2g} % of the kept pairs"
    assert done.stdout.splitlines()[-1] == words.format(100 * share)
    done = clipdata("select", "scores", "--rule", "top(norm_sim_inf, 0.2)", "--out", "t.npy")
    assert json.loads((tmp_path / "t.npy.manifest.json").read_text())["replaced_share"] is None
    assert "another draw" not in done.stdout


def test_several_tables_join(tmp_path, clipdata):
    uid, a = make_table(tmp_path / "a", columns=("neg_clip_loss",))
    _, b = make_table(tmp_path / "b", columns=("norm_sim_inf",), seed=1)
    assert clipdata("select", "a", "b", "--rule", RULE, "--out", "s.npy").returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), two_steps(uid, a | b))


def test_tables_with_other_uids_are_refused(tmp_path, clipdata):
    make_table(tmp_path / "a", columns=("neg_clip_loss",))
    make_table(tmp_path / "b", columns=("norm_sim_inf",))
    part = tmp_path / "b/00000001.parquet"
    part.write_bytes(score_tables.part_bytes(np.zeros(25, uids.DTYPE), {"norm_sim_inf": np.zeros(25)}))
    done = clipdata("select", "a", "b", "--rule", RULE, "--out", "s.npy")
    assert refused(done, "b/00000001.parquet: its uids differ from those of a")


def test_nulls_infinities_and_repeated_uids_are_counted_and_said(tmp_path, capsys):
    rng = np.random.default_rng(0)
    uid = uids.join_halves(*rng.integers(0, 2**64, (2, 100), dtype=np.uint64))
    uid[1::20] = uid[::20]
    values = rng.normal(size=100).astype(np.float32)
    values[10:13] = np.inf
    null = np.arange(100) >= 95
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/0.parquet").write_bytes(score_tables.part_bytes(uid, {"a": values}, null))
    out = str(tmp_path / "s.npy")
    found = select.run(config.Select(scores=(str(tmp_path / "scores"),), rule="top(a, 1)", out=out))
    assert (found.pairs, found.kept, found.uids) == (100, 92, 87)
    assert found.without_score == {"a": {"null": 5, "infinite": 3}}
    assert capsys.readouterr().out.splitlines() == [
        f"kept 92 of 100 pairs (92.00 %): {out}",
        "considered  kept  step",
        "----------------------",
        "       100    92  top(a, 1) (100 asked for)",
        "a: 5 pairs have no score and 3 an infinite one; it selects none of them",
        "5 of them repeat the uid of another; the subset holds each uid once: 87",
    ]


def test_subsets_are_inputs_too(tmp_path, clipdata):
    uid, _ = make_table(tmp_path / "scores")
    uids.write_subset(str(tmp_path / "seen.npy"), uid[:50])
    done = clipdata("select", "scores", "--rule", 'top(norm_sim_inf, 1) - uids("seen.npy")', "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), np.sort(uid[50:]))
    content = json.loads((tmp_path / "s.npy.manifest.json").read_text())
    assert "seen.npy" in [entry["relative"] for entry in content["inputs"]]


def test_a_rule_that_keeps_nothing_is_refused_and_shows_where(tmp_path, clipdata):
    make_table(tmp_path / "scores")
    rule = "top(norm_sim_inf, 0.3) >> (neg_clip_loss > 1000)"
    done = clipdata("select", "scores", "--rule", rule, "--out", "s.npy")
    assert refused(done, "the rule keeps nothing, so no subset is written")
    assert done.stderr.splitlines()[-2:] == [
        "       100    30  top(norm_sim_inf, 0.3)",
        "        30     0  (neg_clip_loss > 1000)",
    ]
    assert not list(tmp_path.glob("s.npy*"))
    done = clipdata("select", "scores", "--rule", rule, "--explain")
    assert done.returncode == 0
    assert "the rule keeps nothing" in done.stdout


def test_explain_says_what_is_kept_and_writes_nothing(tmp_path, clipdata):
    make_table(tmp_path / "scores")
    before = sorted(tmp_path.rglob("*"))
    done = clipdata("select", "scores", "--rule", RULE, "--explain")
    assert done.returncode == 0, done.stderr
    written = clipdata("select", "scores", "--rule", RULE, "--out", "new.npy").stdout
    assert done.stdout == written.replace(": new.npy", ": nothing is written")
    done = clipdata("select", "scores", "--rule", RULE, "--out", "s.npy", "--explain")
    assert done.returncode == 0
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "new.npy", tmp_path / "new.npy.manifest.json"])
    assert refused(clipdata("select", "scores", "--rule", RULE), "--out is missing", "--explain")


def test_numbers_are_compared_as_they_are_stored(tmp_path, clipdata):
    """Whole numbers that float32 can't tell apart, and doubles just below the float32 of a bound."""
    uid = uids.join_halves(np.zeros(3, np.uint64), np.arange(3, dtype=np.uint64))
    (tmp_path / "scores").mkdir()
    rows = np.array([2**24, 2**24 + 1, 2**24 + 2])
    (tmp_path / "scores/0.parquet").write_bytes(score_tables.part_bytes(uid, {"nearest": rows}))
    double = [0.28, np.nextafter(0.28, 0), 0.5]
    pq.write_table(pa.table({"uid": uids.to_hex(uid), "d": double, "n": rows}), tmp_path / "more.parquet")
    for rule, kept in (("(nearest == 16777217)", [1]), ("(n >= 16777217)", [1, 2]), ("(d >= 0.28)", [0, 2])):
        out = tmp_path / f"{kept}.npy"
        done = clipdata("select", "scores", "--columns", "more.parquet", "--rule", rule, "--out", out)
        assert done.returncode == 0, done.stderr
        assert np.load(out)["f1"].tolist() == kept, done.stderr


def test_columns_of_others_join_by_uid(tmp_path, clipdata):
    uid, columns = make_table(tmp_path / "scores")
    rng = np.random.default_rng(5)
    order, strangers = rng.permutation(100)[:90], np.array([(1, 1), (1, 2), (2, 1)], uids.DTYPE)
    hype = rng.normal(size=93).astype(np.float32)
    names = uids.to_hex(np.concatenate([uid[order], strangers]))
    pq.write_table(pa.table({"uid": names, "text": ["x"] * 93, "hype": hype}), tmp_path / "hype.parquet")
    aesthetic = np.zeros(100, "u8,u8,f4")
    aesthetic["f0"], aesthetic["f1"], aesthetic["f2"] = uid["f0"], uid["f1"], rng.normal(size=100)
    np.save(tmp_path / "aesthetic.npy", aesthetic[::-1])
    whole = np.full(100, np.nan, np.float32)
    whole[order] = hype[:90]
    rule = "top(rank(hype) + 0.5 * rank(neg_clip_loss), 0.3) >> (aesthetic > 0)"
    files = ("hype.parquet", "aesthetic.npy")
    done = clipdata("select", "scores", "--rule", rule, "--out", "s.npy", "--columns", *files)
    assert done.returncode == 0, done.stderr
    want = selection.parse(rule).keep({**columns, "hype": whole, "aesthetic": aesthetic["f2"]}, uid)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), np.sort(uid[want]))
    found = "hype.parquet: 90 of 100 pairs found; 3 of its 93 rows match no pair of the pool"
    assert {found, "aesthetic.npy: 100 of 100 pairs found"} <= set(done.stdout.splitlines())
    assert "hype: 10 pairs have no score and 0 an infinite one" in done.stdout
    content = json.loads((tmp_path / "s.npy.manifest.json").read_text())
    assert content["joined"]["aesthetic.npy"] == {"rows": 100, "not_in_the_pool": 0, "pairs_found": 100}
    assert set(files) <= {entry["relative"] for entry in content["inputs"]}
    again = clipdata("select", "scores", "--rule", rule, "--out", "s.npy", "--columns", *files[::-1])
    assert refused(again, "the results of another run (--columns was")


def test_columns_of_others_are_renamed_to_identifiers_and_that_is_said(tmp_path, clipdata):
    uid, _ = make_table(tmp_path / "scores")
    score = np.random.default_rng(1).normal(size=100).astype(np.float32)
    table = pa.table({"uid": uids.to_hex(uid), "vit-b-32": score, "2x": -score})
    pq.write_table(table, tmp_path / "t.parquet")
    flags = ("select", "scores", "--columns", "t.parquet", "--out", "s.npy", "--rule")
    done = clipdata(*flags, "top(vit_b_32 - _2x, 0.3)")
    assert done.returncode == 0, done.stderr
    assert "t.parquet: columns renamed for rules: 'vit-b-32' as vit_b_32, '2x' as _2x" in done.stdout
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), np.sort(uid[np.argsort(-score)[:30]]))
    pq.write_table(table.append_column("vit_b_32", table["2x"]), tmp_path / "t.parquet")
    done = clipdata(*flags, "top(vit_b_32, 0.3)")
    assert refused(done, "t.parquet: columns 'vit-b-32' and 'vit_b_32' would both be named vit_b_32; rename one")


def test_columns_of_others_join_by_another_id_than_the_uid(tmp_path, clipdata):
    """By key, by a hash that images share, by numbers; what is found and what isn't is counted."""
    made = make_pool(tmp_path / "pool", [7, 5], dim=4)
    sha = [f"{row % 9:064x}" for row in range(12)]
    for part, rows in (("00000000", slice(0, 7)), ("00000001", slice(7, 12))):
        keys = [f"{row:09d}" for row in range(12)][rows]
        table = {"uid": made["uid"][rows], "key": keys, "sha256": sha[rows], "n": range(12)[rows]}
        pq.write_table(pa.table(table), tmp_path / f"pool/{part}.parquet")
    assert clipdata("score", "pool", "--scores", "clip_score", "--out", "scores").returncode == 0
    flyt = {
        "key": ["000000009", "000000002", "no", None, "000000004"],
        "flyt": [1.0, 2.0, 3.0, 4.0, -1.0],
        "y": [0.5] * 5,
    }
    pq.write_table(pa.table(flyt), tmp_path / "flyt.parquet")
    pq.write_table(pa.table({"sha256": pa.array(sha[:9]).dictionary_encode(), "x": range(9)}), tmp_path / "sha.parquet")
    pq.write_table(pa.table({"n": pa.array([3, 11], pa.int32()), "x": [5, 6]}), tmp_path / "n.parquet")
    pq.write_table(pa.table({"key": ["9", "2"], "x": [5, 6]}), tmp_path / "other.parquet")

    def select(file, on, rule, *more):
        done = clipdata("select", "scores", "--columns", file, *on, "--rule", rule, *(more or ("--out", f"{file}.npy")))
        kept = uids.to_hex(np.load(tmp_path / f"{file}.npy")) if done.returncode == 0 and not more else []
        return done, sorted(made["uid"].tolist().index(uid) for uid in kept)

    done, kept = select("flyt.parquet", ("--on", "key", "--memory-gb", 0), "(flyt > 0) >> (clip_score > -1)")
    assert kept == [2, 9], done.stderr
    assert "flyt.parquet: 3 of 12 pairs found; 2 of its 5 rows match no pair of the pool" in done.stdout
    manifest = json.loads((tmp_path / "flyt.parquet.npy.manifest.json").read_text())
    assert manifest["joined"] == {"flyt.parquet": {"rows": 5, "not_in_the_pool": 2, "pairs_found": 3}}
    assert {Path(entry["name"]).parent.name for entry in manifest["inputs"]} >= {"pool", "scores"}
    done, kept = select("sha.parquet", ("--on", "sha256"), "(x <= 1)")
    assert kept == [0, 1, 9, 10]
    assert "sha.parquet: 12 of 12 pairs found; 3 pairs share a row with another" in done.stdout
    shutil.copytree(tmp_path / "pool", tmp_path / "own")
    for path in (tmp_path / "own").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop(["uid"]), path)
    by_key = ("--scores", "clip_score", "--uid-column", "key", "--limit", 11, "--out", "by_key")
    assert clipdata("score", "own", *by_key).returncode == 0
    more = ("--columns", "sha.parquet", "--on", "sha256", "--rule", "(x <= 1)", "--explain")
    assert "sha.parquet: 11 of 11 pairs found" in clipdata("select", "by_key", *more).stdout
    done, kept = select("n.parquet", ("--on", "n", "--metadata", "pool"), "(x > 1)")
    assert kept == [3, 11], done.stderr
    done, _ = select("n.parquet", ("--on", "n"), "top(clip_score, 0.5)", "--explain")
    assert "n.parquet: not read; the rule has none of its columns" in done.stdout
    for file, on, words in (
        (
            "flyt.parquet",
            (),
            "has no column uid, nor uid_hi and uid_lo, to join its rows by; it has key, flyt, y; --on NAME",
        ),
        ("sha.parquet", ("--on", "key"), "sha.parquet: has no column key to join its rows by; it has sha256, x"),
        ("flyt.parquet", ("--on", "y"), "column 'y' holds double, expected text, integers or UUIDs"),
        ("other.parquet", ("--on", "key"), "its key are such as '9', the metadata's such as '000000000'"),
        ("flyt.parquet", ("--on", "key", "--metadata", "scores"), "scores/00000000.parquet: has no columns 'key'"),
        ("flyt.parquet", ("--on", "key", "--metadata", "nowhere"), "nowhere: no such folder"),
    ):
        assert refused(
            select(file, on, "top(flyt, 0.5)" if file == "flyt.parquet" else "top(x, 0.5)", "--explain")[0], words
        )
    pq.write_table(pq.read_table(tmp_path / "pool/00000001.parquet")[::-1], tmp_path / "pool/00000001.parquet")
    done, _ = select("flyt.parquet", ("--on", "key"), "(flyt > 1)", "--explain")
    assert refused(done, "pool/00000001.parquet: its rows are not those of the score table")


def test_halves_integers_and_booleans_of_others_are_compared_exactly(tmp_path, clipdata):
    uid, _ = make_table(tmp_path / "scores", sizes=(2, 2))
    big = [2**53, 2**53 + 1, 0, None]
    table = {"uid": uids.to_hex(uid), "half": np.array([0.3, 0.29, 0.5, 0.1], np.float16), "n": [7, 8, 9, None],
             "nsfw": [True, None, False, False], "big": big, "word": list("abcd")}  # fmt: skip
    (tmp_path / "more").mkdir()
    pq.write_table(pa.table(table)[:3], tmp_path / "more/0.parquet")
    index = pa.table({**table, "__index_level_0__": range(4)})  # as pandas writes what is left of a table
    pq.write_table(index[3:], tmp_path / "more/1.parquet")
    flags = ("select", "scores", "--columns", "more", "--rule")
    for rule, rows in (
        ("(half == 0.3) | (half >= 0.5)", [0, 2]),
        ("(half < 70000)", [0, 1, 2, 3]),
        ("(nsfw == 0) - (half < 0.2)", [2]),
        ("(n > 7.99999999)", [1, 2]),
        ("top(nsfw + n, 0.25)", [2]),
    ):
        done = clipdata(*flags, rule, "--out", f"{rule}.npy")
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(tmp_path / f"{rule}.npy"), np.sort(uid[rows]), err_msg=rule)
    for name, words in (
        ("big", "more/0.parquet: column 'big' holds integers beyond 2^53, which a rule can't tell from"),
        ("word", "more/0.parquet: column 'word' holds string, expected numbers"),
        ("__index_level_0__", "more/0.parquet: has no column '__index_level_0__', which other files beside it have"),
        ("nothing", "unknown column 'nothing'; the columns are big, half, n, neg_clip_loss, norm_sim_inf, nsfw"),
    ):
        assert refused(clipdata(*flags, f"(half > 0) & top({name}, 0.5)", "--explain"), words)


@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        "top(rank(neg_clip_loss) - norm_sim_inf, 0.29) | bottom(norm_sim_inf, 0.1)",
        "sample(neg_clip_loss, 0.5, temperature=0.5) >> at_most(20) - uids('seen.npy')",
    ],
)
def test_files_and_memory_change_nothing(tmp_path, clipdata, monkeypatch, rule):
    uid, columns = make_table(tmp_path / "scores")
    (tmp_path / "one").mkdir()
    (tmp_path / "one/0.parquet").write_bytes(score_tables.part_bytes(uid, columns))
    uids.write_subset(str(tmp_path / "seen.npy"), uid[::9])
    assert clipdata("select", "scores", "--rule", rule, "--out", "parts.npy").returncode == 0
    assert clipdata("select", "one", "--rule", rule, "--out", "one.npy").returncode == 0
    monkeypatch.setattr("clipdata_jax.selection.search._COLLECT", 1)
    done = clipdata("select", "scores", "--rule", rule, "--out", "streamed.npy", "--memory-gb", 0)
    assert done.returncode == 0, done.stderr
    kept = (tmp_path / "parts.npy").read_bytes()
    assert kept == (tmp_path / "one.npy").read_bytes() == (tmp_path / "streamed.npy").read_bytes()


@pytest.mark.parametrize(
    ("rule", "kept"), [("top(neg_clip_loss, 1)", 100), ("top(neg_clip_loss, 1) >> bottom(norm_sim_inf, 0.29)", 29)]
)
def test_fraction_1_keeps_every_pair_with_a_score(tmp_path, clipdata, rule, kept):
    make_table(tmp_path / "scores")
    assert clipdata("select", "scores", "--rule", rule, "--out", "s.npy").returncode == 0
    assert len(np.load(tmp_path / "s.npy")) == kept


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("top(neg_clip_lost, 0.3)", ["unknown column 'neg_clip_lost'", "did you mean neg_clip_loss?", "^^^^"]),
        ("top(neg_clip_loss, 0.3", ["never closed", "\n     ^"]),
        ("top(neg_clip_loss, 0)", ["the fraction is 0", "above 0 and at most 1", "\n" + " " * 21 + "^"]),
        ("top(neg_clip_loss, 1.5)", ["the fraction is 1.5", "above 0 and at most 1", "\n" + " " * 21 + "^^^"]),
        ("uids('none.npy')", ["none.npy: no such file"]),
        ("", ["the rule is empty"]),
    ],
)
def test_wrong_rules(tmp_path, clipdata, rule, words):
    make_table(tmp_path / "scores")
    done = clipdata("select", "scores", "--rule", rule, "--out", "s.npy")
    assert refused(done, *words)
    assert not (tmp_path / "s.npy").exists()


def test_wrong_inputs_and_outputs(tmp_path, clipdata):
    make_table(tmp_path / "scores")
    make_table(tmp_path / "other", sizes=(40, 25))
    make_table(tmp_path / "none", sizes=(0,))
    (tmp_path / "empty").mkdir()
    tail = ("--rule", RULE, "--out", "s.npy")
    assert refused(clipdata("select", "missing", *tail), "missing: no such folder")
    assert refused(clipdata("select", "empty", *tail), "empty: is empty")
    assert refused(clipdata("select", "none/00000000.parquet", *tail), "not a folder")
    assert refused(clipdata("select", "none", *tail), "none: the score table holds no pairs")
    assert refused(clipdata("select", "scores", "other", *tail), "not scores of one pool")
    assert refused(clipdata("select", "scores", "--rule", RULE, "--out", "s.txt"), "ends in .npy")
    assert refused(clipdata("select", "scores", "--rule", RULE, "--out", "scores/00000000.parquet/s.npy"), "can't be")


def test_another_runs_subset_stays(tmp_path, clipdata):
    make_table(tmp_path / "scores")
    assert clipdata("select", "scores", "--rule", RULE, "--out", "s.npy").returncode == 0
    before = (tmp_path / "s.npy").read_bytes()
    done = clipdata("select", "scores", "--rule", "top(neg_clip_loss, 0.3)", "--out", "s.npy")
    assert refused(done, "already holds the results of another run (--rule was", "choose another --out")
    (tmp_path / "s.npy.manifest.json").unlink()
    assert refused(clipdata("select", "scores", "--rule", RULE, "--out", "s.npy"), "was not written by this command")
    assert (tmp_path / "s.npy").read_bytes() == before


@pytest.mark.parametrize("arguments", [["--help"], ["scores", "--rule", RULE, "--out", "s.npy"]])
def test_selecting_imports_no_jax(tmp_path, arguments):
    make_table(tmp_path / "scores")
    code = (
        "import sys\nfrom clipdata_jax import cli\n"
        f"try:\n  assert cli.main({['select', *arguments]!r}) == 0\n"
        "except SystemExit as stop:\n  assert not stop.code\n"
        "assert not {'jax', 'flax', 'tensorflow', 'torch'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False, env={"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
