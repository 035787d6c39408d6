"""Metadata and listings of files in object stores and web servers, with a cache."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from clipdata_jax.storage.location import Location
from clipdata_jax.storage.retries import call

_LISTING_SECONDS = 600
_VERSIONS = ("ETag", "etag", "mtime", "updated", "LastModified", "Last-Modified")


def fetch_info(at: Location) -> dict[str, Any] | None:
    """Asks a store for the metadata of a file or folder; None if it has none.

    Raises:
      StorageError: the store fails.
    """
    try:
        return dict(call(at, at.fs.info, at.inner))
    except FileNotFoundError:
        return None


def info(at: Location) -> dict[str, Any] | None:
    """`fetch_info`, from the cache within a `stat_cache` block."""
    if (cache := _cache) is None:  # another thread may end its block here
        return fetch_info(at)
    if (key := _key(at, at.inner)) not in cache:
        cache[key] = fetch_info(at)
    return cache.get(key)


def entries(at: Location) -> list[dict[str, Any]]:
    """The metadata of the files and folders directly in a folder; [] if there is no folder."""
    try:
        listed = call(at, at.fs.ls, at.inner, detail=True, seconds=_LISTING_SECONDS)
    except FileNotFoundError:
        return []
    # A store may list the folder itself, an object without bytes.
    found = [entry for entry in listed if entry["name"].rstrip("/") != at.inner.rstrip("/")]
    if (cache := _cache) is not None:
        # Web servers list no sizes.
        cache.update({_key(at, entry["name"]): entry for entry in found if entry.get("size") is not None})
    return found


def find(at: Location) -> dict[str, dict[str, Any]]:
    """The metadata of all files below a folder, by the names that the store has for them."""
    try:
        return dict(call(at, at.fs.find, at.inner, detail=True, seconds=_LISTING_SECONDS))
    except FileNotFoundError:
        return {}


def fingerprint(info: dict[str, Any]) -> str:
    """The size of a file, and the tag or the time of its last change."""
    return f"{info['size']} {next((info[name] for name in _VERSIONS if info.get(name)), '')}"


_cache: dict[str, dict[str, Any] | None] | None = None
_blocks, _lock = 0, threading.Lock()


@contextlib.contextmanager
def stat_cache() -> Iterator[None]:
    """Caches the metadata of a store's files until the block ends: one request a file, none for those listed.

    Blocks of several threads, which may end in any order, share the cache until the last one ends.

    >>> with stat_cache():
    ...     pass
    """
    global _cache, _blocks
    with _lock:
        _blocks += 1
        _cache = {} if _cache is None else _cache
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            _cache = _cache if _blocks else None


def cached_info(at: Location) -> dict[str, Any] | None:
    """The cached metadata of a file; None if there are none."""
    return None if (cache := _cache) is None else cache.get(_key(at, at.inner))


def invalidate(at: Location) -> None:
    """Drops a file from the cache, before it is written or removed."""
    if (cache := _cache) is not None:
        cache.pop(_key(at, at.inner), None)


def _key(at: Location, inner: str) -> str:
    return f"{type(at.fs).__name__}:{inner}"
