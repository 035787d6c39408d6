"""Paths and URLs, each resolved to its fsspec file system once."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from typing import Any, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem

from clipdata_jax.errors import InputError, install_extra

CONNECTIONS = 32
"""Requests made at a time, where many are small."""
_SCHEME = re.compile(r"\w[\w+.-]+:")  # tfds:mnist/train
_WEB = ("http", "https")
_S3 = ("s3", "s3a")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}


def join(folder: str, *names: str) -> str:
    """Returns the path of a name below a folder; with forward slashes, on object stores too.

    >>> join("s3://bucket/pool/", "uids", "0.npy")
    's3://bucket/pool/uids/0.npy'
    """
    return "/".join([folder.rstrip("/") if folder != "/" else "", *names])


def absolute(path: str) -> str:
    """Returns a local path from the root, without links resolved; a URL or a name such as tfds:mnist/train as it is.

    >>> absolute("/data/a/../pool/"), absolute("s3://bucket/pool/")
    ('/data/pool', 's3://bucket/pool')
    """
    if "://" in path or "::" in path or (_SCHEME.match(path) and not os.path.exists(path)):
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path))


def store_of(path: str) -> str:
    """Returns the bucket or server of an address; "" for a path of this machine.

    >>> store_of("s3://bucket/pool/0.tar"), store_of("pool/0.tar")
    ('s3://bucket/', '')
    """
    if "://" not in path and "::" not in path:
        return ""
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/"


def parent(path: str) -> str:
    """Returns the folder that an absolute path or a URL lies in.

    >>> parent("/data/pool"), parent("s3://bucket/a/pool")
    ('/data', 's3://bucket/a')
    """
    return resolve(path, "..")


def relative(path: str, folder: str) -> str | None:
    """Returns the way from a folder to a path, both absolute; None if they are in different stores, or it is no path.

    >>> relative("/data/pool/0.tar", "/data/out"), relative("s3://bucket/pool", "/data")
    ('../pool/0.tar', None)
    """
    store = store_of(path)
    if store != store_of(folder) or not (store or path.startswith("/")):
        return None
    if path.startswith(f"{folder}/"):
        return path[len(folder) + 1 :]
    return posixpath.relpath(f"/{path[len(store) :]}", f"/{folder[len(store) :]}")


def resolve(folder: str, relative: str) -> str:
    """Returns the path at the end of a way from a folder; in a store never above the bucket.

    >>> resolve("/data/out", "../pool/0.tar"), resolve("s3://bucket/out", "../../../pool")
    ('/data/pool/0.tar', 's3://bucket/pool')
    """
    store = store_of(folder)
    inner = posixpath.normpath(posixpath.join(f"/{folder[len(store) :]}", relative))
    return f"{store}{inner.lstrip('/')}".rstrip("/") if store else f"/{inner.lstrip('/')}"


@dataclasses.dataclass(frozen=True)
class Location:
    """A path with its file system.

    Attributes:
      path: the path as given, which messages name.
      fs: its fsspec file system.
      inner: the path in that file system's own form; absolute where it is local.

    Raises:
      InputError: no file system takes such a path, or the package for it is missing.
    """

    path: str
    fs: Any = dataclasses.field(default=None, repr=False, compare=False)
    inner: str = dataclasses.field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.fs is None:
            fs, inner = _resolve(self.path)
            object.__setattr__(self, "fs", fs)
            object.__setattr__(self, "inner", inner)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.path,)  # another process has connections of its own

    def __str__(self) -> str:
        return self.path

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's file system."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which can only be read."""
        return not isinstance(self.fs.protocol, str) and set(_WEB) <= set(self.fs.protocol)

    def join(self, *names: str) -> str:
        """Returns the path of a name below this one."""
        return join(self.path, *names)

    def at(self, name: str) -> Self:
        """Returns the location of a name below this one; itself for ""."""
        return type(self)(self.join(name), self.fs, join(self.inner, name)) if name else self


def _resolve(path: str) -> tuple[Any, str]:
    if "\0" in path:
        raise InputError(f"{path!r}: not a path, since it contains a null byte")
    try:
        return _connect(path) if "://" in path or "::" in path else fsspec.core.url_to_fs(path)
    except ValueError as error:
        raise InputError(f"{path}: this kind of path can't be opened here ({error})") from error


def _connect(path: str) -> tuple[Any, str]:
    # Options of fsspec's own configuration (files, FSSPEC_* variables) override these.
    protocol = fsspec.utils.get_protocol(path)
    try:
        options = {**_options(protocol), **fsspec.config.conf.get(protocol, {})}
        fs, inner = fsspec.core.url_to_fs(path, **({} if "::" in path else options))
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        advice = install_extra(extra) if extra else "install it"
        raise InputError(f"{path}: {protocol}:// needs a package that is missing ({error}); {advice}") from error
    if protocol in _S3:
        fs.retries = 1  # `retries.call` counts the attempts
    return fs, inner


def _options(protocol: str) -> dict[str, Any]:
    options: dict[str, Any] = {"use_listings_cache": False}  # other processes write too
    if protocol in _S3:
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, "max_pool_connections": CONNECTIONS}
    if protocol in _WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
        options["client_kwargs"] = {"timeout": timeout}
        options["headers"] = {"Accept-Encoding": "identity"}  # a compressed body has another length
    return options
