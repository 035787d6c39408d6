"""Local files through fsspec: metadata, listings, errors in a sentence, and durable names."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.storage.location import Location

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Of a mount whose server or disk went away.
_GONE = {
    getattr(errno, name) for name in ("ESTALE", "ENOTCONN", "EHOSTDOWN", "ENODEV", "ENXIO") if hasattr(errno, name)
}


def info(at: Location) -> dict[str, Any] | None:
    """The metadata of a file or folder; None if it doesn't exist."""
    return dict(at.fs.info(at.inner)) if at.fs.exists(at.inner) else None


def entries(at: Location) -> list[dict[str, Any]]:
    """The metadata of the files and folders directly in a folder; [] if there is no folder."""
    return list(at.fs.ls(at.inner, detail=True)) if at.fs.isdir(at.inner) else []


def find(at: Location) -> dict[str, os.DirEntry[str]]:
    """All files below a folder, by path; sorted.

    Links are followed, but every folder is searched once, so that links may form a loop. Unlike `fs.find`, it raises
    where a folder can't be listed: finished work would be done again. It also takes a tenth of the time.
    """
    found: dict[str, os.DirEntry[str]] = {}
    folders, links, searched = [at.inner], list[str](), set[str]()
    while folders or links:
        # A folder counts under its own name, not a link's, where both are below the same one.
        folder = folders.pop() if folders else links.pop(0)
        if (real := os.path.realpath(folder)) in searched:
            continue
        searched.add(real)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed meanwhile, or never there
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(entry.path)
                else:
                    found[entry.path] = entry
    return {path: found[path] for path in sorted(found)}


def entry_size(entry: os.DirEntry[str]) -> int:
    """The size of a listed file in bytes; 0 of a broken link, which is an error only where it is read."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def explained_reads(path: str) -> Iterator[None]:
    """Turns the errors of reading a file into a sentence.

    Raises:
      InputError: no such file, or it can't be read.
      StorageError: its mount is gone, or temporary files fill the disk.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder, expected a file") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except OSError as error:
        if not (reason := _reason(error)):
            raise
        if error.filename and error.errno in _FULL:  # an output that is written meanwhile
            raise
        if error.errno is None or error.errno in _FULL:  # reading fills no disk
            raise StorageError(
                f"no space left for temporary files in {tempfile.gettempdir()}, while {path} was read; set TMPDIR to"
                " a folder on a larger disk"
            ) from error
        kind = StorageError if error.errno in _GONE else InputError
        raise kind(f"{path}: can't be read ({reason}); check the path and its disk") from error


@contextlib.contextmanager
def explained_writes(at: Location, *, new: bool) -> Iterator[None]:
    """Turns the errors of writing a file into a sentence.

    Raises:
      FileExistsError: it exists, and was to be `new`.
      InputError: it can't be written.
    """
    try:
        yield
    except OSError as error:
        if not (reason := _reason(error)) or (new and isinstance(error, FileExistsError)):
            raise
        where = "" if at.is_local else f" through a temporary file in {tempfile.gettempdir()}"
        kept = "; what it held before is kept" if at.is_local and os.path.isfile(at.inner) else ""
        raise InputError(f"{at}: can't be written{where} ({reason}){kept}") from error


def _reason(error: OSError) -> str:
    """Why a system call failed, in lower case; "" for another package's complaint about a file's content."""
    if error.errno is None:  # as NumPy reports a full disk
        return "no space left on device" if re.fullmatch(r"\d+ requested and \d+ written", str(error)) else ""
    return (error.strerror or str(error)).lower()


def reserve(path: str) -> None:
    """Allocates the disk space of a sparse file: on a full disk, writing to its memory map would kill the process.

    Raises:
      OSError: the disk has too little space.

    >>> with open("mapped.bin", "wb") as file:
    ...     _ = file.truncate(1 << 12)
    >>> reserve("mapped.bin")
    """
    if hasattr(os, "posix_fallocate") and (size := os.path.getsize(path)):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def make_folder(folder: str) -> None:
    """Makes a folder if it doesn't exist, and its name durable."""
    if not os.path.isdir(folder):
        os.makedirs(folder, exist_ok=True)
        sync_folder(os.path.dirname(folder))


def sync_folder(folder: str) -> None:
    """Makes the names in a folder durable; some network file systems and other systems have no such call."""
    with contextlib.suppress(PermissionError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
                raise
        finally:
            os.close(number)
