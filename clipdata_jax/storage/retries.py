"""Requests to object stores and web servers, with time limits and bounded retries of transient failures.

fsspec's file systems differ in what they retry, and in the errors they raise. Here every request has a time limit, and
a failed one is retried up to six times with exponential backoff.
"""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.storage.location import Location

T = TypeVar("T")
ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds; each wait is drawn between half of it and all
_SECONDS, _BYTES_A_SECOND = 60, 1 << 18  # the limit of a small request, and the slowest rate of a large one
_STATUS = ("status", "status_code", "code")
_TRANSIENT_STATUS = {408, 409, 425, 429}  # 409: two conditional puts of one file at a time
_UNSUPPORTED = (400, 501)
_TRANSIENT_ERRNO = {errno.EIO, errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}
# Names of classes, so that no store's package has to be installed.
_TRANSIENT = {
    "ClientConnectionError", "ClientPayloadError", "ConnectionError", "FlexibleChecksumError", "HTTPClientError",
    "IncompleteRead", "IncompleteReadError", "ResponseParserError", "TimeoutError", "TransportError",
}  # fmt: skip
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "TokenRetrievalError"}
_REFUSED = {"BotoCoreError", "ClientError"}


class ShortReadError(ConnectionError):
    """A response of another length than requested."""


def time_limit(size: int) -> float:
    """Seconds after which a request for `size` bytes is abandoned."""
    return _SECONDS + size / _BYTES_A_SECOND


def call(
    at: Location, function: Callable[..., T], *arguments: Any, seconds: float | None = _SECONDS, **options: Any
) -> T:
    """Calls a method of a file system, with a time limit and retries of transient failures.

    Args:
      at: the file, and its file system.
      function: the method.
      arguments: its arguments.
      seconds: the limit of an attempt, passed on where the file system takes one; None where `function` sets its own.
      options: keyword arguments.

    Raises:
      FileNotFoundError: the store has no such file.
      FileExistsError: it has one, and the request was to create it.
      InputError: credentials are missing, or don't permit the request.
      StorageError: the last attempt failed too, or a failure isn't transient.
    """
    if seconds is not None and getattr(at.fs, "async_impl", False):
        options["timeout"] = seconds
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return function(*arguments, **options)
        except Exception as error:
            if not _is_transient(error):
                if (translated := _translated(at.path, error)) is error:
                    raise
                raise translated from error
            if attempt == ATTEMPTS:
                raise StorageError(
                    f"{at}: the store failed {ATTEMPTS} times, last with: {_describe(error)}; what was finished is"
                    " kept: run the same command again when the store responds"
                ) from error
        time.sleep(wait * random.uniform(0.5, 1))
        wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("not reached")


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, None if it isn't known."""
    return next((status for one in _chain(error) if (status := _own_status(one))), None)


def is_unsupported(error: StorageError) -> bool:
    """Whether a store may have refused a request because it lacks the feature."""
    return status_of(error) in _UNSUPPORTED


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: file systems wrap what a server responded."""
    seen: BaseException | None = error
    for _ in range(5):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__


def _own_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return None if status is None else int(status)
    for name in _STATUS:
        with contextlib.suppress(TypeError, ValueError):
            if 100 <= int(getattr(error, name, 0)) < 600:
                return int(getattr(error, name))
    return None


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _is_transient(error: Exception) -> bool:
    for one in _chain(error):
        if isinstance(one, (InputError, StorageError)):
            return False
        if _names(one) & _TRANSIENT:
            return True
        if (status := _own_status(one)) is not None and status >= 400:
            return (status >= 500 and status != 501) or status in _TRANSIENT_STATUS
    return getattr(error, "errno", None) in _TRANSIENT_ERRNO


def _translated(path: str, error: Exception) -> Exception:
    """The error to raise for a failure that isn't transient."""
    status, names = status_of(error), {name for one in _chain(error) for name in _names(one)}
    if isinstance(error, (InputError, StorageError)):
        return error
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        return FileNotFoundError(path)
    if status == 412 or isinstance(error, FileExistsError):
        return FileExistsError(path)
    reason = _describe(error)
    if names & _NO_CREDENTIALS:
        return InputError(f"{path}: no credentials for this store ({reason}); set them, see the documentation")
    if status in (401, 403) or isinstance(error, PermissionError):
        return InputError(f"{path}: the store denied access ({reason}); check the credentials")
    if isinstance(error, (OSError, NotImplementedError)) or status is not None or names & _REFUSED:
        return StorageError(f"{path}: the store refused the request ({reason}); check the address")
    return error


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 200 else f"{text[:197]}..."
    return text if (status := status_of(error)) is None else f"HTTP {status}: {text}"
