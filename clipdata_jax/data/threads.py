"""Work that threads do in order: NumPy, hashing and files let go of the interpreter's lock."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


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
    threads = threads or os.cpu_count() or 1
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
