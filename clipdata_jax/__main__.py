"""The process of `clipdata`: signals first, since a machine may be preempted while Python still imports."""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from typing import NoReturn

from clipdata_jax.runtime import stopping

_SECONDS = 5.0


def main() -> NoReturn:
    """Runs the command of `sys.argv`; the status is 0 done, 1 an internal error, 2 bad input, 75 stopped."""
    stopping.watch()
    try:
        from clipdata_jax import cli

        status = cli.main()
    except SystemExit as end:  # of --help, and of flags that can't be read
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        status = stopping.STATUS
    except Exception:
        traceback.print_exc()
        status = 1
    # With Python's own exit, a signal during it would change the status.
    stopping.finish()
    if not stopping.asked():
        # Others may wait for one that failed: they end with it, unless they fail too, each with its message.
        _leave_run(_SECONDS if status else None)
    if stopping.asked():
        stopping.leave_run()
    stopping.exit_now(stopping.STATUS if stopping.asked() else status)


def _leave_run(seconds: float | None) -> None:
    """Waits for the other processes of a `jax.distributed` run, for a limited time and until a signal comes."""
    if "jax" in sys.modules:
        import jax

        waiting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        waiting.start()
        end = math.inf if seconds is None else time.monotonic() + seconds
        while waiting.is_alive() and not stopping.asked() and time.monotonic() < end:
            waiting.join(0.1)


if __name__ == "__main__":
    main()
