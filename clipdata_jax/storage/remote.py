"""Object stores and web servers through fsspec: calls end, and are made again where a failure may pass.

fsspec's file systems differ in what they try again, and in what they call a failure. Here every call has a time limit
and a bounded number of attempts. Reading and writing files is in `remote_files`.
"""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Iterator
from typing import Any

import fsspec

from clipdata_jax.errors import InputError, StorageError

ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds; each wait is drawn between half of it and all
CONNECTIONS = 32
"""Requests at a time, where many small ones are made."""
_SECONDS, _BYTES_A_SECOND = 60, 1 << 18  # the limit of a small request, and the slowest rate of a large one
_LISTING_SECONDS = 600
_WEB = ("http", "https")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
_STATUS = ("status", "status_code", "code")
_TRANSIENT_STATUS = {408, 409, 425, 429}  # 409: two put one file at a time, under a condition
_UNKNOWN_TO_STORE = (400, 501)
_TRANSIENT_ERRNO = {errno.EIO, errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}
# By name, so that no package of a store that isn't used must be there.
_TRANSIENT = {
    "ClientConnectionError", "ClientPayloadError", "ConnectionError", "FlexibleChecksumError", "HTTPClientError",
    "IncompleteRead", "IncompleteReadError", "ResponseParserError", "TimeoutError", "TransportError",
}  # fmt: skip
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "TokenRetrievalError",
}


class Short(ConnectionError):
    """An answer of another length than was asked for."""


def limit(size: int) -> float:
    """Seconds after which a request for so many bytes is given up."""
    return _SECONDS + size / _BYTES_A_SECOND


def connect(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path that is not local, and the path in its own form.

    fsspec's own configuration (files, FSSPEC_* variables) has the last word; listings are never kept, since other
    processes write too.

    Raises:
      InputError: the package for it is missing.
    """
    protocol = fsspec.utils.get_protocol(path)
    try:
        options = {**_options(protocol), **fsspec.config.conf.get(protocol, {})}
        fs, inner = fsspec.core.url_to_fs(path, **({} if "::" in path else options))
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        advice = f"pip install 'clipdata_jax[{extra}]'" if extra else "install it"
        raise InputError(
            f"{path}: {protocol}:// needs a package that is missing ({error}); {advice}"
        ) from error
    if protocol in ("s3", "s3a"):
        fs.retries = 1  # attempts are counted here
    return fs, inner


def _options(protocol: str) -> dict[str, Any]:
    if protocol in ("s3", "s3a"):
        config = {"retries": {"total_max_attempts": 1}, "max_pool_connections": CONNECTIONS}
        return {"use_listings_cache": False, "config_kwargs": config}
    if protocol in _WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
        # A body compressed on the way would have another length than the file.
        headers = {"Accept-Encoding": "identity"}
        return {"use_listings_cache": False, "headers": headers, "client_kwargs": {"timeout": timeout}}
    return {"use_listings_cache": False}


def call(
    path: str, function: Any, *arguments: Any, fs: Any, seconds: float = _SECONDS, **options: Any
) -> Any:
    """Calls a function of a file system, again where it fails in a way that passes.

    Args:
      path: what messages call it.
      function: of the file system.
      arguments: its arguments.
      fs: the file system.
      seconds: after which an attempt is given up, where the file system can.
      options: more arguments.

    Raises:
      FileNotFoundError: the store says that there is no such thing.
      FileExistsError: it says that there is one, where there was to be none.
      InputError: it may not be had, or only with credentials.
      StorageError: the last attempt failed too, or failed in a way that doesn't pass.
    """
    if getattr(fs, "async_impl", False):
        options["timeout"] = seconds
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return function(*arguments, **options)
        except Exception as error:
            if not _passes(error):
                _refuse(path, error)
            if attempt == ATTEMPTS:
                raise StorageError(
                    f"{path}: the store failed {ATTEMPTS} times, last with: {_told(error)}; what was finished is kept:"
                    " give the same command again when the store answers"
                ) from error
        time.sleep(wait * random.uniform(0.5, 1))
        wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("not reached")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from: file systems rename what a server said."""
    seen: BaseException | None = error
    for _ in range(5):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__


def _own_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in _STATUS:
        with contextlib.suppress(TypeError, ValueError):
            if 100 <= int(getattr(error, name, 0)) < 600:
                return int(getattr(error, name))
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error came from."""
    return next((status for one in _chain(error) if (status := _own_status(one))), None)


def is_unknown(error: StorageError) -> bool:
    """Whether a store may have refused because it doesn't know what it was asked for."""
    return status_of(error) in _UNKNOWN_TO_STORE


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _passes(error: Exception) -> bool:
    """Whether a failure may pass."""
    for one in _chain(error):
        if isinstance(one, (InputError, StorageError)):
            return False
        if _names(one) & _TRANSIENT:
            return True
        if (status := _own_status(one)) is not None and status >= 400:
            return (status >= 500 and status != 501) or status in _TRANSIENT_STATUS
    return getattr(error, "errno", None) in _TRANSIENT_ERRNO


def _refuse(path: str, error: Exception) -> None:
    """Raises what a failure that doesn't pass means."""
    status, names = status_of(error), {name for one in _chain(error) for name in _names(one)}
    if isinstance(error, (InputError, StorageError)):
        raise error
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        raise FileNotFoundError(path) from error
    if status == 412 or isinstance(error, FileExistsError):
        raise FileExistsError(path) from error
    if names & _NO_CREDENTIALS:
        raise InputError(
            f"{path}: no credentials for this store ({_told(error)}); set them, see the README"
        ) from error
    if status in (401, 403) or isinstance(error, PermissionError):
        raise InputError(
            f"{path}: the store gives no permission ({_told(error)}); check the credentials"
        ) from error
    if (
        isinstance(error, (OSError, NotImplementedError))
        or status is not None
        or names & {"BotoCoreError", "ClientError"}
    ):
        raise StorageError(f"{path}: the store refuses ({_told(error)}); check the address") from error
    raise error


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 200 else f"{text[:197]}..."
    return text if (status := status_of(error)) is None else f"HTTP {status}: {text}"


def look(path: str, fs: Any, inner: str) -> dict[str, Any] | None:
    """What a store says of a file or folder; None if there is none.

    Raises:
      StorageError: the store fails.
    """
    try:
        return dict(call(path, fs.info, inner, fs=fs))
    except FileNotFoundError:
        return None


def is_web(fs: Any) -> bool:
    """Whether a file system is a web server, which can only be read."""
    return not isinstance(fs.protocol, str) and set(_WEB) <= set(fs.protocol)


def entries(path: str, fs: Any, inner: str) -> list[dict[str, Any]]:
    """What lies directly in a folder; nothing if there is no folder."""
    try:
        found = call(path, fs.ls, inner, detail=True, fs=fs, seconds=_LISTING_SECONDS)
    except FileNotFoundError:
        return []
    # A store may list the folder itself, an object without bytes.
    return [entry for entry in found if entry["name"].rstrip("/") != inner.rstrip("/")]


def find(path: str, fs: Any, inner: str) -> dict[str, dict[str, Any]]:
    """All files in a folder and the folders in it."""
    try:
        return dict(call(path, fs.find, inner, detail=True, fs=fs, seconds=_LISTING_SECONDS))
    except FileNotFoundError:
        return {}


def fingerprint(info: dict[str, Any]) -> str:
    """What tells that a file is another: its size, and its tag or the time of its last change."""
    names = ("ETag", "etag", "mtime", "updated", "LastModified", "Last-Modified")
    return f"{info['size']} {next((info[name] for name in names if info.get(name)), '')}"
