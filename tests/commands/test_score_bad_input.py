"""What `clipdata score` says of broken pools and wrong flags: one clear sentence, or a listed skip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pools import cut_short, edit_npz, make_pool, unit_rows

from clipdata_jax.config import NegClipLoss
from clipdata_jax.errors import InputError
from clipdata_jax.formats import score_tables

SMALL = ("--batch-size", 40, "--repeats", 3, "--group", 2)


@pytest.fixture
def pool(tmp_path):
    return make_pool(tmp_path / "pool", [90, 30, 130])


def damage_rows(pool: Path) -> None:
    edit_npz(pool / "00000001.npz", b32_img=np.zeros((29, 32), np.float16), b32_txt=np.zeros((29, 32), np.float16))


def other_text_dimension(pool: Path) -> None:
    edit_npz(pool / "00000001.npz", b32_txt=np.zeros((30, 16), np.float16))


def drop_uid_column(pool: Path) -> None:
    path = pool / "00000001.parquet"
    pq.write_table(pq.read_table(path).drop(["uid"]), path)


def bad_uid(pool: Path) -> None:
    pq.write_table(pa.table({"uid": [None] + ["0" * 32] * 29}), pool / "00000001.parquet")


def other_dimension(pool: Path) -> None:
    rows = unit_rows(np.random.default_rng(0), 30, 16).astype(np.float16)
    edit_npz(pool / "00000001.npz", b32_img=rows, b32_txt=rows)


def no_texts(pool: Path) -> None:
    for path in pool.glob("*.npz"):
        np.savez(path, b32_img=np.zeros((1, 32), np.float16))


def no_rows(pool: Path) -> None:
    shutil.rmtree(pool)
    make_pool(pool, [0, 0])


def empty(pool: Path) -> None:
    for path in pool.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_rows, ["00000001.npz: holds float16[29, 32], but its metadata has 30 rows"]),
        (other_text_dimension, ["00000001.npz: images are (30, 32), captions (30, 16)"]),
        (drop_uid_column, ["00000001.parquet: column 'uid' is missing; it has text"]),
        (bad_uid, ["00000001.parquet: row 0: the uid is missing, expected text or an integer"]),
        (other_dimension, ["00000001.npz: embeddings of dimension 16, but the pool's first have 32"]),
        (no_texts, ["pool: has no embeddings of captions, which clip_score and neg_clip_loss need; images alone"]),
        (cut_short, ["00000001.npz: damaged or not a NumPy file"]),
        (empty, ["pool: the pool is empty; expected metadata shards"]),
        (no_rows, ["pool: the pool is empty: its 2 shards have no rows"]),
        (lambda pool: (pool / "00000001.npz").unlink(), ["00000001.parquet has no 00000001.npz beside it"]),
        (lambda pool: shutil.rmtree(pool), ["pool: no such folder"]),
        (
            lambda pool: (pool / "00000001.parquet").write_text("?"),
            ["00000001.parquet: is a text file, not a parquet file"],
        ),
    ],
)
def test_a_broken_pool_is_one_clear_sentence(tmp_path, pool, clipdata, damage, words):
    damage(tmp_path / "pool")
    done = clipdata("score", "pool", "--out", "out", *SMALL)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("clipdata score: "), last
    assert all(word in last for word in words), last


def test_a_shard_whose_rows_cannot_be_counted_is_left_out_and_listed(tmp_path, pool, clipdata):
    (tmp_path / "pool" / "00000001.parquet").write_text("?")
    done = clipdata("score", "pool", "--out", "out", *SMALL, "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "Scored 220 pairs" in done.stdout
    assert "00000001.parquet" in done.stdout.splitlines()[-1]
    assert score_tables.open_tables([str(tmp_path / "out")]).rows == (90, 130)


def test_a_broken_shard_can_be_skipped_and_is_listed(tmp_path, pool, clipdata):
    cut_short(tmp_path / "pool")
    done = clipdata("score", "pool", "--out", "out", *SMALL, "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "Skipped 1 shard" in done.stdout.splitlines()[-1]
    score = score_tables.open_tables([str(tmp_path / "out")]).read(["clip_score"])[1]["clip_score"]
    assert np.isnan(score[90:120]).all()
    assert np.isfinite(score[:90]).all()
    assert np.isfinite(score[120:]).all()
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["skipped"][0]["shard"] == "00000001"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tag", "l14"], "no embeddings tagged 'l14'; name one with --tag: b32"),
        (["--temperature", "0"], "--temperature is 0.0, expected a number above 0"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--temperature", "100"], "--temperature is 100.0, expected a number above 0 and at most 1: 1/exp"),
        (["--temperature", "0.01", "-1"], "--temperature is -1.0, expected a number above 0"),
        (["--temperature", "0.01", "0.01"], "expected each temperature once"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--group", "0"], "--group is 0, expected a whole number of at least 1"),
        (["--batch-size", "0"], "--batch-size is 0, expected a whole number of at least 1"),
        (["--batch-size", "32", "32"], "expected each size once"),
        (["--batch-size", "32", "1024"], "expected sizes within a factor of 16"),
        (["--mix-shards", "0"], "--mix-shards is 0, expected a whole number of at least 1"),
        (["--mix-shards", "2", "--division", "shard"], "expected no value with --division shard"),
        (["--division", "half"], "--division is 'half', expected one of group, shard"),
        (["--p", "0.5"], "--p is 0.5"),
        (["--target", "t=short.npy"], "the target has dimension 16, the pool 32"),
        (["--target", "t=missing.npy"], "missing.npy: no such file"),
        (["--target", "t=none.npy"], "the target is empty"),
        (["--target", "t=long.npy"], "target row 2 is not of unit norm"),
        (["--target", "1in=long.npy"], "expected NAME=PATH"),
        (["--scores", "norm_sim"], "needs a target"),
        (["--worker", "2/2"], '"i/n" with 0 <= i < n'),
        (["--coordinator", "localhost:1"], "belong together"),
    ],
)
def test_bad_flags_are_one_clear_sentence(tmp_path, pool, clipdata, flags, words):
    rows = unit_rows(np.random.default_rng(0), 4, 32)
    np.save(tmp_path / "short.npy", rows[:, :16] / np.linalg.norm(rows[:, :16], axis=1, keepdims=True))
    np.save(tmp_path / "none.npy", rows[:0])
    rows[2] *= 2
    np.save(tmp_path / "long.npy", rows)
    done = clipdata("score", "pool", "--out", "out", *flags)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert words in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("division", ["group", "shard"])
def test_a_batch_larger_than_the_pool_is_one_batch_and_said_so(tmp_path, clipdata, division):
    make_pool(tmp_path / "pool", [40])
    flags = ("--batch-size", 400, "--division", division, "--scores", "neg_clip_loss", "--temperature", 0.01)
    done = clipdata("score", "pool", "--out", "out", *flags)
    assert done.returncode == 0, done.stderr
    assert "in 1 batch of 40 pairs (--batch-size 400 is more than the pool has)" in done.stdout
    found = score_tables.open_tables([str(tmp_path / "out")]).read(["neg_clip_loss", "neg_clip_loss_se"])[1]
    assert np.isfinite(found["neg_clip_loss"]).all()
    assert np.isnan(found["neg_clip_loss_se"]).all()


def test_a_config_file_s_division_must_be_known():
    with pytest.raises(InputError, match="--division is 'half', expected"):
        NegClipLoss(division="half")


def make_scaled(folder: Path) -> None:
    """Writes a pool whose image embeddings are of norm 3."""
    made = make_pool(folder, [40, 30])
    for path, rows in zip(sorted(folder.glob("*.npz")), np.split(made["img"], [40]), strict=True):
        edit_npz(path, b32_img=3 * rows)


def test_a_run_that_failed_before_a_unit_was_done_leaves_its_folder_free(tmp_path, clipdata):
    make_scaled(tmp_path / "pool")
    command = ("score", "pool", "--out", "s", "--batch-size", 30, "--group", 1)
    failed = clipdata(*command)
    assert failed.returncode == 2
    assert "or use --normalize" in failed.stderr
    done = clipdata(*command, "--normalize", "--stop-after", 1)
    assert done.returncode == 75, done.stderr
    refused = clipdata(*command)  # now a unit is done
    assert refused.returncode == 2
    assert (
        "s: already holds 1 of 2 units of another run (--normalize was true, now false); give that run's command to go"
        " on with it, choose another --out, or delete the folder" in refused.stderr
    )
    done = clipdata(*command, "--normalize")
    assert done.returncode == 0, done.stderr
    assert clipdata("verify", "s").returncode == 0


def test_a_score_table_given_as_metadata_is_named_as_such(pool, clipdata):
    assert clipdata("score", "pool", "--out", "s", *SMALL).returncode == 0
    for command in (
        ("score",),
        ("norm-sim-d", "--fraction", 0.5),
        ("filter", "--preset", "clip_score", "--arch", "b32", "--fraction", 0.5),
    ):
        done = clipdata(*command, "s", "--out", "o.npy")
        assert done.returncode == 2
        assert "s: this is a score table, not metadata; name the folder of embeddings" in done.stderr


def test_nothing_is_said_to_be_kept_where_nothing_was(tmp_path, pool, clipdata):
    (tmp_path / "file").write_text("")
    done = clipdata("score", "pool", "--out", "file/s", *SMALL)
    assert done.returncode == 2
    assert "file/s/_plan.json: can't be written (not a directory)\n" in done.stderr
