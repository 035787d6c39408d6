"""Paths of every kind (local, gs://, s3://) through fsspec: listing, reading, whole-or-nothing writing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.runtime import stopping, threads
from clipdata_jax.storage import local, remote, remote_files
from clipdata_jax.storage.local import FULL, GONE, make_folder, reason, sync_folder

_ROWS_AHEAD = 1 << 24


def join(folder: str, *names: str) -> str:
    """A path below a folder; forward slashes, on object stores too."""
    return "/".join([folder.rstrip("/") if folder != "/" else "", *names])


def parts_ahead(folder: str, rows: Sequence[int]) -> int:
    """How many of a folder's parts to read at a time: as `threads_for`, and of large parts fewer, for the memory."""
    return max(1, min(threads_for(folder), _ROWS_AHEAD // max(rows, default=1)))


def list_names(folder: str) -> list[str]:
    """The names of all files and folders directly in a folder, sorted; [] if there is no folder."""
    return sorted(os.path.basename(entry["name"].rstrip("/")) for entry in entries(folder))


def list_folder(folder: str, suffix: str | tuple[str, ...] = "") -> list[str]:
    """The files directly in a folder whose names end in a suffix, sorted by name; [] if there is no folder.

    A link is what it leads to.

    Raises:
      InputError: a link leads nowhere.
    """
    fs = filesystem(folder)[0]
    found = [entry for entry in entries(folder) if entry["name"].endswith(suffix)]
    return sorted(join(folder, os.path.basename(entry["name"])) for entry in found if is_file(fs, entry))


def list_tree(folder: str) -> list[str]:
    """All files in a folder and the folders in it, sorted by name."""
    return [join(folder, name) for name in sorted(find(folder))]


def sizes(folder: str) -> dict[str, int]:
    """The files in a folder and the folders in it -> their sizes in bytes; names are relative to the folder."""
    return {name: int(info["size"] or 0) for name, info in find(folder).items()}


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
    copy = remote_files.local_copy(path)
    try:
        if copy or isinstance(fs, LocalFileSystem):
            with open(copy[0] if copy else inner, "rb") as local:
                yield local
        else:
            with remote_files.open_read(path, fs, inner, cached_info(fs, inner), at_once) as file:
                yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder where a file is expected") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except OSError as error:
        if not reason(error):
            raise
        if error.errno is None or error.errno in FULL:  # nothing that is read fills a disk
            raise StorageError(
                f"no space left for temporary files in {tempfile.gettempdir()}, while {path} was read; set TMPDIR to"
                " a folder with more"
            ) from error
        kind = StorageError if error.errno in GONE else InputError
        raise kind(f"{path}: can't be read ({reason(error)}); check the path and its disk") from error


def _is_endless(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextlib.contextmanager
def downloaded(paths: Sequence[str]) -> Iterator[None]:
    """Until the block ends, all that is read of these files of object stores comes from one download of each."""
    away = {path: filesystem(path) for path in paths}
    with remote_files.downloaded(
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
    here = isinstance(fs, LocalFileSystem)
    entry: dict[str, Any] = {}
    try:
        if here:
            make_folder(os.path.dirname(inner))
            with local.written(inner, new=new) as file:
                yield file, entry
                _describe(file, entry, digests)
            sync_folder(os.path.dirname(inner))
            return
        with stopping.scratch("clipdata-") as folder:
            aside = os.path.join(folder, "part")
            with open(aside, "x+b") as file:
                yield file, entry
                _describe(file, entry, digests)
            invalidate(fs, inner)
            remote_files.put(path, fs, inner, aside)
    except OSError as error:
        if not reason(error) or (new and isinstance(error, FileExistsError)):
            raise
        where = "" if here else f" through a temporary file in {tempfile.gettempdir()}"
        raise InputError(
            f"{path}: can't be written{where} ({reason(error)}); what was finished before is kept"
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
        invalidate(*filesystem(path))
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
        local.sweep(folder, name.partition(".")[0], deep=False)


def sweep(folder: str) -> None:
    """Removes what killed processes left in a folder and the folders in it."""
    if is_local(folder):
        local.sweep(filesystem(folder)[1])


def remove(path: str) -> None:
    """Removes a file, or a folder and all in it."""
    fs, inner = filesystem(path)
    invalidate(fs, inner)
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


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path, and the path in that filesystem's own form."""
    if "\0" in path:
        raise InputError(f"{path!r}: is no path, for the zero byte in it")
    try:
        return remote.connect(path) if "://" in path or "::" in path else fsspec.core.url_to_fs(path)
    except ValueError as error:
        raise InputError(f"{path}: this kind of path can't be opened here ({error})") from error


def is_local(path: str) -> bool:
    """Whether a path is on this machine's own file system."""
    return isinstance(filesystem(path)[0], LocalFileSystem)


def threads_for(path: str) -> int:
    """How many small files to read at a time: a store's answers are waited for, a disk's are not."""
    return 1 if is_local(path) else remote.CONNECTIONS


def info(path: str) -> dict[str, Any] | None:
    """What is known of a file or folder; None if there is none."""
    fs, inner = filesystem(path)
    if not isinstance(fs, LocalFileSystem):
        if copy := remote_files.local_copy(path):
            return copy[1]
        if (seen := _seen) is None:  # another thread may end its block here
            return remote.look(path, fs, inner)
        if (key := _key(fs, inner)) not in seen:
            seen[key] = remote.look(path, fs, inner)
        return seen.get(key)
    return dict(fs.info(inner)) if fs.exists(inner) else None


def is_folder(path: str) -> bool:
    """Whether a path is a folder; in a store a prefix that holds something, on a web server a page of links."""
    fs, inner = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        return bool(fs.isdir(inner))
    there = info(path)
    if remote.is_web(fs):  # every address is a file there, and to list one is to read all of it
        return there is not None and there.get("mimetype") == "text/html" and bool(entries(path))
    return there is not None and there["type"] == "directory"


_seen: dict[str, dict[str, Any] | None] | None = None
_blocks, _lock = 0, threading.Lock()


@contextlib.contextmanager
def stat_cache() -> Iterator[None]:
    """Until the block ends, a store is asked once for each file, or not at all after a listing that tells of it.

    Blocks of several threads, which may end in any order, share what they remember until the last one ends.
    """
    global _seen, _blocks
    with _lock:
        _blocks += 1
        _seen = {} if _seen is None else _seen
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            _seen = _seen if _blocks else None


def cached_info(fs: Any, inner: str) -> dict[str, Any] | None:
    """What a store said of a file while `remembering`; None where it wasn't asked, or there is none."""
    return None if (seen := _seen) is None else seen.get(_key(fs, inner))


def invalidate(fs: Any, inner: str) -> None:
    """Lets go of what was remembered of a file, which is written or removed."""
    if (seen := _seen) is not None:
        seen.pop(_key(fs, inner), None)


def _key(fs: Any, inner: str) -> str:
    return f"{type(fs).__name__}:{inner}"


def entries(folder: str) -> list[dict[str, Any]]:
    """What lies directly in a folder, as fsspec tells it; [] if there is no folder."""
    fs, inner = filesystem(folder)
    if not isinstance(fs, LocalFileSystem):
        found = remote.entries(folder, fs, inner)
        if (seen := _seen) is not None:
            # A web server's listing tells no sizes.
            seen.update({_key(fs, one["name"]): one for one in found if one.get("size") is not None})
        return found
    return list(fs.ls(inner, detail=True)) if fs.isdir(inner) else []


def is_file(fs: Any, entry: dict[str, Any]) -> bool:
    """Whether an entry of a folder is a file, or a link to one.

    Raises:
      InputError: it is a link that leads nowhere.
    """
    if entry["type"] in ("file", "directory"):
        return bool(entry["type"] == "file")
    # fsspec has other types for links, and they differ between its versions.
    name = entry["name"]
    if fs.isdir(name):
        return False
    if not fs.isfile(name):
        raise InputError(f"{name}: is a link to nothing, or no file at all; fix or remove it")
    return True


def find(folder: str) -> dict[str, dict[str, Any]]:
    """All files in a folder and the folders in it: name relative to the folder -> what is known of it."""
    fs, inner = filesystem(folder)
    local = isinstance(fs, LocalFileSystem)
    found = dict(sorted(_find_here(fs, inner).items())) if local else remote.find(folder, fs, inner)
    return {name[len(inner) :].lstrip("/"): info for name, info in found.items()}


def _find_here(fs: Any, folder: str) -> dict[str, dict[str, Any]]:
    """`fs.find`, but a folder that can't be listed is no empty one: all that is done would be done again."""
    found: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError):  # gone meanwhile, or never there
        for entry in fs.ls(folder, detail=True):
            if entry["type"] == "directory":
                found |= _find_here(fs, entry["name"])
            else:
                found[entry["name"]] = entry
    return found


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    return info(path) is not None


def size(path: str) -> int:
    """The size of a file in bytes.

    Raises:
      InputError: there is no such file.
    """
    return int(_found(path)["size"] or 0)


def fingerprint(path: str) -> str:
    """What tells cheaply that a file may have changed: its size and the time (or tag) of its last change.

    A folder's covers all files in it.

    Raises:
      InputError: there is no such file.
    """
    if is_folder(path):
        return " ".join(fingerprint(one) for one in list_tree(path))
    return remote.fingerprint(_found(path))


def _found(path: str) -> dict[str, Any]:
    there = info(path)
    if there is None:
        raise InputError(f"{path}: no such file; check the path")
    return there


def fingerprints(folder: str) -> dict[str, str]:
    """Path -> `fingerprint` of each file directly in a folder, by one listing.

    Nothing of a web server's, whose listings tell only names.
    """
    return {
        f"{folder.rstrip('/')}/{os.path.basename(entry['name'])}": remote.fingerprint(entry)
        for entry in entries(folder)
        if entry["type"] == "file" and entry["size"] is not None
    }


_BRACES = re.compile(r"\{([^{}]*)\}")


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern means, in the order they are written; ranges keep their zeros.

    Raises:
      InputError: a range is empty.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        if last < first:
            raise InputError(f"{pattern}: the range {match[0]} is empty; write the smaller number first")
        choices = [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    start, end = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in expand_braces(start + choice + end)]


def expand(patterns: str | tuple[str, ...]) -> list[str]:
    """The files that patterns mean: `{000..099}` and `{a,b}` braces, `*` globs, folders stay folders.

    Brace ranges keep the order they are written in and must all exist; globs are sorted.

    Raises:
      InputError: a pattern or a name matches nothing.
    """
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = expand_braces(pattern)
        plain = [name for name in names if not any(char in name for char in "*?[")]
        there = dict(zip(plain, threads.in_order(exists, plain, threads_for(pattern)), strict=True))
        for name in names:
            if name in there and not there[name]:
                raise InputError(f"{name}: no such file or folder (from {pattern!r}); check the path")
            found += [name] if name in there else _glob(name)
    return found


def _glob(pattern: str) -> list[str]:
    fs, inner = filesystem(pattern)
    local = isinstance(fs, LocalFileSystem)
    matches = sorted(fs.glob(inner) if local else remote.call(pattern, fs.glob, inner, fs=fs))
    if not matches:
        raise InputError(f"{pattern}: the pattern matches no file; check the path, and quote it in the shell")
    return [match if local else fs.unstrip_protocol(match) for match in matches]
