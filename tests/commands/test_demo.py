"""The real `clipdata demo`, small: its table is the truth, and a second run only does what is missing."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipdata_jax import cli, config
from clipdata_jax.commands import demo
from clipdata_jax.demo import pairs
from clipdata_jax.formats import uid_files, uids


@pytest.mark.slow
def test_the_demo_tells_the_truth_about_what_each_method_kept(tmp_path, clipdata):
    done = clipdata("demo", "--out", "d", "--pairs", 400, devices=1)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^\$ clipdata (.*)", done.stdout, re.MULTILINE)
    commands = [cli._parse(command, words) and command for command, *words in map(shlex.split, lines)]
    assert commands == ["embed", "embed", "score", "dedup", *["select"] * 4, "reshard", "report"]
    truth = pq.read_table(tmp_path / "d" / "pool" / "truth.parquet").to_pydict()
    kind = dict(zip(truth["uid"], truth["kind"], strict=True))
    scene = dict(zip(truth["uid"], pairs.scenes(truth["kind"], 0), strict=True))
    shares, copies = {}, {}
    names = ["random", "CLIPScore", "negCLIPLoss", "negCLIPLoss, then NormSim", "the same, deduplicated"]
    for index, name in enumerate(names):
        kept = uids.to_hex(uid_files.read_subset(str(tmp_path / "d" / f"subset-{index}.npy")))
        assert (len(kept) == 200) == (index < 4)
        good = [scene[uid] for uid in kept if kind[uid] in ("sound", "duplicate")]
        shares[name], copies[name] = len(set(good)) / len(kept), (len(good) - len(set(good))) / len(kept)
        (line,) = re.findall(rf"^{name}  +{len(kept)} .*", done.stdout, re.MULTILINE)
        assert (line.split()[-7], line.split()[-1]) == (f"{shares[name]:.1%}", f"{copies[name]:.1%}")
    assert copies["the same, deduplicated"] < 0.02 < copies["negCLIPLoss, then NormSim"]
    # The shipped model tells sound pairs from spoiled ones: half of the pool is sound.
    assert min(shares[name] for name in shares if name != "random") > shares["random"] + 0.2
    assert (tmp_path / "d" / "report.html").stat().st_size > 100_000
    before = (tmp_path / "d" / "metadata" / "00000.npz").stat().st_mtime_ns
    again = clipdata("demo", "--out", "d", "--pairs", 400)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "d" / "metadata" / "00000.npz").stat().st_mtime_ns == before
    other = clipdata("demo", "--out", "d", "--pairs", 500)
    assert other.returncode == 2
    assert "holds another demo (--pairs 400 --seed 0)" in other.stderr


@pytest.mark.slow
def test_small_models_are_trained_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_TRAIN_SEEDS", (0,))
    monkeypatch.setattr(demo, "_TEST_PAIRS", 60)
    # Small batches, as padding is most of them, and small towers: they take seconds to compile.
    model, optimiser = config.ModelChoice(patch_size=32, width=16, layers=1, embed_dim=16), config.Optimiser
    monkeypatch.setattr(config, "ModelChoice", lambda **_: model)
    monkeypatch.setattr(config, "Optimiser", lambda **options: optimiser(**{**options, "batch_size": 16}))
    monkeypatch.setattr(config, "Evaluate", functools.partial(config.Evaluate, batch_size=16))
    options = config.Demo(pairs=256, keep=0.5, train=True, train_steps=1)
    place = {name: name for name in demo._PLACES}
    demo._draw(options, place)
    uid, _, _ = demo._truth("pool", 0)
    uids.write_subset("half.npy", uid[::2])
    subsets = dict.fromkeys(("random", "negCLIPLoss, then NormSim"), "half.npy")
    demo._train_and_compare(options, subsets, place, "comparison.html")
    printed = capsys.readouterr().out
    assert printed.count("$ clipdata train pool --out runs/") == printed.count("$ clipdata evaluate") == 2
    rows = re.findall(r"^(\S.*?)  +([\d.]+)\s% +([\d.]+)\s% +([+-][\d.]+) ± [\d.]+$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == [
        "Classification, top-1", "Image to caption, R@1", "Caption to image, R@1", "average, mean of 3 tasks"
    ]  # fmt: skip
    assert all(row[1] == row[2] and float(row[3]) == 0 for row in rows), "the same pairs give the same figures"
    assert "negCLIPLoss, then NormSim" in Path("comparison.html").read_text()


def test_a_demo_of_another_size_is_refused(tmp_path, clipdata):
    done = clipdata("demo", "--pairs", 10)
    assert done.returncode == 2
    assert "--pairs is 10, expected at least 200" in done.stderr
