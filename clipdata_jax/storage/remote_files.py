"""Files of object stores and web servers: no short reads, no mix of two versions, and atomic puts.

fsspec passes on whatever a server sends. Here the length of every range is checked, a short one is requested again as a
whole, and a file that changes while it is read is an error.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import fsspec

from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.storage import temporary
from clipdata_jax.storage.location import Location
from clipdata_jax.storage.remote import cached_info, fetch_info, fingerprint
from clipdata_jax.storage.retries import ShortReadError, call, is_unsupported, status_of, time_limit

BLOCK = 8 << 20
"""Bytes of a buffered read."""
_LARGEST = 32 << 20  # of one request
_WHOLE = 64 << 20  # a put of more is made in parts
_RANGE_NOT_SATISFIABLE = 416


class RemoteFile(io.RawIOBase):
    """A file of a store; every read is one request, repeated until all its bytes have come.

    Args:
      at: the file.
      info: its metadata, used instead of a request where every response shows whether the file is still the same.

    Attributes:
      info: its metadata.

    Raises:
      FileNotFoundError: no such file.
      IsADirectoryError: it is a folder.
      StorageError: the store fails, or doesn't report a size, so that a truncated response couldn't be detected.
    """

    def __init__(self, at: Location, info: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._at = at
        self._whole: BinaryIO | None = None  # `close` needs it, whatever fails below
        self._unpinned = False
        if info is None or not hasattr(at.fs, "call_s3"):
            info = fetch_info(at)
        if info is None:
            raise FileNotFoundError(at.path)
        if info["type"] == "directory":
            raise IsADirectoryError(at.path)
        if info["size"] is None:
            raise StorageError(f"{at}: the server doesn't report its size; download it first")
        self.info, self._size, self._position = info, int(info["size"]), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"{self._at}: position {position} lies before the start")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position, _LARGEST))
        if wanted:
            buffer[:wanted] = self._fetch(self._position, self._position + wanted)
            self._position += wanted
        return wanted

    def readall(self) -> bytes:
        # The inherited one asks for 8 KiB at a time.
        return b"".join(iter(lambda: self.read(_LARGEST), b""))

    def _fetch(self, start: int, end: int) -> bytes:
        if self._whole is None:
            limit = time_limit(end - start)
            found = call(self._at, self._range, start, end, limit, seconds=None)
            if found is not None:
                return found
            self._whole = self._download()
        self._whole.seek(start)
        return self._whole.read(end - start)

    def _range(self, start: int, end: int, seconds: float) -> bytes | None:
        """Requests some bytes; None if the server supports no ranges."""
        fs = self._at.fs
        if self._at.is_web:
            found = self._web_range(start, end, seconds)
            if found is None:
                return None
        elif hasattr(fs, "call_s3"):
            found = self._s3_range(start, end, seconds)
        else:
            timed = {"timeout": seconds} if getattr(fs, "async_impl", False) else {}
            found = fs.cat_file(self._at.inner, start=start, end=end, **timed)
            self._unpinned = True
        if len(found) != end - start:
            raise ShortReadError(f"received {len(found):,} of {end - start:,} bytes")
        return bytes(found)

    def _s3_range(self, start: int, end: int, seconds: float) -> bytes:
        fs = self._at.fs
        bucket, key, _ = fs.split_path(self._at.inner)
        span = f"bytes={start}-{end - 1}"
        try:
            response = fs.call_s3("get_object", Bucket=bucket, Key=key, Range=span, timeout=seconds)
        except Exception as error:  # its class depends on the version of s3fs; `call` handles the others
            if status_of(error) == _RANGE_NOT_SATISFIABLE:
                raise self._changed() from error
            raise
        try:
            # Not every such store supports conditional requests.
            if _tag(response) != _tag(self.info):
                raise self._changed()
            return bytes(fsspec.asyn.sync(fs.loop, response["Body"].read, timeout=seconds))
        finally:
            response["Body"].close()

    def _web_range(self, start: int, end: int, seconds: float) -> bytes | None:
        self._unpinned = True
        with self._at.fs.open(self._at.inner, size=self._size, cache_type="none") as file:
            if not hasattr(file, "async_fetch_range"):
                return None
            try:
                return bytes(fsspec.asyn.sync(file.loop, file.async_fetch_range, start, end, timeout=seconds))
            except ValueError:
                return None

    def _download(self) -> BinaryIO:
        """Downloads the whole file, from a server without ranges."""
        handle, name = tempfile.mkstemp(prefix="clipdata-")
        os.close(handle)

        def get(**options: Any) -> None:
            self._at.fs.get_file(self._at.inner, name, **options)
            if (received := os.path.getsize(name)) != self._size:
                raise ShortReadError(f"received {received:,} of {self._size:,} bytes")

        try:
            call(self._at, get, seconds=time_limit(self._size))
            return open(name, "rb")
        finally:
            os.unlink(name)

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()
        super().close()

    def check_unchanged(self) -> None:
        """Checks that all reads were of one version of the file, where the responses didn't show it.

        Raises:
          StorageError: it was written meanwhile.
        """
        if self._unpinned:
            info = fetch_info(self._at)
            if info is None or fingerprint(info) != fingerprint(self.info):
                raise self._changed()

    def _changed(self) -> StorageError:
        return StorageError(
            f"{self._at}: was changed while it was read; run the command again when nothing writes to it"
        )


def _tag(info: dict[str, Any]) -> str:
    return str(info.get("ETag", "")).strip('"')  # some stores' listings lack the quotes


@contextlib.contextmanager
def open_read(at: Location, at_once: bool = False) -> Iterator[BinaryIO]:
    """Opens a file of a store for reading; with `at_once` a small one is read by one request."""
    with RemoteFile(at, cached_info(at)) as raw, io.BufferedReader(raw, BLOCK) as file:
        yield io.BytesIO(raw.readall()) if at_once and int(raw.info["size"]) <= BLOCK else file
        raw.check_unchanged()


def put(at: Location, local: str) -> None:
    """Uploads a local file, which appears whole or not at all.

    Raises:
      InputError: the place can't be written to.
      StorageError: the store fails.
    """
    size = os.path.getsize(local)
    limit = time_limit(size)
    with _explained(at):
        if size <= _WHOLE:
            with open(local, "rb") as file:
                data = file.read()
            call(at, at.fs.pipe_file, at.inner, data, seconds=limit)
        else:
            call(at, at.fs.put_file, local, at.inner, seconds=limit)


def put_new(at: Location, data: bytes) -> bool:
    """Uploads a small file unless one exists, and returns whether it did; of several at once one, if the store can.

    Other stores may let another process in between the check and the put. If a response is lost, all may return False.

    Raises:
      InputError: the place can't be written to.
      StorageError: the store fails.
    """
    limit = time_limit(len(data))
    with _explained(at):
        if fetch_info(at) is not None:  # the common case, and the file may be large
            return False
        if "mode" in inspect.signature(getattr(at.fs, "_pipe_file", at.fs.pipe_file)).parameters:
            try:
                call(at, at.fs.pipe_file, at.inner, data, mode="create", seconds=limit)
                return True
            except FileExistsError:
                return False
            except StorageError as error:
                if not is_unsupported(error):
                    raise
        call(at, at.fs.pipe_file, at.inner, data, seconds=limit)
        return True


@contextlib.contextmanager
def _explained(at: Location) -> Iterator[None]:
    if at.is_web:
        raise InputError(f"{at}: a web server can only be read; choose another place to write to")
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{at}: no such bucket; create it first, or check the path") from error


_copies: dict[str, tuple[str, dict[str, Any]]] = {}


def local_copy(path: str) -> tuple[str, dict[str, Any]] | None:
    """The path of a file's `downloaded` copy, and the metadata of the file; None if there is no copy."""
    return _copies.get(path)


@contextlib.contextmanager
def downloaded(paths: Sequence[str]) -> Iterator[None]:
    """Downloads files of object stores once each; until the block ends, reads of them use the copies.

    Blocks that overlap, as of two units that are parts of one file, share a copy.

    Args:
      paths: the files; local ones stay where they are, missing ones fail when they are read.

    >>> with downloaded(["local.npy"]):  # nothing to do
    ...     pass
    """
    remote = [at for at in map(Location, paths) if not at.is_local]
    if not remote:
        yield
        return
    with temporary.scratch("clipdata-") as folder:
        made = {}
        try:
            for number, at in enumerate(remote):
                local = os.path.join(folder, str(number))
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    made[at.path] = local, _linked(at.path, local) or _download(at, local)
                    _copies[at.path] = made[at.path]
            yield
        finally:
            for path, copy in made.items():
                if _copies.get(path) is copy:
                    del _copies[path]


def _download(at: Location, local: str) -> dict[str, Any]:
    with RemoteFile(at) as raw, open(local, "wb") as copy:
        while piece := raw.read(_LARGEST):
            copy.write(piece)
        raw.check_unchanged()
    return raw.info


def _linked(path: str, local: str) -> dict[str, Any] | None:
    """Links to the copy that another block has of a file, and returns the file's metadata; None if none has."""
    copy = _copies.get(path)
    if copy is None:
        return None
    try:
        os.link(copy[0], local)
    except OSError:  # that block has just ended, or the disk has no links
        return None
    return copy[1]
