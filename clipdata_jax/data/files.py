"""Paths of every kind (local, gs://, s3://) through fsspec: listing, reading, whole-or-nothing writing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from clipdata_jax.data import asides, disk, places, remote, remote_files
from clipdata_jax.data.patterns import expand as expand
from clipdata_jax.data.places import exists as exists
from clipdata_jax.data.places import filesystem as filesystem
from clipdata_jax.data.places import is_folder as is_folder
from clipdata_jax.data.places import is_local as is_local
from clipdata_jax.data.places import remembering as remembering
from clipdata_jax.data.places import size as size
from clipdata_jax.data.places import stamp as stamp
from clipdata_jax.data.places import stamps as stamps
from clipdata_jax.data.places import threads_for as threads_for
from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.runtime import stopping

_ROWS_AHEAD = 1 << 24


def join(folder: str, *names: str) -> str:
    """A path below a folder; forward slashes, on object stores too."""
    return "/".join([folder.rstrip("/") if folder != "/" else "", *names])


def parts_ahead(folder: str, rows: Sequence[int]) -> int:
    """How many of a folder's parts to read at a time: as `threads_for`, and of large parts fewer, for the memory."""
    return max(1, min(threads_for(folder), _ROWS_AHEAD // max(rows, default=1)))


def list_names(folder: str) -> list[str]:
    """The names of all files and folders directly in a folder, sorted; [] if there is no folder."""
    return sorted(os.path.basename(entry["name"].rstrip("/")) for entry in places.entries(folder))


def list_folder(folder: str, suffix: str | tuple[str, ...] = "") -> list[str]:
    """The files directly in a folder whose names end in a suffix, sorted by name; [] if there is no folder.

    A link is what it leads to.

    Raises:
      InputError: a link leads nowhere.
    """
    fs = filesystem(folder)[0]
    entries = [entry for entry in places.entries(folder) if entry["name"].endswith(suffix)]
    return sorted(
        join(folder, os.path.basename(entry["name"])) for entry in entries if places.is_file(fs, entry)
    )


def list_tree(folder: str) -> list[str]:
    """All files in a folder and the folders in it, sorted by name."""
    return [join(folder, name) for name in sorted(places.find(folder))]


def sizes(folder: str) -> dict[str, int]:
    """The files in a folder and the folders in it -> their sizes in bytes; names are relative to the folder."""
    return {name: int(info["size"] or 0) for name, info in places.find(folder).items()}


@contextlib.contextmanager
def open_read(path: str, *, at_once: bool = False) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes; of an object store's, no read is ever silently short.

    Args:
      path: the file.
      at_once: get all of a store's file by one request, if it is small: for who reads here and there in it.

    Raises:
      InputError: the file isn't there, is a folder, may not be read, or its disk fails.
      StorageError: its store or mount fails.
    """
    fs, inner = filesystem(path)
    if isinstance(fs, LocalFileSystem) and _is_endless(inner):
        raise InputError(f"{path}: is a pipe or a device, expected a file")
    copy = remote_files.kept(path)
    try:
        if copy or isinstance(fs, LocalFileSystem):
            with open(copy[0] if copy else inner, "rb") as local:
                yield local
        else:
            with remote_files.open_read(path, fs, inner, places.remembered(fs, inner), at_once) as file:
                yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder where a file is expected") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except OSError as error:
        if not disk.reason(error):
            raise
        if error.errno is None or error.errno in disk.FULL:  # nothing that is read fills a disk
            raise StorageError(
                f"no space left for temporary files in {tempfile.gettempdir()}, while {path} was read; set TMPDIR to"
                " a folder with more"
            ) from error
        kind = StorageError if error.errno in disk.GONE else InputError
        raise kind(f"{path}: can't be read ({disk.reason(error)}); check the path and its disk") from error


def _is_endless(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextlib.contextmanager
def keep(paths: Sequence[str]) -> Iterator[None]:
    """Until the block ends, all that is read of these files of object stores comes from one download of each."""
    away = {path: filesystem(path) for path in paths}
    with remote_files.keep(
        [(path, *there) for path, there in away.items() if not isinstance(there[0], LocalFileSystem)]
    ):
        yield


@contextlib.contextmanager
def open_write(path: str, *, new: bool = False) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears whole, when the block ends well, or not at all.

    Written aside and flushed to the disk first, then locally renamed, on an object store put.

    Args:
      path: the file, which takes the place of the one before it.
      new: whether there must be none before it; local files only, see `write_new`.

    Raises:
      FileExistsError: there is one, and it was to be new.
      InputError: the folder can't be made or written, or the disk is full.
      StorageError: the store fails.
    """
    with _written(path, digests=False, new=new) as (file, _):
        yield file


def write(
    path: str, content: bytes | Callable[[BinaryIO], object], *, digests: bool = True
) -> dict[str, Any]:
    """Writes a file whole or not at all.

    Args:
      path: of the file.
      content: its bytes, or a function that writes them.
      digests: whether its digest is wanted.

    Returns:
      its "bytes" and its "digest", of what was written, which isn't read again from a store.

    Raises:
      InputError: as `open_write`.
    """
    with _written(path, digests=digests) as (file, entry):
        if callable(content):
            content(file)
        else:
            file.write(content)
    return entry


@contextlib.contextmanager
def _written(path: str, *, digests: bool, new: bool = False) -> Iterator[tuple[BinaryIO, dict[str, Any]]]:
    fs, inner = filesystem(path)
    local = isinstance(fs, LocalFileSystem)
    entry: dict[str, Any] = {}
    try:
        if local:
            disk.make_folder(os.path.dirname(inner))
            with asides.written(inner, new=new) as file:
                yield file, entry
                _describe(file, entry, digests)
            disk.sync_folder(os.path.dirname(inner))
            return
        with stopping.scratch("clipdata-") as folder:
            aside = os.path.join(folder, "part")
            with open(aside, "x+b") as file:
                yield file, entry
                _describe(file, entry, digests)
            places.forget(fs, inner)
            remote_files.put(path, fs, inner, aside)
    except OSError as error:
        if not disk.reason(error) or (new and isinstance(error, FileExistsError)):
            raise
        where = "" if local else f" through a temporary file in {tempfile.gettempdir()}"
        raise InputError(
            f"{path}: can't be written{where} ({disk.reason(error)}); what was finished before is kept"
        ) from error


def _describe(file: BinaryIO, entry: dict[str, Any], digests: bool) -> None:
    file.flush()
    entry["bytes"] = file.seek(0, os.SEEK_END)
    if digests:
        entry["digest"] = _digest(file)


def write_bytes(path: str, data: bytes) -> None:
    """Writes a small file whole or not at all."""
    write(path, data, digests=False)


def write_new(path: str, data: bytes) -> bool:
    """Writes a small file whole if there is none; whether it did. Of several processes at once one, see `put_new`.

    Raises:
      InputError: as `open_write`.
    """
    if not is_local(path):
        places.forget(*filesystem(path))
        return remote_files.put_new(path, *filesystem(path), data)
    if exists(path):
        return False
    try:
        with open_write(path, new=True) as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def sweep_beside(path: str) -> None:
    """Removes what killed processes left of a file that they were writing, and of those of its name before the dot."""
    if is_local(path):
        folder, name = os.path.split(filesystem(path)[1])
        asides.sweep(folder, name.partition(".")[0], deep=False)


def sweep(folder: str) -> None:
    """Removes what killed processes left in a folder and the folders in it."""
    if is_local(folder):
        asides.sweep(filesystem(folder)[1])


def remove(path: str) -> None:
    """Removes a file, or a folder and all in it."""
    fs, inner = filesystem(path)
    places.forget(fs, inner)
    if isinstance(fs, LocalFileSystem):
        fs.rm(inner, recursive=True)
    else:
        remote.call(path, fs.rm, inner, recursive=True, fs=fs)


def read_bytes(path: str) -> bytes:
    """Reads a small file whole."""
    with open_read(path) as file:
        return file.read()


def size_and_digest(path: str) -> dict[str, Any]:
    """A file's "bytes" and "digest", of one reading."""
    entry: dict[str, Any] = {}
    with open_read(path) as file:
        _describe(file, entry, digests=True)
    return entry


def digest(path: str) -> str:
    """`sha256:` and the hex digest of a file's bytes, read in pieces of 1 MiB."""
    with open_read(path) as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    total = hashlib.sha256()
    file.seek(0)
    while piece := file.read(1 << 20):
        total.update(piece)
    return f"sha256:{total.hexdigest()}"
