"""The real `clipdata norm-sim-d` on made pools, against the selection written plainly and reference values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from support.pools import cut_short, edit_npz, make_pool

from clipdata_jax.commands import norm_sim_d
from clipdata_jax.formats import uids
from clipdata_jax.scoring import norm_sim_d_steps
from clipdata_jax.scoring.norm_sim_d_steps import Rows, State, sum_moment, take_step


def plainly(emb: np.ndarray, first: np.ndarray, *, keep: int, steps: int) -> np.ndarray:
    """The rows kept, by the equations in float64; `first` is whose second moment the first step uses."""
    emb = emb.astype(float)
    rows, source, drop = np.arange(len(emb)), first.astype(float), math.ceil((len(emb) - keep) / steps)
    while len(rows) > keep:
        score = np.einsum("nd,de,ne->n", emb[rows], source.T @ source / len(source), emb[rows])
        rows = np.sort(rows[np.argsort(-score)][: max(keep, len(rows) - drop)])
        source = emb[rows]
    return rows


def as_uids(hexes: np.ndarray) -> np.ndarray:
    return uids.sort_unique(uids.from_hex(list(hexes)))


def skewed(folder: Path, sizes=(40, 25, 35), **options) -> dict[str, np.ndarray]:
    """A pool whose images lie mostly along a few directions, so that scores and moments differ."""
    made = make_pool(folder, sizes, dim=16, **options)
    scale = np.geomspace(3, 0.3, 16)
    first = 0
    for index, rows in enumerate(sizes):
        img = made["img"][first : first + rows] * scale
        img = (img / np.linalg.norm(img, axis=1, keepdims=True)).astype(np.float16)
        edit_npz(folder / f"{index:08d}.npz", b32_img=img)
        made["img"][first : first + rows] = img
        first += rows
    return made


def refused(done, *words) -> bool:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("clipdata norm-sim-d: ") or "\nclipdata norm-sim-d: " in done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    return True


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(norm_sim_d_steps, "BLOCK", 8)


@pytest.mark.parametrize(("share", "steps"), [("0.2", 10), ("0.3", 7)])
def test_the_reference_values(tmp_path, golden, clipdata, share, steps):
    with np.load(golden / "reference_scores.npz") as file:
        emb, want = file["img"], file[f"normsim2d_frac{share}_iters{steps}"]
    made = make_pool(tmp_path / "pool", (600, 400), dim=64)
    edit_npz(tmp_path / "pool/00000000.npz", b32_img=emb[:600])
    edit_npz(tmp_path / "pool/00000001.npz", b32_img=emb[600:])
    done = clipdata("norm-sim-d", "pool", "--fraction", share, "--steps", steps, "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), as_uids(made["uid"][np.sort(want)]))


@pytest.mark.parametrize("init", ["pool", "survivors"])
def test_it_is_the_plain_selection_from_the_survivors(tmp_path, clipdata, small_blocks, init):
    made = skewed(tmp_path / "pool")
    of_pool = np.sort(np.random.default_rng(0).permutation(100)[:70])
    uids.write_subset(str(tmp_path / "best.npy"), as_uids(made["uid"][of_pool]))
    command = ["norm-sim-d", "pool", "--survivors", "best.npy", "--fraction", 0.2, "--steps", 7, "--init", init]
    done = clipdata(*command, "--out", "new/s.npy")
    assert done.returncode == 0, done.stderr
    emb = made["img"][of_pool]
    first = made["img"] if init == "pool" else emb
    want = made["uid"][of_pool[plainly(emb, first, keep=20, steps=7)]]
    np.testing.assert_array_equal(np.load(tmp_path / "new/s.npy"), as_uids(want))
    said = done.stdout.splitlines()
    assert said[0] == "kept 20 of 100 pairs (20.00 %): new/s.npy"
    assert said[1] == "from 70 survivors, in 7 steps of 8 pairs"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "s.npy", "s.npy.manifest.json", "s.npy.run.jsonl", "s.npy.trace.jsonl",
    ]  # fmt: skip


def test_the_trace_has_a_line_per_step(tmp_path, clipdata):
    made = skewed(tmp_path / "pool")
    assert clipdata("norm-sim-d", "pool", "--count", 31, "--steps", 10, "--out", "s.npy").returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "s.npy.trace.jsonl").read_text().splitlines()]
    # 69 rows in ten steps are 7 a step, so that the last has 6 left to drop.
    assert [line["rows"] for line in lines] == [*range(100, 36, -7), 31]
    assert [line["step"] for line in lines] == list(range(11))
    emb = made["img"].astype(float)
    want = np.linalg.eigvalsh(emb.T @ emb / 100)[::-1][:8]
    np.testing.assert_allclose(lines[0]["eigenvalues"], want, rtol=1e-5)
    score = np.sort(np.einsum("nd,de,ne->n", emb, emb.T @ emb / 100, emb))
    np.testing.assert_allclose(lines[1]["threshold"], score[7], rtol=1e-5)
    times = [json.loads(line) for line in (tmp_path / "s.npy.run.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rows"]) for line in times] == list(enumerate(range(100, 36, -7), start=1))
    names = {"read_seconds", "compute_seconds", "write_seconds", "rows_per_second", "time", "process"}
    assert all(names <= set(line) and min(line[name] for name in names) >= 0 for line in times)
    content = json.loads((tmp_path / "s.npy.manifest.json").read_text())
    assert (content["kept"], content["pairs"], content["steps_taken"]) == (31, 100, 10)
    assert [Path(entry["name"]).suffix for entry in content["pool_files"]] == [".npz", ".parquet"] * 3


def test_the_same_rows_on_any_number_of_devices(tmp_path, clipdata, small_blocks, monkeypatch):
    skewed(tmp_path / "pool", (150, 130))
    devices, written = jax.devices(), []
    for count in (1, 2, 8):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: devices[:count])
        out = f"{count}.npy"
        done = clipdata("norm-sim-d", "pool", "--fraction", 0.2, "--steps", 8, "--out", out)
        assert done.returncode == 0, done.stderr
        written.append([(tmp_path / name).read_bytes() for name in (out, f"{out}.trace.jsonl")])
    assert written[0] == written[1] == written[2]


def test_the_same_rows_in_a_process_with_one_device(tmp_path, clipdata):
    skewed(tmp_path / "pool", (150, 130))
    command = ["norm-sim-d", "pool", "--fraction", 0.2, "--steps", 8, "--out"]
    assert clipdata(*command, "here.npy").returncode == 0
    done = clipdata(*command, "there.npy", devices=1)
    assert done.returncode == 0, done.stderr
    for name in ("npy", "npy.trace.jsonl"):
        assert (tmp_path / f"here.{name}").read_bytes() == (tmp_path / f"there.{name}").read_bytes()


@pytest.mark.parametrize("at", ["score", "trace", "write"])
def test_a_run_killed_in_the_middle_goes_on_to_the_same_rows(tmp_path, clipdata, monkeypatch, at):
    skewed(tmp_path / "pool")
    command = ["norm-sim-d", "pool", "--fraction", 0.3, "--steps", 7, "--out"]
    assert clipdata(*command, "whole.npy").returncode == 0
    name = {"score": "take_step", "trace": "_write_trace", "write": "_write"}[at]
    real, calls = getattr(norm_sim_d, name), []

    def killed(*args, **kwargs):
        calls.append(args)
        if at == "write" or len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(norm_sim_d, name, killed)
        done = clipdata(*command, "again.npy")
        assert done.returncode == 75
        assert "run the same command again" in done.stderr
    assert not (tmp_path / "again.npy").exists()
    with monkeypatch.context() as patch:
        patch.setattr(norm_sim_d.RowReader, "write", None)  # the rows are not read again
        assert clipdata(*command, "again.npy").returncode == 0
    for suffix in ("npy", "npy.trace.jsonl"):
        assert (tmp_path / f"whole.{suffix}").read_bytes() == (tmp_path / f"again.{suffix}").read_bytes()
    manifests = [(tmp_path / f"{name}.npy.manifest.json").read_text() for name in ("whole", "again")]
    assert manifests[0].replace("whole", "again") == manifests[1]


def test_a_finished_run_is_not_done_again_and_another_ones_subset_stays(tmp_path, clipdata, monkeypatch):
    skewed(tmp_path / "pool")
    command = ["norm-sim-d", "pool", "--fraction", 0.3, "--steps", 7, "--out", "s.npy"]
    first = clipdata(*command)
    before = (tmp_path / "s.npy").read_bytes()
    monkeypatch.setattr(norm_sim_d, "take_step", None)
    again = clipdata(*command)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    other = clipdata(*command[:-3], 8, *command[-2:])
    assert refused(other, "already holds the results of another run (--steps was 7, now 8)")
    skewed(tmp_path / "pool", (40, 25, 36), seed=1)
    assert refused(clipdata(*command), "already holds the results of another run")
    (tmp_path / "s.npy.manifest.json").unlink()
    assert refused(clipdata(*command), "was not written by this command")
    assert (tmp_path / "s.npy").read_bytes() == before


def test_bad_rows_are_never_selected_and_are_counted(tmp_path, clipdata):
    made = skewed(tmp_path / "pool")
    img = made["img"][:40].copy()
    img[3], img[5], img[8] = np.nan, 0, img[8] * 2
    edit_npz(tmp_path / "pool/00000000.npz", b32_img=img)
    command = ["norm-sim-d", "pool", "--fraction", 0.5, "--steps", 5, "--out", "s.npy"]
    assert refused(clipdata(*command), "more than --max-bad-rows 0.01 allows", "row 3, not finite")
    # What was begun in vain is in nobody's way.
    scaled = clipdata(*command[:-1], "n.npy", "--normalize", "--max-bad-rows", 0.02)
    assert scaled.returncode == 0
    assert "1 not finite, 1 zero;" in scaled.stdout
    assert refused(clipdata(*command, "--max-bad-rows", 0.05, "--steps", 50, "--fraction", 0.5), "from 97 to 50 pairs")
    done = clipdata(*command, "--max-bad-rows", 0.05)
    assert done.returncode == 0, done.stderr
    assert "1 not finite, 1 zero, 1 not of unit norm" in done.stdout
    assert "from 97 pairs" in done.stdout
    good = np.setdiff1d(np.arange(100), [3, 5, 8])
    want = plainly(made["img"][good], made["img"][good], keep=50, steps=5)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), as_uids(made["uid"][good[want]]))


def test_equal_scores_go_by_uid_and_no_step_leaves_an_error_in_the_moment():
    random = np.random.default_rng(0)
    emb = np.repeat(random.normal(size=(1, 8)), 60, axis=0).astype(np.float16)
    uid = uids.join_halves(*random.integers(0, 2**64, (2, 60), dtype=np.uint64))
    moment = sum_moment(emb, np.arange(60))
    rows = Rows(emb, uid, moment / 60, moment)
    state = State.start(rows)
    for _ in range(8):
        state = take_step(rows, State.from_bytes(state.to_bytes()), keep=20, drop=5)
    np.testing.assert_array_equal(np.sort(uid[state.alive]), np.sort(uid)[:20])
    fresh = sum_moment(emb, np.flatnonzero(state.alive))
    np.testing.assert_allclose(state.moment, fresh, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "s.npy"], ["give either --fraction or --count"]),
        (["--fraction", 0.2, "--count", 3, "--out", "s.npy"], ["give either --fraction or --count"]),
        (["--fraction", 1, "--out", "s.npy"], ["--fraction is 1.0, expected a share above 0 and below 1"]),
        (["--count", 0, "--out", "s.npy"], ["--count is 0"]),
        (["--fraction", 0.001, "--out", "s.npy"], ["--fraction 0.001 of the pool keeps no pair"]),
        (["--fraction", 0.2, "--steps", 0, "--out", "s.npy"], ["--steps is 0"]),
        (
            ["--fraction", 0.2, "--steps", 81, "--out", "s.npy"],
            ["--steps is 81, but from 100 to 20 pairs there are only 80 to drop"],
        ),
        (["--count", 100, "--out", "s.npy"], ["--count 100 keeps 100 pairs", "the pool's rows are 100"]),
        (["--fraction", 0.2, "--out", "s.npz"], ["ends in .npy"]),
        (["--fraction", 0.2, "--out", "memory://s.npy"], ["expected a local path"]),
        (["--fraction", 0.2, "--survivors", "no.npy", "--out", "s.npy"], ["no.npy: no such file"]),
        (["--fraction", 0.2, "--survivors", "empty.npy", "--out", "s.npy"], ["the subset is empty"]),
        (
            ["--fraction", 0.2, "--survivors", "other.npy", "--out", "s.npy"],
            ["other.npy: 2 of its 12 uids are not in the pool pool", "give a subset of this pool"],
        ),
        (
            ["--fraction", 0.2, "--survivors", "ten.npy", "--out", "s.npy"],
            ["--fraction 0.2 keeps 20 pairs, but the survivors in ten.npy are 10"],
        ),
        (["--fraction", 0.2, "--worker", "0/2", "--out", "s.npy"], ["--worker: the steps of norm-sim-d need all"]),
        (["--fraction", 0.2, "--tag", "l14", "--out", "s.npy"], ["no embeddings tagged 'l14'"]),
    ],
)
def test_bad_input(tmp_path, clipdata, arguments, words):
    made = make_pool(tmp_path / "pool", (60, 40), dim=4)
    uids.write_subset(str(tmp_path / "empty.npy"), np.empty(0, uids.DTYPE))
    ten = as_uids(made["uid"][:10])
    uids.write_subset(str(tmp_path / "ten.npy"), ten)
    strange = uids.join_halves(np.arange(2, dtype=np.uint64), np.arange(2, dtype=np.uint64))
    uids.write_subset(str(tmp_path / "other.npy"), np.concatenate([ten, strange]))
    assert refused(clipdata("norm-sim-d", "pool", *arguments), *words)
    assert not (tmp_path / "s.npy").exists()


def test_images_need_no_captions(tmp_path, clipdata):
    made = skewed(tmp_path / "pool")
    command = ["norm-sim-d", "pool", "--fraction", 0.3, "--steps", 5, "--out"]
    assert clipdata(*command, "with.npy").returncode == 0
    for index, img in enumerate(np.split(made["img"], [40, 65])):
        np.savez(tmp_path / f"pool/{index:08d}.npz", b32_img=img)
    assert clipdata(*command, "without.npy").returncode == 0
    assert (tmp_path / "with.npy").read_bytes() == (tmp_path / "without.npy").read_bytes()
    for index, img in enumerate(np.split(made["img"], [40, 65])):
        np.savez(tmp_path / f"pool/{index:08d}.npz", b32=img)
    words = "holds b32; expected <tag>_img, e.g. b32_img; name others with --image-key"
    assert refused(clipdata(*command, "other.npy"), words)
    assert clipdata(*command, "other.npy", "--image-key", "b32").returncode == 0
    assert (tmp_path / "with.npy").read_bytes() == (tmp_path / "other.npy").read_bytes()


def test_a_broken_shard_stops_or_is_skipped(tmp_path, clipdata):
    made = skewed(tmp_path / "pool")
    cut_short(tmp_path / "pool")
    uids.write_subset(str(tmp_path / "best.npy"), as_uids(made["uid"][:90]))
    command = ["norm-sim-d", "pool", "--survivors", "best.npy", "--count", 30, "--steps", 5, "--out", "s.npy"]
    assert refused(clipdata(*command), "00000001.npz: damaged", "or use --on-bad skip")
    done = clipdata(*command, "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "Skipped 1 shard, listed in s.npy.manifest.json; the first: pool/00000001.npz: damaged" in done.stdout
    assert "from 65 survivors" in done.stdout
    of_pool = np.setdiff1d(np.arange(90), np.arange(40, 65))
    whole = np.setdiff1d(np.arange(100), np.arange(40, 65))
    want = plainly(made["img"][of_pool], made["img"][whole], keep=30, steps=5)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), as_uids(made["uid"][of_pool[want]]))
