"""Pools of processes, whatever program starts them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from clipdata_jax.runtime import worker_pool

PROGRAM = """
import os
from clipdata_jax.runtime import worker_pool
print("begun", flush=True)
with worker_pool.SpawnPool(2) as pool:
    print(pool.submit(os.getppid).result() == os.getpid())
"""


@pytest.mark.parametrize("named", [True, False], ids=["file", "standard input"])
def test_workers_do_not_run_the_program_again(tmp_path, named):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py"] if named else [sys.executable, "-"]
    done = subprocess.run(
        command, cwd=tmp_path, input=None if named else PROGRAM, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "begun\nTrue\n"), done.stderr


def test_a_pool_that_loses_a_process_does_not_wait_for_the_others():
    pool = worker_pool.SpawnPool(2)
    busy = pool.submit(time.sleep, 600)
    with pytest.raises(BrokenProcessPool):
        pool.submit(signal.raise_signal, signal.SIGKILL).result()
    pool.shutdown()
    assert isinstance(busy.exception(), BrokenProcessPool)
