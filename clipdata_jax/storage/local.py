"""Files that are written aside, under another name in the same folder, until they are whole; and what a kill leaves.

A writer holds a lock on its file, which the kernel takes back when the process dies, however it dies. Locks are
only trusted within one running kernel, whose mark is part of the name: over a network they may mean nothing, so
another machine's file counts as left behind only when nothing was written to it for an hour.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from clipdata_jax.runtime import stopping

_NAME = re.compile(r"\..+\.([0-9a-f]{8})-[0-9a-f]{32}\.tmp")
_SILENT_SECONDS = 3600.0
_BUFFER = 1 << 18  # many small writes cost as much as the bytes


@contextlib.contextmanager
def written(path: str, *, new: bool = False) -> Iterator[BinaryIO]:
    """A file that takes its name when the block ends well, and otherwise goes.

    Args:
      path: the name, in a folder that is there.
      new: whether nothing may have that name yet; otherwise it takes the other's place.

    Raises:
      FileExistsError: something has, and it was to be new.
    """
    aside = _name(path)
    stopping.temporary_files.add(aside)
    try:
        with _open_locked(aside) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            (_take_new_name if new else os.replace)(aside, path)  # before the lock goes
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        stopping.temporary_files.discard(aside)


def _take_new_name(aside: str, path: str) -> None:
    try:
        os.link(aside, path)  # of several processes one succeeds
    except FileExistsError:
        raise
    except OSError as error:  # a file system where a file has one name only
        if os.path.exists(path):
            raise FileExistsError(path) from error
        os.replace(aside, path)


def _name(path: str) -> str:
    folder, name = os.path.split(path)
    # Containers that share a volume may share a process id too.
    return os.path.join(folder, f".{name}.{stopping.kernel()}-{uuid.uuid4().hex}.tmp")


def _open_locked(aside: str) -> BinaryIO:
    while True:
        file = open(aside, "x+b", _BUFFER)  # noqa: SIM115  the caller closes it
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(aside):
            return file
        file.close()  # taken for one left behind before it was locked


def sweep(folder: str, beginning: str = "", *, deep: bool = True) -> None:
    """Removes what killed processes left in a local folder.

    Args:
      folder: the folder; it may be missing.
      beginning: look only at files aside of names that begin so.
      deep: look in the folders in it, too.
    """
    for place, inside, names in os.walk(folder):
        for name in names:
            match = _NAME.fullmatch(name) if name.startswith(f".{beginning}") else None
            if match is not None:
                with contextlib.suppress(OSError):  # gone, or somebody else's
                    _remove_if_left(os.path.join(place, name), match[1] == stopping.kernel())
        if not deep:
            inside.clear()


def _remove_if_left(path: str, of_this_kernel: bool) -> None:
    with open(path, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # its writer lives
        except OSError:
            of_this_kernel = False  # no locks here, so they tell nothing
        if of_this_kernel or time.time() - os.fstat(file.fileno()).st_mtime > _SILENT_SECONDS:
            os.unlink(path)


FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# What is said of a mount whose server or disk went away.
GONE = {
    getattr(errno, name)
    for name in ("ESTALE", "ENOTCONN", "EHOSTDOWN", "ENODEV", "ENXIO")
    if hasattr(errno, name)
}


def reason(error: OSError) -> str:
    """Why a call of the system failed, in lower case; "" if another package only says that a file makes no sense."""
    if error.errno is None:  # so says NumPy where a disk is full
        return "no space left on device" if re.fullmatch(r"\d+ requested and \d+ written", str(error)) else ""
    return (error.strerror or str(error)).lower()


def reserve(path: str) -> None:
    """Takes all of the disk that a file with holes may need: else a full disk would kill who writes to its mapping.

    Raises:
      OSError: there isn't so much.
    """
    if hasattr(os, "posix_fallocate") and (size := os.path.getsize(path)):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def make_folder(folder: str) -> None:
    """Makes a folder if there is none, so that its name outlasts a power cut."""
    if not os.path.isdir(folder):
        os.makedirs(folder, exist_ok=True)
        sync_folder(os.path.dirname(folder))


def sync_folder(folder: str) -> None:
    """Makes a name in a folder outlast a power cut; some network file systems and other systems know no such thing."""
    with contextlib.suppress(PermissionError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
                raise
        finally:
            os.close(number)
