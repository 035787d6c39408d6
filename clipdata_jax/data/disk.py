"""What this machine's own file system needs: files written aside that outlast a power cut, errors in plain words."""

from __future__ import annotations

import contextlib
import errno
import os
import re

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
