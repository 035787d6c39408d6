"""Detection of launchers by the variables that they set."""

from __future__ import annotations

import pytest

from clipdata_jax.config import Workers
from clipdata_jax.errors import InputError
from clipdata_jax.runtime import launch
from clipdata_jax.runtime.parallel import Share

STEP = {  # of `srun --nodes 2 --ntasks 3`, the second task of the first node
    "SLURM_JOB_ID": "12", "SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3", "SLURM_PROCID": "1", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_STEP_NODELIST": "n[1-2]",
}  # fmt: skip
GKE = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "2"}


def detect(environment, *, together=False, workers=Workers()):  # noqa: B008  frozen
    return launch.detect(workers, together=together, environment=environment)


@pytest.fixture
def on_tpu(monkeypatch):
    monkeypatch.setattr(launch, "_is_tpu_host", lambda environment: True)


def test_a_slurm_task_takes_its_share_and_joins_only_to_work_together():
    assert detect(dict(STEP)) == Workers(worker="1/3")
    assert detect(dict(STEP), together=True) == Workers(coordinator="auto")
    assert launch.share_of(dict(STEP)) == Share(1, 3)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        # The script of sbatch is not a step; tasks of an array are often a sweep.
        {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_ARRAY_TASK_ID": "4"},
        {**STEP, "CLIPDATA_COORDINATOR": "none"},
        GKE,  # no TPU here
    ],
    ids=["nothing", "one task", "batch script", "coordinator none", "no TPU"],
)
def test_other_processes_work_alone(environment):
    for together in (False, True):
        assert detect(dict(environment), together=together) == Workers()


def test_the_command_line_overrides_the_environment():
    none = Workers(coordinator="none")
    assert detect(dict(STEP), workers=none) == none
    assert detect(dict(STEP), workers=Workers(worker="0/2")) == Workers(worker="0/2")
    by_hand = Workers(coordinator="host:1", num_processes=4, process_id=3)
    assert detect({}, workers=by_hand, together=True) == by_hand
    assert detect({}, workers=by_hand) == Workers(worker="3/4")  # which joins no run
    with pytest.raises(InputError, match="CLIPDATA_COORDINATOR is 'host:1' in the environment, expected none"):
        detect({"CLIPDATA_COORDINATOR": "host:1"})


def test_hosts_of_a_tpu_slice_join(on_tpu):
    joined = Workers(coordinator="auto")
    assert detect(dict(GKE)) == joined
    assert detect({}) == joined  # a TPU VM, whose metadata jax asks
    assert detect({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}) == joined
    assert detect({"TPU_WORKER_HOSTNAMES": "localhost"}) == Workers()
    assert detect({"TPU_SKIP_MDS_QUERY": "1"}) == Workers()  # no metadata to ask
    by_hand = Workers(coordinator="host:1", num_processes=4, process_id=3)
    assert detect({}, workers=by_hand) == by_hand
    assert launch.share_of({**GKE, "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}) == Share(6, 8)


def test_a_tpu_host_has_libtpu_and_chips(monkeypatch):
    seen = {"TPU_ML_PLATFORM": "JAX"}
    assert not launch._is_tpu_host(seen)  # libtpu isn't installed here
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert launch._is_tpu_host(seen)
    assert not launch._is_tpu_host({})
    assert not launch._is_tpu_host({**seen, "JAX_PLATFORMS": "cpu"})


@pytest.mark.parametrize(
    ("said", "visible", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, "5", "0"),  # the node's, seen by both its tasks
        ({"CUDA_VISIBLE_DEVICES": "5"}, "5", "0"),  # bound by Slurm
        ({}, "1", "0"),
        ({"CUDA_VISIBLE_DEVICES": "4,5", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}, "4,5", "0,1"),  # alone
    ],
)
def test_each_task_on_a_machine_takes_a_gpu(said, visible, devices):
    environment = {**STEP, **said}
    detect(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == visible
    assert environment["JAX_LOCAL_DEVICE_IDS"] == devices


def test_the_first_process_runs_a_command_for_one(tmp_path, clipdata, monkeypatch):
    (tmp_path / "a.txt").write_text("0" * 32)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    done = clipdata("uids", "union", "a.txt", "--out", "b.npy")
    assert done.returncode == 0
    assert not (tmp_path / "b.npy").exists()
    assert done.stdout == "clipdata uids: process 2 of 3 has nothing to do; process 1 does it all\n"
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert clipdata("uids", "union", "a.txt", "--out", "b.npy").returncode == 0
    assert (tmp_path / "b.npy").exists()
