"""The real `clipdata select` for draws with repetition, ties, and the rules and tables that papers publish."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pools import make_pool

from clipdata_jax.config import load_run
from clipdata_jax.formats import score_tables, uid_files, uids
from clipdata_jax.selection import parse, soft_cap


def make_table(folder, sizes, **columns):
    """Writes a score table; returns the uids of all parts, one after another."""
    folder.mkdir()
    uid = uids.join_halves(*np.random.default_rng(0).integers(0, 2**64, (2, sum(sizes)), dtype=np.uint64))
    start = 0
    for index, rows in enumerate(sizes):
        rows = slice(start, start + rows)
        held = {name: values[rows] for name, values in columns.items()}
        (folder / f"{index:08d}.parquet").write_bytes(score_tables.part_bytes(uid[rows], held))
        start = rows.stop
    return uid


@pytest.mark.parametrize(
    "rule", ["soft_cap(a, 500, penalty=0.15, batch=20)", "top(a, 0.5) >> hard_cap(a, 500, cap=15)"]
)
def test_a_subset_names_a_uid_as_often_as_it_was_drawn(tmp_path, clipdata, rule):
    a = np.random.default_rng(1).normal(size=200).astype(np.float32)
    uid = make_table(tmp_path / "scores", [80, 120], a=a)
    times = parse(rule).keep({"a": a}, uid)
    done = clipdata("select", "scores", "--rule", rule, "--out", "s.npy", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    distinct = int(np.count_nonzero(times))
    assert (result["kept"], result["uids"], result["total"]) == (distinct, distinct, 500)
    assert result["steps"][-1]["drawn"] == 500
    assert f"kept {distinct} of 200 pairs ({distinct / 2:.2f} %), drawn 500 times: s.npy" in done.stderr
    subset = np.load(tmp_path / "s.npy", allow_pickle=False)
    assert subset.dtype == np.dtype("u8,u8")
    np.testing.assert_array_equal(subset, np.sort(np.repeat(uid, times)))
    held, counts = uid_files.read_multiset(str(tmp_path / "s.npy"))
    np.testing.assert_array_equal(counts, times[times > 0][np.argsort(uid[times > 0])])
    assert len(held) == distinct
    # On disk instead of in memory: the same file.
    assert clipdata("select", "scores", "--rule", rule, "--out", "t.npy", "--memory-gb", "0").returncode == 0
    assert (tmp_path / "t.npy").read_bytes() == (tmp_path / "s.npy").read_bytes()
    assert clipdata("verify", "s.npy").returncode == 0
    assert clipdata("uids", "verify", "s.npy", "--multiset").returncode == 0


def test_too_many_draws_are_refused_and_nothing_is_written(tmp_path, clipdata):
    make_table(tmp_path / "scores", [20], a=np.arange(20, dtype=np.float32))
    done = clipdata("select", "scores", "--rule", "soft_cap(a, 500)", "--out", "s.npy")
    assert done.returncode == 2
    assert "draws 500 different pairs at a time, but 20 have a score" in done.stderr
    assert not (tmp_path / "s.npy").exists()


def test_a_cut_inside_a_tie_is_said(tmp_path, clipdata):
    a = np.repeat([3.0, 2, 1], [4, 18, 8]).astype(np.float32)
    make_table(tmp_path / "scores", [30], a=a, b=np.ones(30, np.float32))
    done = clipdata("select", "scores", "--rule", "top(a, 0.3)", "--out", "s.npy")
    assert "top(a, 0.3): 18 pairs tie where it cuts; the uid alone decided which 5 are kept" in done.stdout
    done = clipdata("select", "scores", "--rule", "bottom(b, n=7)", "--explain", "--json")
    (step,) = json.loads(done.stdout)["result"]["steps"]
    assert (step["tied"], step["tied_kept"]) == (30, 7)
    for rule in ("top(a, n=4)", "top(a, n=22)", "top(b, 1)", "sample(a, 0.3)", "at_most(4)"):
        assert "tie" not in clipdata("select", "scores", "--rule", rule, "--explain").stdout


def test_learnability_as_in_the_docs(tmp_path, clipdata):
    learner, reference = np.random.default_rng(4).normal(-0.1, 0.02, (2, 50)).astype(np.float32)
    uid = make_table(tmp_path / "learner_scores", [20, 30], neg_clip_loss=learner)
    make_table(tmp_path / "reference_scores", [20, 30], neg_clip_loss=reference)
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    words = shlex.split(page[page.index("clipdata select learner_scores") :].split("```")[0].replace("\\\n", ""))
    done = clipdata(*words[1:])
    assert done.returncode == 0, done.stderr
    losses = -learner.astype(float) / 0.01, -reference.astype(float) / 0.01
    want = np.sort(uid[np.argsort(losses[1] - losses[0])[:10]])
    np.testing.assert_array_equal(np.load(tmp_path / "subset.npy", allow_pickle=False), want)
    assert clipdata(*words[1:5], "a.b=reference_scores", *words[6:]).returncode == 2


# Of table 2 of the paper, by the names in the published table.
FLYT = {
    "vit-b-32": 0.08,
    "vit-l-14": 0.21,
    "DFN-Base": 0.60,
    "DFN-FT": 0.80,
    "CC2M-Classifier": 0.17,
    "IN1K-Classifier": 0.36,
    "FLYT": 0.65,
    "normsim_inf": 0.55,
    "negCLIPLoss": 0.51,
    "hype_lorentzian_distance": 0.45,
    "hype_image_specificity": -0.05,
    "hype_text_specificity": 0.02,
}


def test_the_published_table_of_flyt_joins_as_it_is_and_its_config_has_the_weights(tmp_path, clipdata):
    made = make_pool(tmp_path / "pool", [40, 30], dim=4)
    keys = np.array([f"{row:012d}" for row in range(70)])
    for part, rows in (("00000000", slice(0, 40)), ("00000001", slice(40, 70))):
        pq.write_table(pa.table({"uid": made["uid"][rows], "key": keys[rows]}), tmp_path / f"pool/{part}.parquet")
    assert clipdata("score", "pool", "--scores", "clip_score", "--out", "scores").returncode == 0
    rng = np.random.default_rng(0)
    order, values = rng.permutation(70), rng.normal(size=(12, 70))
    (tmp_path / "flyt").mkdir()
    for number, rows in enumerate(np.array_split(order, 3)):  # a file for each prefix of the keys, in any order
        table = {"key": keys[rows], **dict(zip(FLYT, values[:, rows], strict=True))}
        pq.write_table(pa.table(table), tmp_path / f"flyt/{number:08d}_scores.parquet")
    select = load_run(str(Path(__file__).parents[2] / "configs/datacomp_medium_flyt.py")).select
    assert select is not None
    rule = select.rule.replace("128_000_000, penalty=0.15", "100, penalty=0.15, batch=10")
    done = clipdata("select", "scores", "--columns", "flyt", "--on", "key", "--rule", rule, "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    assert "flyt: 70 of 70 pairs found" in done.stdout
    renamed = "'vit-b-32' as vit_b_32, 'vit-l-14' as vit_l_14, 'DFN-Base' as DFN_Base, 'DFN-FT' as DFN_FT,"
    assert f"flyt: columns renamed for rules: {renamed}" in done.stdout
    uid = uids.from_hex(made["uid"].tolist())
    score = (np.array(list(FLYT.values())) * values.T).sum(axis=1)
    times = soft_cap("score", 100, penalty=0.15, batch=10).keep({"score": score}, uid)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), np.sort(np.repeat(uid, times)))
