"""Threads that read ahead: NumPy, hashing and file access release the interpreter's lock."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def cores() -> int:
    """Returns the number of cores that this process may use.

    >>> cores() >= 1
    True
    """
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def in_flight(items: Iterable[T], count: int) -> Iterator[T]:
    """Yields items `count` late, as for results that are computed asynchronously while earlier ones are fetched.

    >>> list(in_flight(range(4), 2))
    [0, 1, 2, 3]
    """
    pending: collections.deque[T] = collections.deque()
    for item in items:
        pending.append(item)
        if len(pending) > count:
            yield pending.popleft()
    while pending:
        yield pending.popleft()


def prefetch(
    function: Callable[[S], T], items: Iterable[S], *, threads: int | None = None, ahead: int | None = None
) -> Generator[T]:
    """Yields function(item) for each item in order; threads compute the next few meanwhile.

    Args:
      function: called in a thread; its error is raised in its item's place.
      items: iterated over in the caller's thread.
      threads: how many; default: one a core.
      ahead: how many results may be begun before they are asked for; default: 4 a thread. Of a generator that is
        closed early, those begun are finished, and dropped.

    >>> list(prefetch(str.upper, ["a", "b"]))
    ['A', 'B']
    """
    threads = threads or cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    try:
        begun = (pool.submit(function, item) for item in items)
        for future in in_flight(begun, 4 * threads if ahead is None else ahead):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class PassPrefetcher(Generic[T]):
    """Results asked for by number, in passes over 0 ... count - 1: within a pass threads compute the next few.

    A pass may end early. Numbers that don't follow one another cost nothing else.

    Args:
      function: computes the result of a number; its error is raised where that number is asked for.
      count: how many numbers there are.
      threads: how many; with 1, nothing is computed ahead, and no thread is started.

    >>> square = PassPrefetcher(lambda number: number**2, count=3, threads=2)
    >>> [square(number) for number in range(3)]
    [0, 1, 4]
    """

    def __init__(self, function: Callable[[int], T], count: int, threads: int) -> None:
        self._function, self._count, self._threads = function, count, threads
        self._results: Generator[T] | None = None
        self._last = -1

    def __call__(self, number: int) -> T:
        """Returns the result of a number."""
        follows = number == self._last + 1 and number > 0
        self._last = number
        if not follows:
            self.close()
        elif self._results is None and self._threads > 1:
            numbers = range(number, self._count)
            self._results = prefetch(self._function, numbers, threads=self._threads, ahead=self._threads - 1)
        if self._results is None:
            return self._function(number)
        try:
            return next(self._results)
        except BaseException:
            self.close()  # the next number begins anew
            raise

    def close(self) -> None:
        """Waits for what the threads are computing, and drops it."""
        if self._results is not None:
            self._results.close()
            self._results = None
