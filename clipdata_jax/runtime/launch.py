"""Which process of how many this one is, as the launcher says: a step of Slurm, a slice of TPU hosts.

Nothing is asked of a network here, and jax is imported only where the TPU's library is installed. Commands whose units
need no other process take their share by their number alone, so that a lost process takes no other with it; only
where processes work together, and on a slice of TPU hosts, whose chips open together, jax joins them to one run.
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
"""The environment's variable that, being "none", says what `--coordinator none` says."""
Environment = MutableMapping[str, str]


def detect(workers: Workers, *, together: bool, environment: Environment = os.environ) -> Workers:
    """What `--worker` and `--coordinator` are to be, where the command line doesn't say; what it says stands.

    Args:
      workers: as on the command line.
      together: whether the command's processes work on every step together.
      environment: of the process. In a step of Slurm with several tasks on a machine it is changed so that each
        task sees a GPU of its own.
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
    """Which process of how many this is, for commands that one process does alone, as far as variables tell."""
    if environment.get(ALONE) == "none":
        return Share()
    return _of_slurm(environment) or _of_tpu(environment) or Share()


def _stays_alone(workers: Workers, environment: Environment) -> bool:
    said = environment.get(ALONE)
    if said not in (None, "", "none"):
        raise InputError(f"{ALONE} is {said!r} in the environment, expected none")
    return workers.coordinator == "none" or (workers.coordinator is None and said == "none")


def _of_slurm(environment: Environment) -> Share | None:
    """A task of an `srun` with more than one; what `sbatch` itself runs, and a shell of `salloc`, is none."""
    count, index = environment.get("SLURM_STEP_NUM_TASKS", ""), environment.get("SLURM_PROCID", "")
    if not (count.isdecimal() and index.isdecimal() and int(count) > 1):
        return None
    return Share(int(index), int(count))


def _take_own_gpus(environment: Environment) -> None:
    """One GPU of those that several tasks on a machine see; all of them for a task alone, which jax would give one."""
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return
    local = environment.get("SLURM_LOCALID", "0")
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if _tasks_here(environment) < 2:
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(max(len(visible), 1))))
        return
    if len(visible) > int(local):
        local = visible[int(local)]
    if len(visible) != 1:  # else Slurm has bound the task to it
        environment["CUDA_VISIBLE_DEVICES"] = local
    environment["JAX_LOCAL_DEVICE_IDS"] = "0"


def _tasks_here(environment: Environment) -> int:
    """Tasks of the step on this machine, of "2(x3),1": 2, 2, 2 and 1."""
    tasks: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        tasks += [int(count)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return tasks[node] if node < len(tasks) else 1


def _hosts(environment: Environment) -> list[str] | None:
    """The hosts of a TPU slice, where GKE or somebody else tells them by variables."""
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
    """Whether this is a TPU host of several; where no variable tells, the VM's metadata do, which jax asks."""
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
    import jax  # noqa: F401  it looks for chips, and leaves this variable where there are some

    return environment.get("TPU_ML_PLATFORM") == "JAX"
