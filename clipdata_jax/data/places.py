"""What lies at a path, on this machine or in a store, as fsspec tells it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from clipdata_jax.data import remote, remote_files
from clipdata_jax.errors import InputError


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
        if copy := remote_files.kept(path):
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
def remembering() -> Iterator[None]:
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


def remembered(fs: Any, inner: str) -> dict[str, Any] | None:
    """What a store said of a file while `remembering`; None where it wasn't asked, or there is none."""
    return None if (seen := _seen) is None else seen.get(_key(fs, inner))


def forget(fs: Any, inner: str) -> None:
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
        raise InputError(f"{name}: is a link to nothing, or no file at all; mend or remove it")
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


def stamp(path: str) -> str:
    """What tells cheaply that a file may have changed: its size and the time (or tag) of its last change.

    Raises:
      InputError: there is no such file.
    """
    return remote.stamp(_found(path))


def _found(path: str) -> dict[str, Any]:
    there = info(path)
    if there is None:
        raise InputError(f"{path}: no such file; check the path")
    return there


def stamps(folder: str) -> dict[str, str]:
    """The paths of the files directly in a folder -> their stamps: what `stamp` says of each, by one listing.

    Nothing of a web server's, whose listings tell only names.
    """
    return {
        f"{folder.rstrip('/')}/{os.path.basename(entry['name'])}": remote.stamp(entry)
        for entry in entries(folder)
        if entry["type"] == "file" and entry["size"] is not None
    }
