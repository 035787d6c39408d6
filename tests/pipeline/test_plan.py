"""`clipdata plan`: its arithmetic against plain formulas, what it refuses, and the real command that measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.checkpoints import make_checkpoint
from support.pictures import write_pairs
from support.pools import make_pool
from test_architecture import run_python

from clipdata_jax import config
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import plan, plan_estimates, plan_probe, plan_score

SIZES, DIM = (300, 200, 250, 40), 16


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pool(tmp_path / "pool", SIZES, dim=DIM)
    np.save("target.npy", np.eye(DIM, dtype=np.float32)[:5])


def planned(score: config.Score, **options) -> plan_estimates.Estimate:
    return plan.run(config.Plan(calibrate=False, **options), config.Run(score=score))[0]


def score_options(**options) -> config.Score:
    chosen = {
        name: options.pop(name) for name in ("batch_size", "group", "division", "repeats") if name in options
    }
    settings = {"batch_size": 64, "group": 2, **chosen}
    return config.Score(pool="pool", out="scores", neg_clip_loss=config.NegClipLoss(**settings), **options)


def test_score_is_counted_as_it_is_done(pool, tmp_path, capsys, clipdata):
    targets = config.NormSim(target=("t=target.npy",), p=(math.inf, 2.0), nearest=True)
    found = planned(score_options(norm_sim=targets))
    # Units of 300, 200 and 290 pairs; groups of 128 or so, in 32 cells of rows that are rounded up to 8.
    groups = [(units, round(units / 128)) for units in (300, 200, 290)]
    padded = [32 * 8 * math.ceil(units / count / 32 / 8) for units, count in groups for _ in range(count)]
    pairs = sum(SIZES)
    assert found.operations == sum(2 * DIM * n * n for n in padded) + 2 * DIM * pairs * (1 + 5 + DIM)
    assert found.read == sum(path.stat().st_size for path in (tmp_path / "pool").iterdir())
    text = capsys.readouterr().out
    assert "790 pairs, 4 shards, 3 units, 6 groups; |B| 64: 50 to 75 in truth" in text
    assert "time        not measured" in text
    done = clipdata(
        "score", "pool", "--out", "scores", "--batch-size", 64, "--group", 2, "--target", "t=target.npy",
        "--p", "inf", 2, "--nearest",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = sum(path.stat().st_size for path in (tmp_path / "scores").glob("*.parquet"))
    assert 0.7 < found.written / written < 1.3


def test_the_reference_s_division_takes_k_passes(pool):
    found = planned(score_options(division="shard", repeats=3, scores=("neg_clip_loss",)))
    batches = sum(math.ceil(rows / 64) * 3 for rows in SIZES if rows > 64)
    assert found.operations == 2 * DIM * (batches * 64**2 + 40**2)


def test_units_and_groups_are_dealt_to_processes_and_devices():
    jobs = {(100, 4): [5, 1, 2, 4], (10, 1): [0, 3, 0, 0]}
    # Two processes with two devices: units 0 and 2 take 3 + 1 rounds; units 1 and 3 take 1 + 2, and 2 small ones.
    assert plan_score.kernel_seconds(jobs, 1e-4, 2, 2) == pytest.approx(4)
    assert plan_score.kernel_seconds(jobs, 1e-4, 1, 1) == pytest.approx(12 + 0.03)
    assert plan_score.kernel_seconds(jobs, 1e-4, 4, 8) == pytest.approx(1 + 0.01)


def test_time_is_what_was_measured_times_the_work(pool):
    class Measured(plan_estimates.Probe):
        def ask(self, function, *arguments):
            assert arguments[0].group in {(256, 32)}
            return plan_probe.ScoreRates(
                read=1.0, per_square=1e-4, clip_score=0.5, per_target=0.1, write=0.25, compile=2.0, start=3.0
            )

    targets = config.NormSim(target=("t=target.npy",))
    options = score_options(norm_sim=targets)

    def machine(platform, processes=1):
        devices = plan_estimates.Devices(platform, 2, None)
        return plan_estimates.Machine(processes, 1 << 40, devices, Measured(), True)

    found = plan_score.estimate(options, machine("cpu"))
    kernel = 3 * 1e-4 * 256**2  # units of two groups each, on two devices: a round each
    want = {
        "read": 790,
        "negCLIPLoss": kernel,
        "other scores": 790 * (0.5 + 0.1 * 5) / 2,
        "write": 197.5,
    }
    assert found.times.parts == pytest.approx(want) and found.times.start == 5
    assert found.times.total == pytest.approx(5 + sum(want.values()))  # a CPU's cores do all of it
    beside = plan_score.estimate(options, machine("gpu"))
    work = want["negCLIPLoss"] + want["other scores"] + want["write"]
    assert beside.times.total == pytest.approx(max(790, work + 300) + 5)
    assert plan_score.estimate(options, machine("cpu", 3)).times.parts["read"] == 300  # the largest unit


def test_memory_of_a_unit(pool):
    """Mapped shards take none, joined ones two copies of their unit; a target and the tables are on the device."""
    joined = planned(score_options())
    alone = planned(score_options(division="shard"))
    row, unit = 2 * DIM * 2, 300
    rest = (200 << 20) + 4 * DIM * 300 + (3 * 16 + 8 * 5) * unit
    device = 2 * 256 * row + 4 * 256 * 32 * 4 + 6 * 4 * 256**2
    assert joined.device_memory == device
    assert joined.memory == rest + 2 * unit * row + device
    assert alone.memory == rest + 2 * 64 * row + 4 * 64 * 4 + 6 * 4 * 64**2
    far = planned(score_options(), device_memory_gb=1, devices=3)
    assert far.memory == rest + 2 * unit * row + 3 * 256 * row and far.device_memory == device


@pytest.mark.parametrize(
    ("options", "machine", "words"),
    [
        (
            {},
            {"memory_gb": 0.1},
            r"a unit of 300 pairs takes .* memory, and there are .*; write shards of at most 0",
        ),
        (
            {},
            {"device_memory_gb": 1e-4},
            "a group of 128 pairs takes .* of a device, .*; use a smaller --batch-size",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_advice(pool, options, machine, words):
    with pytest.raises(InputError, match=words):
        planned(score_options(**options), **machine)


def test_advice_fits(pool):
    options = score_options(batch_size=256, group=2)
    fits = planned(options)
    limit = (fits.memory - 20_000) / 2**30
    with pytest.raises(InputError, match="together at most") as refusal:
        planned(options, memory_gb=limit)
    most = int(str(refusal.value).partition("at most ")[2].split()[0].replace(",", ""))
    assert most < 512
    planned(score_options(batch_size=most // 2, group=2), memory_gb=limit)


def test_a_full_disk_is_refused(pool, monkeypatch):
    monkeypatch.setattr(plan, "disk_free", lambda out: 1_000)
    with pytest.raises(
        InputError, match=r"score: writes .* to scores, where 1 KB are free; choose another --out"
    ):
        planned(score_options())


def test_what_waits_is_noted(pool, capsys):
    planned(
        score_options(batch_size=1_024, norm_sim=config.NormSim(target=("t=pool",))), processes=9, devices=4
    )
    text = capsys.readouterr().out
    assert "|B| is more than the pool's 790 pairs, which make one batch" in text
    assert "only 1 of 9 processes has a unit to work on" in text
    assert "a unit has 1 group for 4 devices, the others wait" in text


@pytest.fixture
def whole(pool, tmp_path):
    """A config that sets every command that can be planned."""
    write_pairs(tmp_path / "tars" / "0.tar", range(8))
    write_pairs(tmp_path / "tars" / "1.tar", range(8, 12))
    make_checkpoint(tmp_path / "model")
    (tmp_path / "run.py").write_text(
        "from clipdata_jax.config import *\n"
        "def get_config(): return Run(\n"
        "  embed=Embed(sources=('tars',), model=('model',), out='metadata', batch_size=4),\n"
        "  score=Score(pool='pool', out='scores', neg_clip_loss=NegClipLoss(batch_size=64)),\n"
        "  select=Select(scores=('scores',), rule='top(neg_clip_loss, 0.3)', out='s.npy'),\n"
        "  sensitivity=Sensitivity(pool='pool', out='s.html', batch_size=(64,), groups=1, repeats=(2,), group=(1,)),\n"
        "  filter=Filter(metadata='pool', preset='image_based', tag='b32', target='target.npy', clusters=4,\n"
        "    out='f.npy'),\n"
        "  norm_sim_d=NormSimD(pool='pool', survivors='s.npy', fraction=0.2, steps=5, out='n.npy'),\n"
        "  reshard=Reshard(tars=('tars',), subset='s.npy', out='selected'),\n"
        "  train=Train(tars=('tars',), tokenizer='model', out='run', batch_size=4, image_size=16, width=8, layers=1,\n"
        "    heads=2, embed_dim=8, context_length=16),\n"
        "  evaluate=Evaluate(model='model', retrieval=('tars',), out='e.json'))\n"
    )
    return tmp_path


@pytest.mark.slow
def test_a_config_is_planned_whole_with_times(whole, clipdata, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    done = clipdata("plan", "run.py", "--processes", 2)
    assert done.returncode == 0, done.stderr
    blocks = dict(block.split("\n", 1) for block in done.stdout.strip().split("\n\n") if "\n" in block)
    expected = {
        "embed": ("decode", "encode"),
        "score": ("read", "negCLIPLoss"),
        "sensitivity": ("read", "score", "compare selections"),
        "filter": ("read", "captions and numbers"),
        "norm-sim-d": ("read", "score", "choose"),
        "reshard": ("write",),
        "train": ("digests", "decode", "steps", "checkpoints"),
        "evaluate": ("decode", "pictures", "captions"),
    }
    assert list(blocks) == list(expected)
    assert "about 12 pairs, 2 units" in blocks["embed"]
    assert "12 samples, 2 tars; all to write, for" in blocks["reshard"]
    assert "select: takes 790 rows that score still has to write to scores" in done.stdout
    for name, parts in expected.items():
        lines = dict(line.strip().split("  ", 1) for line in blocks[name].splitlines())
        assert "about" in lines["time"]
        assert ("2 processes" in lines["time"]) == (name not in ("sensitivity", "filter", "evaluate"))
        assert all(f"{part} " in lines["of which"] for part in ("start", *parts))
        assert " a second" in lines["rate"] and lines["rate"].endswith("once it is under way")
    assert "1 cpu device" in blocks["score"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a config file, or a command with its options after --"),
        (
            ["--", "rank", "x"],
            "the command after -- is 'rank', expected one of embed, score, sensitivity, select",
        ),
        (["run.py", "--commands", "rank"], "--commands is 'rank', expected one of embed"),
        (["run.py", "--", "score", "pool", "--out", "x"], "name a config file, or a command"),
        (["run.py", "--processes", "0"], "--processes is 0, expected a whole number"),
        (["missing.py"], "--config missing.py: can't be read"),
        (["--", "select", "scores", "--rule", "top(a, 0.1)", "--out", "s.npy"], "scores: no such folder"),
    ],
)
def test_bad_usage(arguments, words, whole, clipdata):
    done = clipdata("plan", *arguments)
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_planning_needs_no_jax(pool, tmp_path):
    code = f"""
import os, sys
from clipdata_jax.cli import main
os.chdir({str(tmp_path)!r})
assert main(["plan", "--no-calibrate", "--", "score", "pool", "--out", "x", "--batch-size", "64"]) == 0
assert not {{"jax", "flax", "transformers"}} & set(sys.modules), "heavy imports"
"""
    assert "790 pairs" in run_python(code)


@pytest.mark.parametrize(
    ("size", "seconds", "words"),
    [(12, 0.5, "12 bytes, 0.5 s"), (1_500, 119, "1.5 KB, 119 s"), (2.5e10, 3_600, "25 GB, 60 min"),
     (3e12, 36_000, "3 TB, 10 h"), (1e18, 1e6, "1,000.0 PB, 11.6 days")],
)  # fmt: skip
def test_numbers_in_words(size, seconds, words):
    assert f"{plan_estimates.size_text(size)}, {plan_estimates.time_text(seconds)}" == words
