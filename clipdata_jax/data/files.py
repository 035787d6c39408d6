"""Paths of every kind (local, gs://, s3://) through fsspec: listing, reading, whole-or-nothing writing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from clipdata_jax.data import asides
from clipdata_jax.errors import InputError

_BRACES = re.compile(r"\{([^{}]*)\}")


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path, and the path in that filesystem's own form."""
    if "\0" in path:
        raise InputError(f"{path!r}: is no path, for the zero byte in it")
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"{path}: this kind of path can't be opened here ({error})") from error


def is_local(path: str) -> bool:
    """Whether a path is on this machine's own file system."""
    return isinstance(filesystem(path)[0], LocalFileSystem)


def join(folder: str, *names: str) -> str:
    """A path below a folder; forward slashes, on object stores too."""
    return "/".join([folder.rstrip("/") if folder != "/" else "", *names])


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    fs, inner = filesystem(path)
    return bool(fs.exists(inner))


def is_folder(path: str) -> bool:
    """Whether a path is a folder (on an object store: a prefix that holds something)."""
    fs, inner = filesystem(path)
    return bool(fs.isdir(inner))


def size(path: str) -> int:
    """The size of a file in bytes.

    Raises:
      InputError: there is no such file.
    """
    fs, inner = filesystem(path)
    try:
        return int(fs.size(inner))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error


def list_names(folder: str) -> list[str]:
    """The names of all files and folders directly in a folder, sorted; [] if there is no folder."""
    fs, inner = filesystem(folder)
    if not fs.isdir(inner):
        return []
    return sorted(os.path.basename(name.rstrip("/")) for name in fs.ls(inner, detail=False))


def list_folder(folder: str, suffix: str = "") -> list[str]:
    """The files directly in a folder whose names end in a suffix, sorted by name; [] if there is no folder.

    A link is what it leads to.

    Raises:
      InputError: a link leads nowhere.
    """
    fs, inner = filesystem(folder)
    if not fs.isdir(inner):
        return []
    entries = [entry for entry in fs.ls(inner, detail=True) if entry["name"].endswith(suffix)]
    return sorted(join(folder, os.path.basename(entry["name"])) for entry in entries if _is_file(fs, entry))


def _is_file(fs: Any, entry: dict[str, Any]) -> bool:
    if entry["type"] in ("file", "directory"):
        return bool(entry["type"] == "file")
    # fsspec has other types for links, and they differ between its versions.
    name = entry["name"]
    if fs.isdir(name):
        return False
    if not fs.isfile(name):
        raise InputError(f"{name}: is a link to nothing, or no file at all; mend or remove it")
    return True


def list_tree(folder: str) -> list[str]:
    """All files in a folder and the folders in it, sorted by name."""
    fs, inner = filesystem(folder)
    return [join(folder, name[len(inner) :].lstrip("/")) for name in sorted(fs.find(inner))]


def sizes(folder: str) -> dict[str, int]:
    """The files in a folder and the folders in it -> their sizes in bytes; names are relative to the folder."""
    fs, inner = filesystem(folder)
    found = fs.find(inner, detail=True)
    return {name[len(inner) :].lstrip("/"): int(info["size"]) for name, info in found.items()}


def expand(patterns: str | tuple[str, ...]) -> list[str]:
    """The files that patterns mean: `{000..099}` and `{a,b}` braces, `*` globs, folders stay folders.

    Brace ranges keep the order they are written in and must all exist; globs are sorted.

    Raises:
      InputError: a pattern or a name matches nothing.
    """
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in _expand_braces(pattern):
            if not any(char in name for char in "*?["):
                if not exists(name):
                    raise InputError(f"{name}: no such file or folder (from {pattern!r}); check the path")
                found.append(name)
                continue
            fs, inner = filesystem(name)
            matches = sorted(fs.glob(inner))
            if not matches:
                raise InputError(
                    f"{name}: the pattern matches no file; check the path, and quote it in the shell"
                )
            local = isinstance(fs, LocalFileSystem)
            found += [match if local else fs.unstrip_protocol(match) for match in matches]
    return found


def _expand_braces(pattern: str) -> list[str]:
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
    return [name for choice in choices for name in _expand_braces(start + choice + end)]


@contextlib.contextmanager
def open_read(path: str) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes.

    Raises:
      InputError: the file isn't there, is a folder, may not be read, or its disk fails.
    """
    fs, inner = filesystem(path)
    try:
        with fs.open(inner, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder where a file is expected") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except OSError as error:
        if error.errno is None:  # other packages say so that they can't make sense of a file
            raise
        raise InputError(f"{path}: can't be read ({_reason(error)}); check the path and its disk") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def open_write(path: str, *, new: bool = False) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears whole, when the block ends well, or not at all.

    Locally: written aside, flushed to the disk, renamed. On an object store: one put at close.

    Args:
      path: the file, which takes the place of the one before it.
      new: whether there must be none before it (locally; see `write_new`).

    Raises:
      FileExistsError: there is one, and it was to be new.
      InputError: the folder can't be made or written, or the disk is full.
    """
    fs, inner = filesystem(path)
    try:
        if not isinstance(fs, LocalFileSystem):
            with fs.transaction, fs.open(inner, "wb") as file:
                yield file
            return
        os.makedirs(os.path.dirname(inner), exist_ok=True)
        with asides.written(inner, new=new) as file:
            yield file
    except OSError as error:
        if error.errno is None or (new and isinstance(error, FileExistsError)):
            raise
        raise InputError(
            f"{path}: can't be written ({_reason(error)}); what was finished before is kept"
        ) from error


def write_bytes(path: str, data: bytes) -> None:
    """Writes a small file whole or not at all."""
    with open_write(path) as file:
        file.write(data)


def write_new(path: str, data: bytes) -> bool:
    """Writes a small file whole if there is none; returns whether it did. Of several processes at once one does.

    On an object store, which has no such thing in common with others, that is only nearly so.

    Raises:
      InputError: as `open_write`.
    """
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
    fs.rm(inner, recursive=True)


def read_bytes(path: str) -> bytes:
    """Reads a small file whole."""
    with open_read(path) as file:
        return file.read()


def digest(path: str) -> str:
    """`sha256:` and the hex digest of a file's bytes, read in pieces of 1 MiB."""
    total = hashlib.sha256()
    with open_read(path) as file:
        while piece := file.read(1 << 20):
            total.update(piece)
    return f"sha256:{total.hexdigest()}"
