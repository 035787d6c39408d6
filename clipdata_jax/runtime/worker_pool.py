"""A spawn-based process pool, for work that holds the interpreter's lock."""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, ParamSpec, TypeVar

from clipdata_jax.runtime import stopping

T = TypeVar("T")
P = ParamSpec("P")
_LOCK = threading.Lock()


class _Process(SpawnProcess):
    def terminate(self) -> None:
        """Ends the process, which ignores SIGTERM: else a pool that lost one would wait for the others for ever."""
        self.kill()


class _Context(SpawnContext):
    Process = _Process


class SpawnPool(ProcessPoolExecutor):
    """A pool of processes that call functions of this package, end with this process, and ignore Ctrl-C.

    Processes start as tasks need them. A fork would copy the locks of running threads. Unlike Python's own pools,
    these don't import this process's program: a script without `if __name__ == "__main__"` would run again in each
    of them, and one from standard input can't be read again.

    Args:
      count: the largest number of processes.
      initializer: called first in each process.
      arguments: its arguments.
    """

    def __init__(self, count: int, initializer: Callable[..., object] | None = None, *arguments: Any) -> None:
        super().__init__(count, _Context(), _start, (initializer, arguments))

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submits a task, as a ProcessPoolExecutor does."""
        known = len(self._processes or ())
        with _without_main():
            future = super().submit(function, *args, **kwargs)
        if len(self._processes) > known:
            # The manager watches a new process from its next turn on: without one, nobody would learn that it died
            # while the others are busy.
            with self._shutdown_lock:
                self._executor_manager_thread_wakeup.wakeup()
        return future


def _start(initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    stopping.follow_parent()
    if initializer is not None:
        initializer(*arguments)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    with _LOCK:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
