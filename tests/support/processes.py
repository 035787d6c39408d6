"""Processes with a time limit, and a check of the outputs of commands by `clipdata verify`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


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
