"""Work that threads do in order: NumPy, hashing and files let go of the interpreter's lock."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def cores() -> int:
    """The cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def in_order(
    function: Callable[[Any], T], items: Iterable[Any], threads: int = 0, ahead: int = 4
) -> Iterator[T]:
    """The function's results in the items' order, a few worked out ahead.

    Args:
      function: what to apply.
      items: to what.
      threads: 0 means one a core.
      ahead: items per thread that may be begun or done before they are asked for.
    """
    threads = threads or cores()
    pending: collections.deque[Future[T]] = collections.deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Ahead(Generic[T]):
    """What is asked for by number and in order, as in passes over parts: from the second on threads begin the next few.

    Who asks for some numbers only, not for two that follow one another, pays for nothing else.

    Args:
      function: what makes a number's result; an error is raised where that number is asked for.
      count: the numbers are 0 ... count - 1.
      threads: how many to begin ahead; up to 1 means none, and no thread.
    """

    def __init__(self, function: Callable[[int], T], count: int, threads: int) -> None:
        self._function, self._count, self._threads = function, count, threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._begun: dict[int, Future[T]] = {}
        self._last = -1

    def __call__(self, number: int) -> T:
        """The result of a number."""
        if self._pool is None:
            return self._function(number)
        for other in [other for other in self._begun if other < number or number < self._last]:
            self._begun.pop(other).cancel()  # passed over, or of a pass that ended early
        if number == self._last + 1 and number:
            for after in range(number, min(number + self._threads, self._count)):
                if after not in self._begun:
                    self._begun[after] = self._pool.submit(self._function, after)
        self._last = number
        begun = self._begun.pop(number, None)
        return self._function(number) if begun is None else begun.result()

    def close(self) -> None:
        """Lets go of the threads, when what they are at is done."""
        self._begun.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
