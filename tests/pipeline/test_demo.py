"""The real `clipdata demo`, small: its table is the truth, and a second run only does what is missing."""

from __future__ import annotations

import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipdata_jax.data import uids


@pytest.mark.slow
def test_the_demo_tells_the_truth_about_what_each_method_kept(tmp_path, clipdata):
    done = clipdata("demo", "--out", "d", "--pairs", 400, "--train", "--train-steps", 2, devices=1)
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"^\$ clipdata (\w+)", done.stdout, re.MULTILINE)
    assert commands[:8] == ["embed", "embed", "score", "select", "select", "select", "reshard", "report"]
    assert commands[8:] == ["train", "evaluate"] * 6
    truth = pq.read_table(tmp_path / "d" / "pool" / "truth.parquet").to_pydict()
    kind = dict(zip(truth["uid"], truth["kind"], strict=True))
    shares = {}
    for index, name in enumerate(["random", "CLIPScore", "negCLIPLoss", "negCLIPLoss, then NormSim"]):
        kept = uids.to_hex(uids.read_subset(str(tmp_path / "d" / f"subset-{index}.npy")))
        assert len(kept) == 200
        shares[name] = np.mean([kind[uid] == "sound" for uid in kept])
        (line,) = re.findall(rf"^{name}  +200 .*", done.stdout, re.MULTILINE)
        assert line.split()[-7] == f"{shares[name]:.1%}"
    # The shipped model tells sound pairs from spoiled ones: half of the pool is sound.
    assert min(shares[name] for name in shares if name != "random") > shares["random"] + 0.2
    assert (tmp_path / "d" / "report.html").stat().st_size > 100_000
    for name in ("random", "negCLIPLoss, then NormSim"):
        (line,) = re.findall(rf"^{name} .*±.*", done.stdout, re.MULTILINE)
        figures = [float(figure) for figure in re.findall(r"([\d.]+)% ±", line)]
        assert len(figures) >= 9 and all(0 <= figure <= 100 for figure in figures)
    before = (tmp_path / "d" / "metadata" / "00000.npz").stat().st_mtime_ns
    again = clipdata("demo", "--out", "d", "--pairs", 400, devices=1)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "d" / "metadata" / "00000.npz").stat().st_mtime_ns == before


def test_a_demo_of_another_size_is_refused(tmp_path, clipdata):
    done = clipdata("demo", "--pairs", 10)
    assert done.returncode == 2 and "--pairs is 10, expected at least 200" in done.stderr
