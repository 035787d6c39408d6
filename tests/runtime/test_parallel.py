"""The mesh, padding, and two real processes."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from support.pools import make_pool
from support.processes import run_two

from clipdata_jax.config import Workers
from clipdata_jax.errors import InputError
from clipdata_jax.runtime import parallel


def test_the_mesh_has_one_axis_over_all_devices():
    mesh = parallel.data_mesh()
    assert dict(mesh.shape) == {"data": 8}
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,)
    assert dict(parallel.data_mesh(jax.devices()[:3]).shape) == {"data": 3}
    assert parallel.local_mesh() == mesh


def test_rows_are_padded_and_made_global():
    rows = np.arange(6.0).reshape(3, 2)
    padded = parallel.pad_rows(rows, 8)
    assert padded.shape == (8, 2)
    assert not padded[3:].any()
    assert parallel.pad_rows(rows, 3) is rows
    with pytest.raises(ValueError, match="3 rows don't fit into 2"):
        parallel.pad_rows(rows, 2)
    whole = parallel.to_global(padded, parallel.data_mesh())
    assert whole.shape == (8, 2)
    assert len(whole.sharding.device_set) == 8
    np.testing.assert_array_equal(whole, padded)


def test_a_worker_needs_no_other_process():
    assert parallel.start(Workers()) == parallel.Share(0, 1)
    assert parallel.start(Workers(worker="2/5")) == parallel.Share(2, 5)
    assert jax.devices()  # in use here, so it is too late to join a run
    reason = "could not join the run" if parallel.can_join() else f"need jax 0.8.2 or newer, this is {jax.__version__}"
    with pytest.raises(InputError, match=reason):
        parallel.start(Workers(coordinator="127.0.0.1:1", num_processes=2, process_id=1))


def test_a_gpu_that_jax_does_not_use_is_told_once(tmp_path, clipdata, monkeypatch):
    make_pool(tmp_path / "pool", [20])
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(parallel, "_GPUS", (str(tmp_path / "nvidia[0-9]*"),))
    parallel.warn_of_unused_gpu.cache_clear()
    flags, said = ["score", "pool", "--scores", "clip_score", "--out"], []
    for platforms, out in (("cpu", "asked"), (None, "first"), (None, "second")):
        jax.config.update("jax_platforms", platforms)
        said.append(clipdata(*flags, out).stderr.count("An NVIDIA GPU is present, but jax"))
        if platforms:
            parallel.warn_of_unused_gpu.cache_clear()
    jax.config.update("jax_platforms", "cpu")
    assert said == [0, 1, 0]


def test_two_processes_score_as_one_does(tmp_path, clipdata):
    make_pool(tmp_path / "pool", [90, 30, 130])
    flags = ["score", "pool", "--batch-size", "40", "--group", "2", "--repeats", "3"]
    assert clipdata(*flags, "--out", "one").returncode == 0
    run_two(["-m", "clipdata_jax", *flags, "--out", "two"], tmp_path)
    for path in sorted((tmp_path / "one").glob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert (tmp_path / "two" / "_manifest.json").read_bytes() == (tmp_path / "one" / "_manifest.json").read_bytes()


def test_two_processes_select_as_one_does(tmp_path, clipdata):
    make_pool(tmp_path / "pool", [9_000, 12_000], dim=8)
    flags = ["norm-sim-d", "pool", "--fraction", "0.2", "--steps", "5", "--out"]
    assert clipdata(*flags, "one.npy").returncode == 0
    run_two(["-m", "clipdata_jax", *flags, "two.npy"], tmp_path)
    for suffix in ("npy", "npy.trace.jsonl"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


STOPPED = """
import os, signal, sys
from clipdata_jax.commands import norm_sim_d
take_step = norm_sim_d.take_step
def take_step_or_stop(rows, state, **named):
    if sys.argv[-1] == "0" and state.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return take_step(rows, state, **named)
norm_sim_d.take_step = take_step_or_stop
from clipdata_jax.__main__ import main
main()
"""


def test_a_stop_of_one_of_two_processes_stops_both(tmp_path, clipdata):
    make_pool(tmp_path / "pool", [900, 200], dim=8)
    (tmp_path / "program.py").write_text(STOPPED)
    flags = ["norm-sim-d", "pool", "--fraction", "0.2", "--steps", "5", "--out"]
    # The second process waits in C++ for scores that the first, which holds the run together, won't send.
    printed = run_two(["program.py", *flags, "two.npy"], tmp_path, status=75)
    assert len(printed) == 2
    assert not list(tmp_path.rglob(".*.tmp"))
    for name in ("two.npy", "one.npy"):  # goes on, in one process
        assert clipdata(*flags, name).returncode == 0
    for suffix in ("npy", "npy.trace.jsonl"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "two.npy.run.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


PROGRAM = """
import sys
from clipdata_jax.runtime import parallel
from clipdata_jax.config import Workers
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
share = parallel.start(Workers(coordinator=arguments["--coordinator"], num_processes=2,
                               process_id=int(arguments["--process-id"])))
import jax, numpy as np
import clipdata_jax as cj
mesh = parallel.data_mesh()
assert dict(mesh.shape) == {"data": 4} and share.count == 2
random = np.random.default_rng(0)
f, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in random.normal(size=(2, 16, 8)))
own = slice(share.index * 8, share.index * 8 + 8)
placed = [parallel.to_global(x[own].astype(np.float32), mesh) for x in (f, g)]
score = cj.neg_clip_loss_sharded(*placed, mesh=mesh)
cos = f @ g.T / 0.01
most = cos.max()
want = 0.01 * (np.diag(cos) - most) - 0.005 * (
    np.log(np.exp(cos - most).sum(1)) + np.log(np.exp(cos - most).sum(0)))
for piece in score.addressable_shards:
    np.testing.assert_allclose(piece.data, want[piece.index[0]], atol=5e-6)
print(f"process {share.index} of {share.count}: right")
"""


def test_the_sharded_score_is_right_over_two_processes(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    printed = run_two(["program.py"], tmp_path)  # the transport prints lines of its own
    assert [text.splitlines()[-1] for text in printed] == [f"process {index} of 2: right" for index in range(2)]
