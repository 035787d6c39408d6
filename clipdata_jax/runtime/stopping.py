"""A stop by SIGTERM (the machine is being taken) or Ctrl-C: tidy, in seconds, with a status that says "run me again".

The first signal is raised in the main thread, so that `with` and `finally` tidy up. Code in C doesn't see that, and
threads may take long to join: so a thread that does nothing else ends the process some seconds later, or at once when
a second signal comes. Nothing is raised while a module is imported, for packages in C++ would abort: the process ends.
And nothing, for a while, in code of jax and Orbax: C++ may have called it, and a loop of asyncio breaks in its midst.

Processes of a `jax.distributed` run stop together, see `couple_to`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, Protocol

STATUS = 75
"""EX_TEMPFAIL of sysexits.h, "try again": the same command goes on from where it was."""
temporary_files: set[str] = set()
"""Files that are being written aside in this process, and its scratch folders, to be removed with it."""
_SECONDS = 5.0  # a preempted machine is gone after 30
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PEER_SIGNAL = signal.SIGUSR1
"""What a process sends itself where it hears that another of its run was stopped."""
_LATER_SECONDS = 0.02
_asked, _over = threading.Event(), threading.Event()
_waits = itertools.count()
_OURS = f"{os.path.dirname(os.path.dirname(__file__))}{os.sep}"
# How often it is raised later, until it is raised anyway; a checkpoint that is begun is better finished.
_DELICATE = {f"{os.sep}jax{os.sep}": 50, f"{os.sep}orbax{os.sep}": 200}


class Stopped(KeyboardInterrupt):
    """Raised in the main thread where a signal asks the process to stop."""


class Partners(Protocol):
    """The other processes of a joined run."""

    seconds: float  # that this process may take to end, where it is stuck

    def tell(self) -> None:
        """Says to them that this process is being stopped."""

    def leave_run(self) -> None:
        """Says to them that it leaves, or waits until they have said so."""


_partners: Partners | None = None


def asked() -> bool:
    """Whether a signal has asked this process to stop."""
    return _asked.is_set()


def watch() -> None:
    """Sets up a process that is a command: from now on a signal ends it within seconds."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python writes the signal's number there even while the main thread is in C.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(read,), name="stop", daemon=True).start()
    for number in (*_SIGNALS, PEER_SIGNAL):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's jobs in the background have Ctrl-C
            signal.signal(number, _raise_once)
    signal.signal(signal.SIGALRM, _raise_later)
    sys.unraisablehook = _raise_again


def couple_to(partners: Partners) -> bool:
    """Makes a stop of this process one of the others, too; whether it did: not where `watch` hasn't set it up.

    The first process of a `jax.distributed` run must leave last: C++ aborts those that are left without it.
    """
    global _partners
    if signal.getsignal(PEER_SIGNAL) is not _raise_once:
        return False
    _partners = partners
    return True


def leave_run() -> None:
    """Sees to it that no other process of a joined run is aborted when this one leaves."""
    if _partners is not None:
        with contextlib.suppress(Exception):  # there is no run any more
            _partners.leave_run()


def _raise_once(_: int, frame: FrameType | None) -> None:
    if _over.is_set():
        _asked.set()
        return
    if _imports(frame):
        os.write(2, b"clipdata: stopped; run the same command again\n")
        leave_run()
        exit_now()
    if not _asked.is_set():  # what a second one does is the other thread's
        _asked.set()
        _raise_later(0, frame)


def _raise_later(_: int, frame: FrameType | None) -> None:
    if _over.is_set():
        return
    if next(_waits) < _patience(frame):
        signal.setitimer(signal.ITIMER_REAL, _LATER_SECONDS)
        return
    raise Stopped


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """Raises later what was raised where Python drops it: in a destructor, in what a weak reference calls."""
    if lost.exc_type is Stopped:
        signal.setitimer(signal.ITIMER_REAL, _LATER_SECONDS)
    else:
        sys.__unraisablehook__(lost)


def _patience(frame: FrameType | None) -> int:
    most = 0
    while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
        most = max([most, *(often for name, often in _DELICATE.items() if name in frame.f_code.co_filename)])
        frame = frame.f_back
    return most


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_in_time(read: int) -> None:
    """Ends the process some seconds after its first signal, or at the second one that somebody sends it."""
    end, sent = None, 0
    while (number := _next_signal(read, end)) is not None:
        sent += number != PEER_SIGNAL
        if sent > 1:
            break
        if end is None:
            end = time.monotonic() + (_SECONDS if _partners is None else _partners.seconds)
            _start(_tell)  # which may take long
    if sent < 2:
        _start(leave_run).join(0.5)
    exit_now()


def _start(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def _next_signal(read: int, end: float | None) -> int | None:
    """The next signal, None where there is none until `end`."""
    while select.select([read], [], [], None if end is None else max(0.0, end - time.monotonic()))[0]:
        number = os.read(read, 1)[0]
        if number in (*_SIGNALS, PEER_SIGNAL):
            return number
    return None


def _tell() -> None:
    if _partners is not None:
        with contextlib.suppress(Exception):  # there is no run any more
            _partners.tell()


def follow_parent() -> None:
    """Makes a process of a pool end when its parent does, however that ends, and not by the terminal's Ctrl-C.

    A terminal and a scheduler signal all processes: the first one stops the run, the others end what they are at.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        exit_now(1)  # nobody takes the results


def exit_now(status: int = STATUS) -> NoReturn:
    """Ends the process at once, without waiting for threads or other processes; files written aside go first."""
    for path in list(temporary_files):
        remove(path)
    os._exit(status)


def remove(path: str) -> None:
    """Removes a temporary file or folder, if it is still there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError:  # a folder
        shutil.rmtree(path, ignore_errors=True)


def finish() -> None:
    """Says that the command has ended: a signal from now on raises nothing, and `asked` tells of it."""
    _over.set()


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Makes SIGTERM a KeyboardInterrupt within the block, as Ctrl-C is, where `watch` hasn't done so."""

    def stop(*_: object) -> None:
        raise Stopped

    # No other thread may set what a signal does.
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is _raise_once:
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
