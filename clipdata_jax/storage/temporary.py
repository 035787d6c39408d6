"""Temporary files and folders, locked while their process lives, removed with it or by the next one.

A file is written to a temporary one in its folder, then renamed; data that doesn't fit in memory goes to a folder in
TMPDIR. The kernel releases a lock when the process dies, however it dies, so one that isn't locked was left behind.
Locks are only trusted within one running kernel, whose id is part of the name: over a network they may have no effect,
so another machine's file counts as left behind after an hour without writes, and its folders stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from clipdata_jax.runtime import stopping

_FILE = re.compile(r"\..+\.([0-9a-f]{8})-[0-9a-f]{32}\.tmp")
_FOLDER = re.compile(r"clipdata-(?:[a-z]+-)?([0-9a-f]{8})-[^-]+")
_SILENT_SECONDS = 3600.0
_BUFFER = 1 << 18  # many small writes cost as much as the bytes


@contextlib.contextmanager
def written(path: str, *, new: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file that is renamed to `path` when the block ends without an error, and removed otherwise.

    Args:
      path: a name in an existing folder.
      new: whether to refuse to replace an existing file.

    Raises:
      FileExistsError: with `new`, it exists.
    """
    folder, name = os.path.split(path)
    stem = os.path.join(folder, f".{name}.")
    with _locked(stem, ".tmp", _create) as temporary, io.BufferedRandom(_Target(temporary, path), _BUFFER) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        (_link if new else os.replace)(temporary, path)


class _Target(io.FileIO):
    """A temporary file whose errors name the file that it becomes, however deep in other code they are raised."""

    def __init__(self, path: str, target: str) -> None:
        super().__init__(path, "r+")
        self._target = target

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            error.filename = self._target
            raise


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[str]:
    """Makes a temporary folder, removed when the block ends; in the folder that TMPDIR names.

    Args:
      prefix: "clipdata-", or "clipdata-COMMAND-".

    >>> with scratch("clipdata-") as folder:
    ...     os.path.isdir(folder)
    True
    """
    place = tempfile.gettempdir()
    _sweep_scratch(place)
    with _locked(os.path.join(place, prefix), "", functools.partial(os.mkdir, mode=0o700)) as folder:
        yield folder


def hold(path: str, *, alone: bool = False) -> int | None:
    """Locks an existing local file until its process ends or `release`s it, beside others that hold it, or alone.

    Returns:
      The lock; None if others hold the file and it is wanted alone, or one holds it alone, or it is gone.

    >>> _create("held")
    >>> first, second, third = hold("held"), hold("held"), hold("held", alone=True)
    >>> third is None
    True
    >>> release(first), release(second), release(hold("held", alone=True))
    (None, None, None)
    """
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        pass  # no locks here
    return lock


def release(lock: int) -> None:
    """Gives back what `hold` returned."""
    os.close(lock)


def sweep(folder: str, prefix: str = "", *, deep: bool = True) -> None:
    """Removes the temporary files of killed processes from a local folder.

    Args:
      folder: the folder; it may be missing.
      prefix: only those of files whose names begin with it.
      deep: look in the folders below it, too.
    """
    for place, inside, names in os.walk(folder):
        for name in names:
            match = _FILE.fullmatch(name) if name.startswith(f".{prefix}") else None
            if match is not None:
                with contextlib.suppress(OSError):  # gone, or another user's
                    _remove_if_left(os.path.join(place, name), match[1], os.O_RDWR)
        if not deep:
            inside.clear()


@functools.cache
def _sweep_scratch(place: str) -> None:
    """Removes the scratch folders of killed processes; once in a process."""
    with contextlib.suppress(OSError):  # another user's place
        for entry in os.scandir(place):
            match = _FOLDER.fullmatch(entry.name)
            if match and match[1] == _kernel() and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):  # gone, or another user's
                    _remove_if_left(entry.path, match[1], os.O_RDONLY)


@functools.cache
def _kernel() -> str:
    """An id of the running kernel, 8 hex digits; without /proc, of the process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        boot = uuid.uuid4().bytes
    return hashlib.sha256(boot).hexdigest()[:8]


def _create(path: str) -> None:
    open(path, "x").close()


@contextlib.contextmanager
def _locked(stem: str, suffix: str, create: Callable[[str], object]) -> Iterator[str]:
    """Creates a file or folder and holds its lock until the block ends, when it is removed if it still exists."""
    while True:
        # A process id in its place wouldn't do: containers that share a volume may share it too.
        path = f"{stem}{_kernel()}-{uuid.uuid4().hex}{suffix}"
        stopping.temporary_files.add(path)
        try:
            create(path)
            if (lock := _lock(path)) is not None:
                try:
                    yield path
                    return
                finally:
                    os.close(lock)
        finally:
            stopping.remove(path)
            stopping.temporary_files.discard(path)


def _lock(path: str) -> int | None:
    """Locks a new file or folder; None if another process or thread removed it as one left behind."""
    try:
        lock = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # some file systems have no locks
        fcntl.flock(lock, fcntl.LOCK_EX)
    if os.path.exists(path):
        return lock
    os.close(lock)
    return None


def _remove_if_left(path: str, kernel: str, mode: int) -> None:
    """Removes a temporary file or folder if its process has died."""
    lock = os.open(path, mode | os.O_NOFOLLOW)
    try:
        trusted = kernel == _kernel()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # its process lives
        except OSError:
            trusted = False  # no locks here
        silent = mode == os.O_RDWR and time.time() - os.fstat(lock).st_mtime > _SILENT_SECONDS
        if trusted or silent:
            stopping.remove(path)
    finally:
        os.close(lock)


def _link(temporary: str, path: str) -> None:
    """Gives a file a second name, which only one of several processes can."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if os.path.exists(path):
            raise FileExistsError(path) from error
        os.replace(temporary, path)
