"""Detection of the launcher, a Slurm step or a slice of TPU hosts: the number of processes, and this one's index.

It uses no network, and imports jax only if the TPU library is installed. Commands whose units are independent take
their share by index, so that a lost process ends no other; jax joins processes to one run only where they work on
every step together, and on a slice of TPU hosts, whose chips are initialized together.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import MutableMapping

from clipdata_jax.config import Workers
from clipdata_jax.errors import InputError
from clipdata_jax.runtime.parallel import Share

ALONE = "CLIPDATA_COORDINATOR"
"""The environment variable whose value "none" means `--coordinator none`."""
Environment = MutableMapping[str, str]


def detect(workers: Workers, *, together: bool, environment: Environment = os.environ) -> Workers:
    """Fills in `--worker` and `--coordinator` where the command line leaves them out.

    Args:
      workers: the flags.
      together: whether the command's processes work on every step together.
      environment: the environment variables; with several tasks of a Slurm step on a machine they are changed, so
        that each task sees a GPU of its own.

    Raises:
      InputError: CLIPDATA_COORDINATOR has another value than "none".

    >>> step = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "3"}
    >>> detect(Workers(), together=False, environment=step).worker
    '1/3'
    """
    if workers.worker is not None or _stays_alone(workers, environment):
        return workers
    joins = together or _is_tpu_host(environment)
    if workers.coordinator is not None:
        if workers.process_id is None or joins:
            return workers
        return Workers(worker=f"{workers.process_id}/{workers.num_processes}")
    if (share := _of_slurm(environment)) is not None:
        _take_own_gpus(environment)
        return Workers(coordinator="auto") if joins else Workers(worker=f"{share.index}/{share.count}")
    return Workers(coordinator="auto") if _is_slice(environment) else workers


def share_of(environment: Environment = os.environ) -> Share:
    """Returns this process's share by the environment variables, for commands that one process runs alone.

    >>> share_of({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"})
    Share(index=1, count=3)
    """
    if environment.get(ALONE) == "none":
        return Share()
    return _of_slurm(environment) or _of_tpu(environment) or Share()


def _stays_alone(workers: Workers, environment: Environment) -> bool:
    value = environment.get(ALONE)
    if value not in (None, "", "none"):
        raise InputError(f"{ALONE} is {value!r} in the environment, expected none; unset it")
    return workers.coordinator == "none" or (workers.coordinator is None and value == "none")


def _of_slurm(environment: Environment) -> Share | None:
    """The share of a task of an `srun` of several; None for the script of `sbatch` and the shell of `salloc`."""
    count, index = environment.get("SLURM_STEP_NUM_TASKS", ""), environment.get("SLURM_PROCID", "")
    if not (count.isdecimal() and index.isdecimal() and int(count) > 1):
        return None
    return Share(int(index), int(count))


def _take_own_gpus(environment: Environment) -> None:
    """Leaves each of several tasks on a machine one GPU, and a single task all, of which jax would use one."""
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return
    local = environment.get("SLURM_LOCALID", "0")
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if _tasks_here(environment) < 2:
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(max(len(visible), 1))))
        return
    if len(visible) > int(local):
        local = visible[int(local)]
    if len(visible) != 1:  # with one, Slurm has bound the task to it
        environment["CUDA_VISIBLE_DEVICES"] = local
    environment["JAX_LOCAL_DEVICE_IDS"] = "0"


def _tasks_here(environment: Environment) -> int:
    """The number of the step's tasks on this machine; "2(x3),1" means 2, 2, 2 and 1."""
    tasks: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        tasks += [int(count)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return tasks[node] if node < len(tasks) else 1


def _hosts(environment: Environment) -> list[str] | None:
    """The hosts of a TPU slice, where GKE or another launcher sets variables."""
    named = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    return named.split(",") if named else None


def _slices(environment: Environment) -> int:
    return int(environment.get("MEGASCALE_NUM_SLICES") or 1)


def _of_tpu(environment: Environment) -> Share | None:
    hosts, worker = _hosts(environment), environment.get("TPU_WORKER_ID", "")
    if hosts is None or not worker.isdecimal():
        return None
    first = int(environment.get("MEGASCALE_SLICE_ID") or 0) * len(hosts)
    return Share(first + int(worker), _slices(environment) * len(hosts))


def _is_slice(environment: Environment) -> bool:
    """Whether this is one of several TPU hosts; without variables, jax reads it from the VM's metadata."""
    if not _is_tpu_host(environment):
        return False
    hosts = _hosts(environment)
    if hosts is None:
        return "TPU_SKIP_MDS_QUERY" not in environment
    return len(hosts) * _slices(environment) > 1


def _is_tpu_host(environment: Environment) -> bool:
    if importlib.util.find_spec("libtpu") is None:
        return False
    if "tpu" not in environment.get("JAX_PLATFORMS", "tpu"):
        return False
    import jax  # noqa: F401  it looks for chips, and sets this variable if there are any

    return environment.get("TPU_ML_PLATFORM") == "JAX"
