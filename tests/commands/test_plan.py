"""`clipdata plan` against what the commands then read and write; its refusals; times from the units done."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from support.checkpoints import make_checkpoint
from support.images import write_pairs
from support.pools import make_pool
from test_architecture import run_python

from clipdata_jax import config
from clipdata_jax.commands import plan
from clipdata_jax.commands.plan import plan_estimates
from clipdata_jax.errors import InputError
from clipdata_jax.runs.records import UnitTimes
from clipdata_jax.scoring import duplicate_search, duplicate_units

SIZES, DIM = (300, 200, 250, 40), 16
SCORE = ("score", "pool", "--batch-size", 64, "--group", 2)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pool(tmp_path / "pool", SIZES, dim=DIM)
    np.save("target.npy", np.eye(DIM, dtype=np.float32)[:5])
    return tmp_path


def estimated(options, memory=1 << 40) -> plan_estimates.Estimate:
    return plan_estimates.estimate(type(options).__name__.lower(), options, memory)


def score_options(**settings) -> config.Score:
    settings = {"batch_size": 64, "group": 2, **settings}
    return config.Score(pool="pool", out="scores", neg_clip_loss=config.NegClipLoss(**settings))


def size_of(folder, pattern="*") -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def test_score_is_planned_measured_and_then_as_planned(work, clipdata):
    targets = ("--target", "t=target.npy", "--p", "inf", 2, "--nearest")
    command = (*SCORE, *targets, "--out", "scores")
    before = clipdata("plan", "--", *command)
    assert before.returncode == 0, before.stderr
    assert "790 pairs, 4 shards, 3 units" in before.stdout
    assert "not measured: run it with --stop-after 3 first" in before.stdout
    assert clipdata(*command, "--stop-after", 1).returncode == 75
    assert "from 1 unit on 1 process" in (done := clipdata("plan", "--", *command)).stdout
    assert "with the time to compile in it" in done.stdout
    assert clipdata(*command, "--stop-after", 1).returncode == 75
    done = clipdata("plan", "--processes", 2, "--", *command)
    assert "left for 290 of 790 rows on 2 processes, from 1 unit on 1 process" in done.stdout
    assert clipdata(*command).returncode == 0
    options = config.Score(
        pool="pool",
        out="scores",
        neg_clip_loss=config.NegClipLoss(batch_size=64, group=2),
        norm_sim=config.NormSim(target=("t=target.npy",), p=(float("inf"), 2.0), nearest=True),
    )
    found = estimated(options)
    assert found.read == size_of(work / "pool")
    assert 0.7 < found.written / size_of(work / "scores", "*.parquet") < 1.3
    assert found.rows_timed == sum(
        json.loads(line)["rows"] for line in (work / "scores/_run.jsonl").read_text().splitlines()
    )


def test_embed_and_reshard_are_planned_as_they_are_done(work, clipdata):
    for number, size in enumerate((8, 4)):
        write_pairs(work / "tars" / f"{number}.tar", range(8 * number, 8 * number + size))
    make_checkpoint(work / "model")
    embed = config.Embed(sources=("tars",), model=("model",), out="metadata")
    found = estimated(embed)
    assert (found.rows_timed, found.units, found.read) == (12, 2, size_of(work / "tars"))
    few, fewer = (estimated(dataclasses.replace(embed, limit=limit)) for limit in (9, 3))
    assert (few.rows_timed, few.units) == (9, 2)
    assert (fewer.rows_timed, fewer.units, fewer.read) == (3, 1, (work / "tars/0.tar").stat().st_size)
    assert clipdata("embed", "tars", "--model", "model", "--out", "metadata").returncode == 0
    with np.load("metadata/0.npz") as arrays:
        row = sum(array[0].nbytes for array in arrays.values())
    assert found.written == 12 * (row + 60)
    select = ("select", "metadata", "--rule", "top(cos, 0.5)", "--out", "s.npy")
    assert clipdata("plan", "--", *select).returncode == 2  # metadata is not a score table
    make_subset = ("filter", "metadata", "--preset", "no_filter", "--out", "s.npy")
    assert clipdata(*make_subset).returncode == 0
    assert estimated(config.Filter(metadata="metadata", preset="no_filter", out="s.npy")).written == 12 * 16
    assert (work / "s.npy").stat().st_size == 12 * 16 + 128
    reshard = config.Reshard(sources=("tars",), subset="s.npy", out="selected")
    found = estimated(reshard)
    assert clipdata("reshard", "tars", "--subset", "s.npy", "--out", "selected").returncode == 0
    assert 0.7 < found.written / size_of(work / "selected", "*.tar") < 1.3
    assert found.rows_timed == 12


def test_images_of_a_folder_are_counted_beside_tars(work):
    write_pairs(work / "tars" / "0.tar", range(3))
    for number in range(5):
        (work / f"images/{number}.jpg").parent.mkdir(exist_ok=True)
        (work / f"images/{number}.jpg").write_bytes(bytes(1_000))
    make_checkpoint(work / "model")
    images = config.Embed(sources=("images",), model=("model",), images_only=True, out="e.npz")
    found = estimated(images)
    assert (found.rows_timed, found.read) == (5, 5_000)
    found = estimated(dataclasses.replace(images, sources=("images", "tars")))
    assert (found.rows_timed, found.units) == (8, 2)


def test_norm_sim_d_is_planned_and_measured(work, clipdata):
    command = ("norm-sim-d", "pool", "--fraction", 0.2, "--steps", 4, "--out", "s.npy")
    assert clipdata(*command, "--stop-after", 2).returncode == 75
    done = clipdata("plan", "--", *command)
    assert "790 pairs to 158, in 4 steps of 158" in done.stdout
    assert "left for 790 of 2,212 rows, from 1 line on the processes of that run" in done.stdout


def test_dedup_and_entries_are_planned_as_they_are_done(work, clipdata, monkeypatch):
    monkeypatch.setattr(duplicate_search, "BLOCK", 256)
    monkeypatch.setattr(duplicate_units, "BLOCK", 256)
    monkeypatch.setattr(plan_estimates, "BLOCK", 256)
    command = ("dedup", "pool", "--against", "t=target.npy", "--out", "s.npy")
    before = clipdata("plan", "--", *command).stdout
    assert "790 pairs, 311,655 comparisons, 5 units" in before
    assert "work files beside the output, removed at the end" in before
    found = estimated(config.Dedup(pool="pool", against=("t=target.npy",), out="s.npy"))
    assert found.read == size_of(work / "pool") + 5 * 4 * DIM
    assert clipdata(*command, "--stop-after", 4).returncode == 75
    work_files = size_of(work / "s.npy.work", "*.np[yz]")
    assert 0.7 < found.written / (work_files + 16 * 790) < 1.3
    assert "left for 22 of 790 rows, from 2 units on 1 process" in clipdata("plan", "--", *command).stdout
    assert clipdata(*command).returncode == 0
    clustered = config.Dedup(pool="pool", clusters=10, by="both", out="c.npy")
    assert "10 clusters, 12 units" in estimated(clustered).work
    with pytest.raises(InputError, match=r"dedup: needs .* of memory, and there are .*; dedup at most"):
        estimated(clustered, estimated(clustered).memory - 1)
    (work / "list.txt").write_text("caption\na caption\n")
    command = ("entries", "pool", "--list", "list.txt", "--out", "entries")
    assert "790 captions, 4 shards" in clipdata("plan", "--", *command).stdout
    assert clipdata(*command, "--stop-after", 2).returncode == 75
    assert "left for 290 of 790 rows, from 1 unit on 1 process" in clipdata("plan", "--", *command).stdout
    entries = estimated(config.Entries(pool="pool", list="list.txt", out="entries"))
    assert (entries.units, entries.rows_timed) == (4, 790)
    assert entries.read == size_of(work / "pool", "*.parquet") + 18


def test_train_and_evaluate_say_what_would_fit(work):
    write_pairs(work / "tars" / "0.tar", range(12))
    make_checkpoint(work / "model")
    train = {"sources": ("tars",), "tokenizer": "model", "out": "run"}
    with pytest.raises(InputError, match="about 12 pairs to train on, fewer than one batch of 64"):
        estimated(config.Train(**train, optimiser=config.Optimiser(steps=5, batch_size=64)))
    found = estimated(config.Train(**train, optimiser=config.Optimiser(steps=5, batch_size=4)))
    assert (found.rows_timed, found.units) == (20, None)
    with pytest.raises(InputError, match=r"train: needs .* of memory, and there are 1 MB; use a"):
        estimated(config.Train(**train, optimiser=config.Optimiser(steps=5, batch_size=4)), 1 << 20)
    evaluate = config.Evaluate(model="model", retrieval=("tars",), out="e.json")
    assert "about 12 images, 1 tar" in estimated(evaluate).work
    with pytest.raises(InputError, match=r"evaluate: needs .* of memory, and there are"):
        estimated(evaluate, 1 << 20)


def test_rows_that_are_scaled_take_float32(work):
    """Twelve copies of a row at most: two units, copies of one that is joined, and a group laid out for its device."""
    options = score_options(batch_size=256)
    mapped, scaled = map(estimated, (options, dataclasses.replace(options, normalize=True)))
    assert scaled.memory > mapped.memory
    assert scaled.each - mapped.each >= 8 * 4 * 16


def test_a_smaller_unit_is_advised_that_fits(work):
    needed = estimated(score_options(batch_size=256)).memory
    with pytest.raises(InputError, match=r"score: needs .*: together at most") as refusal:
        estimated(score_options(batch_size=256), needed - 20_000)
    most = int(str(refusal.value).partition("at most ")[2].split()[0].replace(",", ""))
    assert most < 512
    estimated(score_options(batch_size=most // 2), needed - 20_000)


def test_a_full_disk_and_idle_processes_are_reported(work, monkeypatch, capsys):
    given = config.Run(score=score_options(batch_size=1_024))
    plan.run(config.Plan(processes=9), given)
    text = capsys.readouterr().out
    assert "--batch-size is more than the pool's 790 pairs, which make one batch" in text
    assert "only 1 of 9 processes has a unit to work on" in text
    monkeypatch.setattr(plan, "_disk_free", lambda out: 1_000)
    with pytest.raises(InputError, match=r"score: writes .* to scores, where 1 KB are free; choose another --out"):
        plan.run(config.Plan(), given)


def test_units_that_overlap_count_once():
    def unit(process, end, seconds):
        return UnitTimes(time=end, rows=10, rows_per_second=10 / seconds, process=process)

    assert plan._busy_seconds([unit(0, 10, 5), unit(0, 12, 5), unit(0, 30, 2), unit(1, 10, 5)]) == pytest.approx(14)


def test_a_config_is_planned_as_far_as_its_inputs_are_there(work, clipdata):
    (work / "run.py").write_text(
        "from clipdata_jax.config import *\n"
        "def get_config(): return Run(\n"
        "  score=Score(pool='pool', out='scores', neg_clip_loss=NegClipLoss(batch_size=64)),\n"
        "  select=Select(scores=('scores',), rule='top(neg_clip_loss, 0.3)', out='s.npy'))\n"
    )
    done = clipdata("plan", "run.py")
    assert done.returncode == 0, done.stderr
    assert "score\n  work" in done.stdout
    assert "select: reads what score still has to write; plan it after that" in done.stdout
    assert clipdata("score", "--config", "run.py").returncode == 0
    done = clipdata("plan", "run.py", "--commands", "select")
    assert "790 pairs, 4 parts, 1 column" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a config file, or a command with its options after --"),
        (["--", "rank", "x"], "the command after -- is 'rank', expected one of embed, score, entries"),
        (["run.py", "--commands", "rank"], "--commands is 'rank', expected one of embed"),
        (["run.py", "--", *SCORE, "--out", "x"], "name a config file, or a command"),
        (["run.py", "--processes", "0"], "--processes is 0, expected a whole number"),
        (["missing.py"], "--config missing.py: can't be read"),
        (["--", "select", "scores", "--rule", "top(a, 0.1)", "--out", "s.npy"], "scores: no such folder"),
    ],
)
def test_bad_usage(arguments, words, work, clipdata):
    done = clipdata("plan", *arguments)
    assert done.returncode == 2
    assert words in done.stderr, done.stderr


def test_planning_needs_no_jax(work):
    code = f"""
import os, sys
from clipdata_jax.cli import main
os.chdir({str(work)!r})
assert main(["plan", "--", "score", "pool", "--out", "x", "--batch-size", "64"]) == 0
assert not {{"jax", "flax", "transformers"}} & set(sys.modules), "heavy imports"
"""
    assert "790 pairs" in run_python(code)
