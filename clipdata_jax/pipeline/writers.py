"""Units' files are written while the next units are worked on."""

from __future__ import annotations

import collections
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from clipdata_jax.pipeline.work import Output

_WAITING = 2  # units that it may be behind


class Writer:
    """Completes units in a thread of its own, in the order they come, while the next ones are worked on.

    Leaving the block waits for all of them, after an error too: what is worked out is not thrown away. Only
    who interrupts it waits for one unit and no more.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: collections.deque[Future[None]] = collections.deque()

    def complete(self, *args: Any, **named: Any) -> None:
        """`Output.complete`, later.

        Raises:
          InputError: a unit before this one could not be written.
        """
        self._pending.append(self._thread.submit(self._output.complete, *args, **named))
        while len(self._pending) > _WAITING or self._pending[0].done():
            self._pending.popleft().result()
            if not self._pending:
                return

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self._thread.shutdown(cancel_futures=interrupted)
        if kind is None:
            for one in self._pending:
                one.result()
