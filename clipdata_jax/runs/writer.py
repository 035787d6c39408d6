"""Units completed in a thread, while the next ones are worked on."""

from __future__ import annotations

import collections
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, ParamSpec, Self

_Parameters = ParamSpec("_Parameters")
_WAITING = 2  # units that it may be behind


class Writer(Generic[_Parameters]):
    """Completes units in a thread of its own, in the order they come, while the next ones are worked on.

    Leaving the block waits for all of them, after an error too, so that no result is lost; after an interrupt it
    waits for one.

    Args:
      complete: `Output.complete`.
    """

    def __init__(self, complete: Callable[_Parameters, None]) -> None:
        self._complete = complete
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: collections.deque[Future[None]] = collections.deque()

    def complete(self, *args: _Parameters.args, **named: _Parameters.kwargs) -> None:
        """Completes a unit, later.

        Raises:
          InputError: a unit before this one could not be written.
        """
        self._pending.append(self._thread.submit(self._complete, *args, **named))
        while len(self._pending) > _WAITING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self._thread.shutdown(cancel_futures=interrupted)
        if kind is None:
            for one in self._pending:
                one.result()
