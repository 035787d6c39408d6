"""Processes with a time limit, and a check of the outputs of commands by `clipdata verify`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from clipdata_jax.runtime import parallel

_ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def started(command: Sequence[str], *, seconds: float = 60, **options: Any) -> Iterator[subprocess.Popen]:
    """A process that is killed, with those that it starts, after some seconds and when the block ends.

    Args:
      command: its words.
      seconds: how long it may run; its pipes end then too, so that no read waits longer.
      options: of `subprocess.Popen`.
    """
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        timer = threading.Timer(seconds, _kill, [process])
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            _kill(process)


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_two(arguments: list[str], cwd: Path, *, status: int = 0) -> list[str]:
    """Runs a Python program as two processes of one `jax.distributed` run, both to end so; what each printed."""
    if not parallel.can_join():
        pytest.skip(f"joint runs need a newer jax than {jax.__version__}")
    port = _free_port()
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    flags = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
    command = [sys.executable, "-W", "error", *arguments, *flags, "--process-id"]
    options = {"cwd": cwd, "env": environment, "text": True, "seconds": 240}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                started([*command, str(index)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
            )
            for index in range(2)
        ]
        outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [status, status], outputs
    return [out for out, _ in outputs]


def check_verify(clipdata: Any, output: Path, file: Path) -> None:
    """An output is called good, and a file of it is named when one bit is another."""
    done = clipdata("verify", output)
    assert done.returncode == 0, done.stdout
    assert "all good" in done.stdout, done.stdout
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    file.write_bytes(damaged)
    done = clipdata("verify", output)
    assert done.returncode == 2
    assert f"damaged: {file}: its digest is not the recorded one" in done.stdout
    file.write_bytes(whole)
