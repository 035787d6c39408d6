"""The real `clipdata score` with targets: images embedded on the way, unions, nearest rows, a first selection."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.checkpoints import make_checkpoint
from support.images import jpeg, write_pairs
from support.pools import make_pool, unit_rows

from clipdata_jax.formats import uids
from clipdata_jax.scoring import columns

pytestmark = pytest.mark.optimized


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("other"), seed=5)


@pytest.fixture
def made(tmp_path):
    """A pool of embeddings, and two targets."""
    random = np.random.default_rng(1)
    for name, rows in (("few", 7), ("many", 30)):
        np.save(tmp_path / f"{name}.npy", unit_rows(random, rows, 32).astype(np.float16))
    return make_pool(tmp_path / "pool", [40, 25])


def read(folder, *names):
    parts = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return [np.concatenate([part[name].to_numpy() for part in parts]) for name in names]


TARGETS = ("--target", "few=few.npy", "many=many.npy", "--scores", "norm_sim")


def test_the_union_is_all_targets_as_one(tmp_path, made, clipdata):
    done = clipdata("score", "pool", *TARGETS, "--union", "all", "--p", 1, 2, 3, "inf", "--out", "scores")
    assert done.returncode == 0, done.stderr
    both = np.concatenate([np.load(tmp_path / f"{name}.npy") for name in ("few", "many")])
    for p in (1, 2, 3, math.inf):
        (found,) = read(tmp_path / "scores", f"norm_sim_{p:g}_all")
        cosines = made["img"].astype(np.float64) @ both.astype(np.float64).T
        np.testing.assert_allclose(found, np.linalg.norm(cosines, p, axis=1), rtol=1e-5)


@pytest.mark.parametrize("signed", [False, True])
def test_the_nearest_row_is_a_column(tmp_path, made, clipdata, signed):
    flags = ("--nearest", *(["--signed"] if signed else []))
    done = clipdata("score", "pool", *TARGETS, *flags, "--out", "scores")
    assert done.returncode == 0, done.stderr
    cosines = made["img"].astype(np.float64) @ np.load(tmp_path / "many.npy").astype(np.float64).T
    cosines = cosines if signed else np.abs(cosines)
    score, row = read(tmp_path / "scores", "norm_sim_inf_many", "norm_sim_inf_many_row")
    np.testing.assert_array_equal(row, cosines.argmax(axis=1))
    np.testing.assert_allclose(score, cosines.max(axis=1), atol=1e-6)
    assert row.dtype == np.int32


@pytest.mark.parametrize("nearest", [[], ["--nearest"]])
def test_a_target_that_no_device_holds_gives_the_same(tmp_path, made, clipdata, monkeypatch, nearest):
    flags = ("score", "pool", *TARGETS, "--p", 1, 2, "inf", *nearest)
    assert clipdata(*flags, "--out", "whole").returncode == 0
    monkeypatch.setattr(columns, "_must_shard", lambda target: True)
    assert clipdata(*flags, "--out", "sharded").returncode == 0
    names = [f"norm_sim_{p}_{name}" for p in ("1", "2", "inf") for name in ("few", "many")]
    names += ["norm_sim_inf_many_row"] if nearest else []
    for name, found in zip(names, read(tmp_path / "sharded", *names), strict=True):
        np.testing.assert_allclose(found, *read(tmp_path / "whole", name), rtol=1e-6)


def test_where_scores_the_survivors_alone(tmp_path, made, clipdata):
    assert clipdata("score", "pool", *TARGETS, "--nearest", "--out", "all").returncode == 0
    kept = uids.sort_unique(uids.from_hex(list(made["uid"][::3])))
    uids.write_subset(str(tmp_path / "first.npy"), kept)
    done = clipdata("score", "pool", *TARGETS, "--nearest", "--where", "first.npy", "--out", "some")
    assert done.returncode == 0, done.stderr
    assert f"--where left {len(kept)} pairs to score" in done.stdout, done.stderr
    for name in ("norm_sim_inf_few", "norm_sim_inf_few_row"):
        (found,), (wanted,) = read(tmp_path / "some", name), read(tmp_path / "all", name)
        np.testing.assert_allclose(found[::3], wanted[::3], atol=1e-7)
        assert np.isnan(np.delete(found, slice(None, None, 3))).all()
    np.save(tmp_path / "none.npy", kept[:0])
    done = clipdata("score", "pool", *TARGETS, "--where", "none.npy", "--out", "none")
    assert done.returncode == 0
    assert np.isnan(read(tmp_path / "none", "norm_sim_inf_few")).all()


def test_a_target_of_images_is_embedded_once(tmp_path, checkpoint, clipdata):
    write_pairs(tmp_path / "0.tar", range(9))
    (tmp_path / "images").mkdir()
    for seed in range(4):
        (tmp_path / "images" / f"{seed}.jpg").write_bytes(jpeg(seed))
    (tmp_path / "images" / "notes.txt").write_text("about them")
    assert clipdata("embed", "0.tar", "--model", checkpoint, "--out", "meta").returncode == 0
    flags = ("score", "meta", "--target", "mine=images", "--target-model", checkpoint)
    flags += ("--target-cache", "cache", "--scores", "norm_sim")
    done = clipdata(*flags, "--out", "scores")
    assert done.returncode == 0
    assert "Target mine: images, embeddings in cache/mine-" in done.stdout
    assert "Passed over 1 file that is not an image: .txt 1" in done.stdout
    (file,) = (tmp_path / "cache").glob("*.npz")
    (found,) = read(tmp_path / "scores", "norm_sim_inf_mine")
    np.testing.assert_allclose(found[:4], 1, atol=2e-3)
    before = file.stat().st_mtime_ns
    done = clipdata(*flags, "--out", "again")
    assert done.returncode == 0
    assert "made before" in done.stdout
    assert file.stat().st_mtime_ns == before
    # The content counts, not where it lies or when it was written; and one byte of it does, at equal sizes.
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    moved = [flag if flag != "mine=images" else "mine=moved" for flag in flags]
    done = clipdata(*moved, "--out", "moved-scores")
    assert done.returncode == 0
    assert "made before" in done.stdout
    assert file.stat().st_mtime_ns == before
    content = bytearray((tmp_path / "images" / "3.jpg").read_bytes())
    content[-20] ^= 1
    (tmp_path / "images" / "3.jpg").write_bytes(content)
    done = clipdata(*flags, "--out", "more")
    assert done.returncode == 0
    assert "made before" not in done.stdout
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 2
    done = clipdata("score", "meta", "--target", "mine=images", "--out", "o")
    assert done.returncode == 2
    assert "--target-model CHECKPOINT" in done.stderr
    done = clipdata(*flags, "--target-cache", "fresh", "--worker", "0/2", "--out", "o")
    assert done.returncode == 2
    assert "first run clipdata embed images --images-only --model clip=" in done.stderr


@pytest.mark.parametrize("flags", [["b=missing.npy"], ["--where", "missing.npy"]])
def test_what_is_missing_is_told_before_images_are_embedded(tmp_path, checkpoint, made, clipdata, flags):
    write_pairs(tmp_path / "0.tar", range(2))
    more = ("--target-model", checkpoint, "--target-cache", "cache", "--scores", "norm_sim", "--out", "scores")
    done = clipdata("score", "pool", "--target", "a=0.tar", *flags, *more)
    assert done.returncode == 2, done.stderr
    assert "missing.npy: no such file" in done.stderr, done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_target_of_another_model_is_refused(tmp_path, checkpoint, other, clipdata):
    write_pairs(tmp_path / "0.tar", range(4))
    assert clipdata("embed", "0.tar", "--model", checkpoint, "--out", "meta").returncode == 0
    for out in ("target", "target.npz", "target/0.npz"):
        if out != "target/0.npz":
            done = clipdata("embed", "0.tar", "--images-only", "--model", f"clip={other}", "--out", out)
            assert done.returncode == 0, done.stderr
        flags = ("score", "meta", "--target", f"t={out}", "--out", f"scores_{out.replace('/', '_')}")
        done = clipdata(*flags)
        assert done.returncode == 2
        assert f"{out}: the target is of another model than the pool" in done.stderr
        assert clipdata(*flags, "--force").returncode == 0
    flags = ("score", "meta", "--target", "t=0.tar", "--target-model", other, "--out", "o")
    done = clipdata(*flags, "--target-cache", "cache")
    assert done.returncode == 2
    assert "is not the pool's model" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--target", "my-target=few.npy"],
            "expected NAME=PATH where NAME consists of letters, digits and _; try my_target",
        ),
        (["--target", "ziel-ü=few.npy"], "letters, digits and _; try ziel_u"),
        ([*TARGETS, "--union", "all-of"], "and not the name of a target; try all_of"),
        (["--where", "first.npy"], "--where doesn't work with neg_clip_loss"),
        ([*TARGETS, "--union", "few"], "--union is 'few', expected letters, digits and _, and not"),
        ([*TARGETS, "--p", "2", "--nearest"], "--p is (2.0,), expected inf among the norms, for --nearest"),
        ([*TARGETS, "--where", "missing.npy"], "missing.npy: no such file"),
        (["--target", "t=nowhere"], "nowhere: no such file or folder"),
        ([*TARGETS, "--p", "1e20"], "--p is 1e+20, expected a number from 1 to 999,999, or inf"),
        ([*TARGETS, "--p", "1", "1.0000001"], "--p is (1.0, 1.0000001), expected each number once"),
    ],
)
def test_bad_flags_are_one_clear_sentence(made, clipdata, flags, words):
    done = clipdata("score", "pool", *flags, "--out", "scores")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_manifest_says_how_many_were_scored(tmp_path, made, clipdata):
    assert clipdata("score", "pool", *TARGETS, "--out", "scores").returncode == 0
    assert json.loads((tmp_path / "scores" / "_manifest.json").read_text())["scored"] == 65
