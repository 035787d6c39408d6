"""Stops by SIGTERM (a preempted machine) or Ctrl-C: within seconds, tidily, with status 75 for "run it again".

Receipts make a kill at any moment safe; a stop only ends sooner and removes temporary files. The first signal raises
`Stopped` in the main thread, so that `with` and `finally` tidy up. Code in C doesn't notice, and threads may take long
to join, so another thread ends the process some seconds later, or at once at a second signal. Processes of a
`jax.distributed` run stop together, see `couple_to`.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, Protocol

STATUS = 75
"""EX_TEMPFAIL of sysexits.h, "try again": the same command continues where it was."""
PEER_SIGNAL = signal.SIGUSR1
"""What a process sends itself when another process of its run was stopped."""
temporary_files: set[str] = set()
"""This process's temporary files and folders, to be removed with it."""
_SECONDS = 5.0  # a preempted machine is gone after 30
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RETRY_SECONDS = 0.02
_PACKAGE = f"{os.path.dirname(os.path.dirname(__file__))}{os.sep}"
_UNSAFE = ("<frozen importlib", f"{os.sep}jax{os.sep}", f"{os.sep}orbax{os.sep}")
_asked, _finished = threading.Event(), threading.Event()
_deferred = 0.0  # seconds more for a block that stops by itself


class Stopped(KeyboardInterrupt):
    """Raised in the main thread when a signal asks the process to stop."""


class Peers(Protocol):
    """The other processes of a joined run.

    Attributes:
      seconds: the time that this process has to end.
    """

    seconds: float

    def notify(self) -> None:
        """Notifies them that this process is being stopped."""

    def leave_run(self) -> None:
        """Notifies them that this process leaves, or waits until they have left."""


_peers: Peers | None = None


def asked() -> bool:
    """Returns whether a signal has asked this process to stop."""
    return _asked.is_set()


def watch() -> None:
    """Sets up a process that runs a command: from now on a signal ends it within seconds."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python writes a signal's number there even while the main thread runs C code.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(read,), name="stop", daemon=True).start()
    for number in (*_SIGNALS, PEER_SIGNAL):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background jobs ignore Ctrl-C
            signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _on_signal)


@contextlib.contextmanager
def deferred(seconds: float) -> Iterator[None]:
    """Makes a signal raise nothing in the block, which looks at `asked` and has so many seconds more to end.

    With 0 seconds it raises at once, as it does outside such a block.
    """
    global _deferred
    before, _deferred = _deferred, seconds
    try:
        yield
    finally:
        _deferred = before


def couple_to(peers: Peers) -> bool:
    """Makes a stop of this process stop its peers, too, and returns whether it did: only where `watch` was called.

    The first process of a `jax.distributed` run must leave last: C++ aborts those that are left without it.
    """
    global _peers
    if signal.getsignal(PEER_SIGNAL) is not _on_signal:
        return False
    _peers = peers
    return True


def leave_run() -> None:
    """Leaves a joined run in such an order that no other process is aborted."""
    if _peers is not None:
        with contextlib.suppress(Exception):  # the run is over
            _peers.leave_run()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if number != signal.SIGALRM and _asked.is_set():
        return  # the other thread handles a second signal
    _asked.set()
    if _finished.is_set() or _deferred:
        return
    if _is_unsafe(frame):
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
    else:
        raise Stopped


def _is_unsafe(frame: FrameType | None) -> bool:
    """Whether an import, jax or Orbax is running: C++ that called Python may abort at an exception."""
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        if any(name in frame.f_code.co_filename for name in _UNSAFE):
            return True
        frame = frame.f_back
    return False


def _end_in_time(read: int) -> None:
    """Ends the process some seconds after its first signal, or at a second one from outside."""
    end, received = None, 0
    while (number := _next_signal(read, end)) is not None:
        received += number != PEER_SIGNAL
        if received > 1:
            break
        if end is None:
            end = time.monotonic() + (_SECONDS if _peers is None else _peers.seconds) + _deferred
            if _deferred:
                os.write(2, b"clipdata: stopping once the work is saved; a second signal stops at once\n")
            _start(_notify)  # which may take long
    if received < 2:
        _start(_end_tidily).join(0.5)
    exit_now()


def _end_tidily() -> None:
    leave_run()
    os.write(2, b"clipdata: stopped; run the same command again to continue\n")


def _start(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def _next_signal(read: int, end: float | None) -> int | None:
    """The next signal; None if there is none until `end`."""
    while select.select([read], [], [], None if end is None else max(0.0, end - time.monotonic()))[0]:
        number = os.read(read, 1)[0]
        if number in (*_SIGNALS, PEER_SIGNAL):
            return number
    return None


def _notify() -> None:
    if _peers is not None:
        with contextlib.suppress(Exception):  # the run is over
            _peers.notify()


def follow_parent() -> None:
    """Makes a process of a pool end with its parent, however that ends, and ignore signals.

    A terminal and a scheduler signal all processes: the parent stops the run, the others finish their current task.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        exit_now(1)  # nothing takes the results


def exit_now(status: int = STATUS) -> NoReturn:
    """Removes temporary files and ends the process, without waiting for threads or other processes."""
    for path in list(temporary_files):
        remove(path)
    os._exit(status)


def remove(path: str) -> None:
    """Removes a temporary file or folder, if it still exists."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError:  # a folder
        shutil.rmtree(path, ignore_errors=True)


def finish() -> None:
    """Marks the command as ended: a signal from now on raises nothing, but `asked` returns True."""
    _finished.set()


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Makes SIGTERM raise a KeyboardInterrupt within the block, as Ctrl-C does, where `watch` wasn't called."""

    def stop(*_: object) -> None:
        raise Stopped

    # Only the main thread may set a signal's handler.
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is _on_signal:
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
