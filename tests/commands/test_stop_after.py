"""`--stop-after N`: N units or steps for good, status 75, and the same bytes in the end."""

from __future__ import annotations

import numpy as np
import pytest
from support.checkpoints import make_checkpoint
from support.images import write_pairs
from support.pools import make_pool

from clipdata_jax.formats import uids


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    make_pool(folder / "pool", [40, 33, 20], dim=8)
    for number in range(3):
        write_pairs(folder / "tars" / f"{number}.tar", range(4 * number, 4 * number + 4))
    make_checkpoint(folder / "model")
    found = [uids.uid_of(f"{seed // 4}.tar", f"{seed:05}") for seed in range(12)]
    uids.write_subset(str(folder / "some.npy"), uids.from_hex(sorted(found[::2])))
    return folder


COMMANDS = {
    "embed": ("embed", "tars", "--model", "model", "--batch-size", 4),
    "embed-file": ("embed", "tars", "--images-only", "--model", "model", "--batch-size", 4),
    "score": ("score", "pool", "--scores", "clip_score", "--batch-size", 16, "--group", 1),
    "reshard": ("reshard", "tars", "--subset", "some.npy"),
    "norm-sim-d": ("norm-sim-d", "pool", "--fraction", 0.5, "--steps", 3),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_in_parts_gives_the_same_bytes(name, work, monkeypatch, clipdata):
    monkeypatch.chdir(work)
    suffix = {"embed-file": ".npz", "norm-sim-d": ".npy"}.get(name, "")
    noun = "step" if name == "norm-sim-d" else "unit"
    command, out = COMMANDS[name], f"{name}-parts{suffix}"
    assert clipdata(*command, "--out", f"{name}-whole{suffix}").returncode == 0
    done = clipdata(*command, "--out", out, "--stop-after", 1)
    told = f"stopped after 1 of 3 {noun}s as --stop-after says; run the command without it to continue"
    assert (done.returncode, told in done.stderr) == (75, True), done.stderr
    assert not (work / f"{out}.manifest.json").exists()
    assert not (work / out / "_manifest.json").exists()
    done = clipdata(*command, "--out", out, "--stop-after", 1)
    assert "stopped after 1 of 2" in done.stderr
    assert clipdata(*command, "--out", out, "--stop-after", 5).returncode == 0
    for path in work.glob(f"{name}-whole*/**/*"):
        if path.is_file() and path.suffix in (".npz", ".npy", ".parquet", ".tar"):
            other = str(path).replace("-whole", "-parts")
            assert path.read_bytes() == np.fromfile(other, np.uint8).tobytes(), path
    if suffix:
        assert (work / out).read_bytes() == (work / f"{name}-whole{suffix}").read_bytes()


def test_stop_after_is_at_least_one(clipdata):
    done = clipdata("reshard", "tars", "--subset", "some.npy", "--out", "x", "--stop-after", 0)
    assert done.returncode == 2
    assert "--stop-after is 0, expected a whole number of at least 1" in done.stderr
