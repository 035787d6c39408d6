"""The real `clipdata dedup` on made pools, against every pair compared in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.pools import cut_short, edit_npz, make_pool

from clipdata_jax.commands import dedup
from clipdata_jax.formats import score_tables, uids

SIZES = (40, 25, 35)
COPIES = {5: 3, 60: 3, 99: 3, 41: 70, 80: 81}  # row -> the row whose image it has, nearly


def pool_with_copies(folder: Path, copies=COPIES, **options) -> dict[str, np.ndarray]:
    made = make_pool(folder, SIZES, dim=16, **options)
    noise = np.random.default_rng(1).normal(size=made["img"].shape)
    for row, of in copies.items():
        near = made["img"][of].astype(float) + 0.01 * noise[row]
        made["img"][row] = near / np.linalg.norm(near)
    for index, start in enumerate(np.cumsum([0, *SIZES[:-1]])):
        edit_npz(folder / f"{index:08d}.npz", b32_img=made["img"][start : start + SIZES[index]])
    return made


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dedup")
    made = pool_with_copies(folder / "pool")
    made["score"] = np.random.default_rng(2).normal(size=100).astype(np.float32)
    made["score"][[3, 70]] = 9, np.nan
    (folder / "scores").mkdir()
    uid = uids.from_hex(list(made["uid"]))
    for index, start in enumerate(np.cumsum([0, *SIZES[:-1]])):
        rows = slice(start, start + SIZES[index])
        part = score_tables.part_bytes(uid[rows], {"quality": made["score"][rows]})
        (folder / "scores" / f"{index:08d}.parquet").write_bytes(part)
    np.save(folder / "eval.npy", made["img"][[50, 3]])
    np.save(folder / "other.npy", make_pool(folder / "unused", (7,), dim=16, seed=5)["img"])
    return folder, made


@pytest.fixture
def run(work, clipdata, tmp_path, monkeypatch):
    folder, _ = work
    for name in ("pool", "scores", "eval.npy", "other.npy"):
        (tmp_path / name).symlink_to(folder / name)
    return clipdata


def kept(path: Path, made) -> list[int]:
    """The rows whose uids a subset holds."""
    held = set(uids.to_hex(np.load(path)))
    return [row for row, uid in enumerate(made["uid"]) if uid in held]


def rows_of(path: Path) -> dict[str, dict]:
    return {row["uid"]: row for row in pq.read_table(path).to_pylist()}


def done_well(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def nearest_others(emb: np.ndarray) -> np.ndarray:
    """The cosine of each unit row with the nearest other."""
    return (emb @ emb.T - 3 * np.eye(len(emb))).max(axis=1)


def refused(done, *words) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_one_pair_of_each_group_stays(run, work, tmp_path):
    made = work[1]
    groups = [{3, 5, 60, 99}, {41, 70}, {80, 81}]
    text = done_well(run("dedup", "pool", "--out", "s.npy"))
    assert "kept 95 of 100 pairs (95.00 %)" in text
    assert "3 groups of near-duplicates, images of cosine 0.95 and up: 5 dropped; the largest group has 4 pairs" in text
    lowest = {min(group, key=lambda row: made["uid"][row]) for group in groups}
    dropped = set().union(*groups) - lowest
    assert kept(tmp_path / "s.npy", made) == [row for row in range(100) if row not in dropped]
    table = rows_of(tmp_path / "s.duplicates.parquet")
    assert {uid for uid, row in table.items() if row["kept"]} == {made["uid"][row] for row in lowest}
    emb = made["img"].astype(float)
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    place = {uid: row for row, uid in enumerate(made["uid"])}
    for group in groups:
        (head,) = lowest & group
        found = [table[made["uid"][row]] for row in group]
        assert len({row["group"] for row in found}) == 1
        assert {(row["size"], row["representative"], row["against"]) for row in found} == {
            (len(group), made["uid"][head], None)
        }
        for row in found:
            assert row["cosine"] == pytest.approx(emb[place[row["uid"]]] @ emb[head], abs=1e-6)
            assert row["nearest"] == pytest.approx(nearest_others(emb)[place[row["uid"]]], abs=6e-5)
    manifest = json.loads((tmp_path / "s.npy.manifest.json").read_text())
    counts = dict(manifest["nearest"])
    hundredths = np.round(10_000 * nearest_others(emb)).astype(int) // 100
    assert counts == {bin_ / 100: (hundredths == bin_).sum() for bin_ in hundredths}
    assert len(table) == 8
    assert not (tmp_path / "s.npy.work").exists()
    assert "all good" in done_well(run("verify", "s.npy", "s.duplicates.parquet"))
    assert "Already complete" in done_well(run("dedup", "pool", "--out", "s.npy"))
    refused(run("dedup", "pool", "--out", "s.npy", "--threshold", 0.9), "--threshold was 0.95, now 0.9")
    done_well(run("dedup", "pool", "--out", "s.npy", "--threshold", 0.9, "--overwrite"))


def test_the_best_stays_and_null_is_the_worst(run, work, tmp_path):
    made = work[1]
    command = ("dedup", "pool", "--keep", "best:quality", "--scores", "scores", "--out", "s.npy")
    done = run(*command, "--json", "--quiet")
    result = json.loads(done_well(done))["result"]
    assert (result["kept"], result["duplicates"], result["groups"], result["largest_group"]) == (95, 5, 3, 4)
    stays = {3, 41, max((80, 81), key=lambda row: made["score"][row])}
    want = [row for row in range(100) if row in stays or row not in {3, 5, 60, 99, 41, 70, 80, 81}]
    assert kept(tmp_path / "s.npy", made) == want
    refused(run(*command[:3], "best:other", *command[4:-1], "o.npy"), "has no column 'other'; it has quality")


@pytest.mark.parametrize("by", ["text", "both"])
def test_captions_count_if_asked(run, work, tmp_path, by):
    made = work[1]
    done_well(run("dedup", "pool", "--by", by, "--threshold", 0.6, "--groups", "greedy", "--out", "s.npy"))
    near = np.ones((100, 100), bool)
    for name in {"text": ["txt"], "both": ["img", "txt"]}[by]:
        emb = made[name].astype(float)
        emb /= np.linalg.norm(emb, axis=1, keepdims=True)
        near &= emb @ emb.T >= 0.6
    stays: list[int] = []
    for row in sorted(range(100), key=lambda row: made["uid"][row]):
        if not near[row, stays].any():
            stays.append(row)
    assert kept(tmp_path / "s.npy", made) == sorted(stays)
    assert len(stays) < 100


def test_what_is_near_another_set_goes(run, work, tmp_path):
    made = work[1]
    text = done_well(run("dedup", "pool", "--against", "test=eval.npy", "other=other.npy", "--out", "s.npy"))
    assert "dropped, too near an image of test: 5" in text
    assert "dropped, too near an image of other: 0" in text
    assert set(kept(tmp_path / "s.npy", made)).isdisjoint({50, 3, 5, 60, 99})
    table = rows_of(tmp_path / "s.duplicates.parquet")
    found = {row["uid"]: (row["against_row"], row["kept"]) for row in table.values() if row["against"] == "test"}
    assert found == {made["uid"][row]: (0 if row == 50 else 1, False) for row in (50, 3, 5, 60, 99)}
    assert table[made["uid"][50]]["against_cosine"] == 1
    assert table[made["uid"][50]]["group"] is None
    done_well(run("dedup", "pool", "--by", "text", "--against", "test=eval.npy", "--out", "t.npy"))
    assert not {50, 3, 5, 60, 99} & set(kept(tmp_path / "t.npy", made))


def test_clusters_by_semdedups_rule(run, work, tmp_path):
    made = work[1]
    centroids = made["img"][[0, 3, 41, 80]].astype(np.float32)
    np.save(tmp_path / "c.npy", centroids)
    command = ("dedup", "pool", "--centroids", "c.npy", "--groups", "semdedup", "--threshold", 0.5)
    assert "inside 4 clusters" in done_well(run(*command, "--out", "s.npy"))
    emb = made["img"].astype(float)
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    cluster = (made["img"].astype(np.float32) @ centroids.T).argmax(axis=1)
    direction = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    near = (emb @ emb.T >= 0.5) & (cluster[:, None] == cluster)
    order = sorted(range(100), key=lambda row: (emb[row] @ direction[cluster[row]], made["uid"][row]))
    stays = [row for at, row in enumerate(order) if not near[row, order[:at]].any()]
    assert kept(tmp_path / "s.npy", made) == sorted(stays)
    assert len(stays) < 95
    done_well(run("dedup", "pool", "--clusters", 3, "--out", "k.npy"))
    assert len(kept(tmp_path / "k.npy", made)) == 95, "near-duplicates of cosine 0.99 lie in one cluster"


@pytest.fixture
def small_steps(monkeypatch):
    """Several units of a hundred rows."""
    from clipdata_jax.scoring import duplicate_search, duplicate_units

    for module in (duplicate_search, duplicate_units):
        monkeypatch.setattr(module, "BLOCK", 32)
    for name, value in {"_SIDE": 16, "_SMALL": 16, "_SMALL_SIDE": 16}.items():
        monkeypatch.setattr(duplicate_search, name, value)


@pytest.mark.parametrize("extra", [(), ("--clusters", 4, "--against", "test=eval.npy")])
def test_parts_workers_and_kills_give_the_same_bytes(run, work, tmp_path, small_steps, monkeypatch, extra):
    command = ("dedup", "pool", *extra, "--out")
    done_well(run(*command, "whole.npy"))
    done = run(*command, "parts.npy", "--stop-after", 2)
    assert (done.returncode, "stopped after 2 of" in done.stderr) == (75, True), done.stderr
    assert not (tmp_path / "parts.npy").exists()
    done_well(run(*command, "parts.npy"))
    for worker in ("1/2", "0/2"):
        done_well(run(*command, "shared.npy", "--worker", worker))
    real, calls = dedup.duplicate_table.write, []

    def killed(*given):
        calls.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(dedup.duplicate_table, "write", killed)
    assert run(*command, "killed.npy").returncode == 75
    monkeypatch.setattr(dedup.duplicate_table, "write", real)
    assert calls
    done_well(run(*command, "killed.npy"))
    for other in ("parts", "shared", "killed"):
        for end in ("npy", "duplicates.parquet"):
            assert (tmp_path / f"{other}.{end}").read_bytes() == (tmp_path / f"whole.{end}").read_bytes()


def test_a_process_with_one_device_agrees(run, tmp_path):
    done_well(run("dedup", "pool", "--threshold", 0.4, "--out", "here.npy"))
    done_well(run("dedup", "pool", "--threshold", 0.4, "--out", "there.npy", devices=1))
    for end in ("npy", "duplicates.parquet"):
        assert (tmp_path / f"here.{end}").read_bytes() == (tmp_path / f"there.{end}").read_bytes()


def test_all_the_same_is_one_group(clipdata, tmp_path):
    made = pool_with_copies(tmp_path / "pool", dict.fromkeys(range(1, 100), 0))
    assert "1 group of near-duplicates" in done_well(clipdata("dedup", "pool", "--out", "s.npy"))
    assert len(kept(tmp_path / "s.npy", made)) == 1


def test_bad_rows_stay_and_are_counted(clipdata, tmp_path):
    made = pool_with_copies(tmp_path / "pool")
    made["img"][[3, 5]] = np.nan
    edit_npz(tmp_path / "pool/00000000.npz", b32_img=made["img"][:40])
    refused(clipdata("dedup", "pool", "--out", "s.npy"), "2 of 100 pairs", "--max-bad-rows 0.01")
    text = done_well(clipdata("dedup", "pool", "--max-bad-rows", 0.1, "--out", "s.npy"))
    assert "kept without a comparison, bad embeddings: 2 not finite" in text
    assert {3, 5} <= set(kept(tmp_path / "s.npy", made))
    cut_short(tmp_path / "pool")
    refused(clipdata("dedup", "pool", "--max-bad-rows", 0.1, "--out", "o.npy"), "or use --on-bad skip")
    done_well(clipdata("dedup", "pool", "--max-bad-rows", 0.1, "--on-bad", "skip", "--out", "o.npy"))
    assert not set(range(40, 65)) & set(kept(tmp_path / "o.npy", made))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--threshold", 1.5), ("--threshold is 1.5, expected a cosine above -1 and at most 1",)),
        (("--threshold", -1), ("--threshold is -1.0",)),
        (("--clusters", 101), ("--clusters is 101, but the pool has 100 pairs; use fewer clusters",)),
        (("--groups", "semdedup"), ("--clusters is None, expected a number, or --centroids a file",)),
        (("--keep", "quality"), ("--keep is 'quality', expected best:COLUMN",)),
        (("--keep", "best:quality"), ("--scores is None, expected the folder of scores",)),
        (("--against", "eval.npy"), ("--against is 'eval.npy', expected NAME=PATH",)),
        (("--against", "wide=wide.npy"), ("wide.npy: the target has dimension 17, the pool 16",)),
        (("--against", "model=embedded.npy"), ("the target is of another model than the pool",)),
        (("--out", "s.txt"), ("--out is 's.txt', expected a file name that ends in .npy",)),
        (("--centroids", "eval.txt"), ("eval.txt",)),
    ],
)
def test_bad_options_are_one_sentence(run, tmp_path, flags, words):
    np.save(tmp_path / "wide.npy", np.eye(17, dtype=np.float16)[:3])
    if "embedded.npy" in str(flags):
        np.save(tmp_path / "embedded.npy", np.eye(16, dtype=np.float16)[:3])
        (tmp_path / "embedded.npy.manifest.json").write_text('{"models": {"b32": {"digest": "1", "name": "one"}}}')
        (tmp_path / "pool").unlink()
        make_pool(tmp_path / "pool", (9,), dim=16)
        (tmp_path / "pool/_manifest.json").write_text('{"models": {"b32": {"digest": "2", "name": "two"}}}')
    out = () if "--out" in flags else ("--out", "s.npy")
    refused(run("dedup", "pool", *flags, *out), *words)
    assert not (tmp_path / "s.npy").exists()


def test_captions_without_embeddings(clipdata, tmp_path):
    make_pool(tmp_path / "pool", (9,), dim=16)
    np.savez(tmp_path / "pool/00000000.npz", b32_img=np.eye(16, dtype=np.float16)[:9])
    refused(clipdata("dedup", "pool", "--by", "both", "--out", "s.npy"), "has no embeddings of captions")
    done_well(clipdata("dedup", "pool", "--out", "s.npy"))


def test_a_rule_keeps_the_best_of_each_group_of_the_table(run, work, tmp_path):
    made = work[1]
    done_well(run("dedup", "pool", "--keep", "best:quality", "--scores", "scores", "--out", "d.npy"))
    rule = "best_of(group, by=quality) >> (quality > -100)"
    done_well(run("select", "scores", "--columns", "d.duplicates.parquet", "--rule", rule, "--out", "s.npy"))
    scored = [row for row in kept(tmp_path / "d.npy", made) if np.isfinite(made["score"][row])]
    assert kept(tmp_path / "s.npy", made) == scored
    rule = "best_of(text, by=quality)"
    done_well(run("select", "scores", "--columns", "pool", "--rule", rule, "--out", "t.npy"))
    assert kept(tmp_path / "t.npy", made) == [int(np.nanargmax(made["score"]))], "all have the same caption"
    refused(
        run("select", "scores", "--columns", "pool", "--rule", "top(text, 0.3)", "--out", "u.npy"),
        "column 'text' holds string, expected numbers",
    )
    refused(
        run("select", "scores", "--rule", "best_of(quality, 0.3)", "--out", "u.npy"),
        "best_of takes a column of groups and a score: best_of(group, by=neg_clip_loss)",
    )
