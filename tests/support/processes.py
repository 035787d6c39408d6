"""Processes that tests start: none outlives its test, and none can make a test wait for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
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
