"""Processes that help this one, on this machine: for what holds Python's lock, or jax where this process has none."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, ParamSpec, TypeVar

from clipdata_jax.runtime import stopping

T = TypeVar("T")
P = ParamSpec("P")
_MAIN = threading.Lock()


class SpawnPool(ProcessPoolExecutor):
    """Processes that call this package's functions; they end with this one, and Ctrl-C is its alone.

    They are begun by what is asked of them, so many as that needs. A fork would copy the locks of the threads that
    there are; and they don't import the program that this process runs, as Python's own would: a script without
    `if __name__ == "__main__"` would be run again by each, and one from standard input isn't there to be read.
    """

    def __init__(self, count: int, begin: Callable[..., object] | None = None, *arguments: Any) -> None:
        """Says how many there are at most, and what each calls first."""
        super().__init__(count, multiprocessing.get_context("spawn"), _begin, (begin, arguments))

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As a ProcessPoolExecutor's."""
        with _no_main():
            return super().submit(function, *args, **kwargs)


def _begin(begin: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    stopping.follow_parent()
    if begin is not None:
        begin(*arguments)


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    with _MAIN:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
