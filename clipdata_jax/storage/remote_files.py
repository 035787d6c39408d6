"""Files of object stores and web servers: no read is short, no file is mixed of two, puts are whole or not at all.

fsspec hands on whatever a server sends. Here every range that is read is checked for its length and asked for again as
a whole, and a file that changes while it is read is refused.
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
from clipdata_jax.runtime import stopping
from clipdata_jax.storage.remote import Short, call, fingerprint, is_unknown, is_web, limit, look, status_of

BLOCK = 8 << 20
"""Bytes that are read ahead."""
_LARGEST = 32 << 20  # of one request
_WHOLE = 64 << 20  # what is put from memory
_NOT_SO_LONG = 416  # the status of an answer where a range lies beyond the end


class RemoteFile(io.RawIOBase):
    """A file of a store: each read one request, repeated until it has every byte that it asks for.

    Args:
      path: what messages call it.
      fs: its file system.
      inner: its name there.
      info: what the store said of it before, if every answer tells whether it still is that file.

    Attributes:
      info: what the store says of it.

    Raises:
      FileNotFoundError: there is no such file.
      IsADirectoryError: it is a folder.
      StorageError: the store fails, or tells no size, so that no cut-off copy could be told.
    """

    def __init__(self, path: str, fs: Any, inner: str, info: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._path, self._fs, self._inner = path, fs, inner
        self._whole: BinaryIO | None = None  # `close` looks at it, whatever goes wrong below
        self._unpinned = False
        if info is None or not hasattr(fs, "call_s3"):
            info = look(path, fs, inner)
        if info is None:
            raise FileNotFoundError(path)
        if info["type"] == "directory":
            raise IsADirectoryError(path)
        if info["size"] is None:
            raise StorageError(f"{path}: the server doesn't tell its size; download it first")
        self.info, self._size, self._at = info, int(info["size"]), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"{self._path}: position {at} lies before the start")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at, _LARGEST))
        if wanted:
            buffer[:wanted] = self._fetch(self._at, self._at + wanted)
            self._at += wanted
        return wanted

    def readall(self) -> bytes:
        # The inherited one asks for 8 KiB at a time.
        return b"".join(iter(lambda: self.read(_LARGEST), b""))

    def _fetch(self, start: int, end: int) -> bytes:
        if self._whole is None:
            seconds = limit(end - start)
            found = call(self._path, self._range, start, end, seconds, fs=None)
            if found is not None:
                return bytes(found)
            self._whole = self._download()
        self._whole.seek(start)
        return self._whole.read(end - start)

    def _range(self, start: int, end: int, seconds: float) -> bytes | None:
        """One request for some bytes; None if the server knows whole files only."""
        fs = self._fs
        if is_web(fs):
            found = self._web_range(start, end, seconds)
            if found is None:
                return None
        elif hasattr(fs, "call_s3"):
            found = self._s3_range(start, end, seconds)
        else:
            timed = {"timeout": seconds} if getattr(fs, "async_impl", False) else {}
            found = fs.cat_file(self._inner, start=start, end=end, **timed)
            self._unpinned = True
        if len(found) != end - start:
            raise Short(f"{len(found):,} bytes came where {end - start:,} were asked for")
        return found

    def _s3_range(self, start: int, end: int, seconds: float) -> bytes:
        bucket, key, _ = self._fs.split_path(self._inner)
        span = f"bytes={start}-{end - 1}"
        try:
            answer = self._fs.call_s3("get_object", Bucket=bucket, Key=key, Range=span, timeout=seconds)
        except (
            Exception
        ) as error:  # which s3fs raises is its version's choice; `remote.call` sorts the others
            if status_of(error) == _NOT_SO_LONG:
                raise self._changed() from error
            raise
        try:
            # The answer's own tag is looked at: not every such store knows conditions on a request.
            if _tag(answer) != _tag(self.info):
                raise self._changed()
            return bytes(fsspec.asyn.sync(self._fs.loop, answer["Body"].read, timeout=seconds))
        finally:
            answer["Body"].close()

    def _web_range(self, start: int, end: int, seconds: float) -> bytes | None:
        self._unpinned = True
        with self._fs.open(self._inner, size=self._size, cache_type="none") as file:
            if not hasattr(file, "async_fetch_range"):
                return None
            try:
                return bytes(fsspec.asyn.sync(file.loop, file.async_fetch_range, start, end, timeout=seconds))
            except ValueError:
                return None

    def _download(self) -> BinaryIO:
        """Gets the whole file into a temporary one, for a server that knows no ranges."""
        handle, name = tempfile.mkstemp(prefix="clipdata-")
        os.close(handle)

        def get(**options: Any) -> None:
            self._fs.get_file(self._inner, name, **options)
            if (found := os.path.getsize(name)) != self._size:
                raise Short(f"{found:,} bytes came where {self._size:,} were asked for")

        try:
            call(self._path, get, fs=self._fs, seconds=limit(self._size))
            return open(name, "rb")
        finally:
            os.unlink(name)

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()
        super().close()

    def check_unchanged(self) -> None:
        """Makes sure that what was read is one file, where the answers themselves didn't tell.

        Raises:
          StorageError: it was written again meanwhile.
        """
        if self._unpinned:
            info = look(self._path, self._fs, self._inner)
            if info is None or fingerprint(info) != fingerprint(self.info):
                raise self._changed()

    def _changed(self) -> StorageError:
        return StorageError(
            f"{self._path}: was changed while it was read; give the command again when nobody writes to it"
        )


def _tag(info: dict[str, Any]) -> str:
    # Not every store puts a tag in quotes in its listings, too.
    return str(info.get("ETag", "")).strip('"')


@contextlib.contextmanager
def open_read(
    path: str, fs: Any, inner: str, info: dict[str, Any] | None = None, at_once: bool = False
) -> Iterator[BinaryIO]:
    """Opens a file of a store for reading; see `RemoteFile`. With `at_once` a small one is got by one request."""
    with RemoteFile(path, fs, inner, info) as raw, io.BufferedReader(raw, BLOCK) as file:
        yield io.BytesIO(raw.readall()) if at_once and int(raw.info["size"]) <= BLOCK else file
        raw.check_unchanged()


def put(path: str, fs: Any, inner: str, local: str) -> None:
    """Puts a local file: it appears whole or not at all.

    Raises:
      InputError: nothing can be written there.
      StorageError: the store fails.
    """
    size = os.path.getsize(local)
    seconds = limit(size)
    with _refusals_told(path, fs):
        if size <= _WHOLE:
            with open(local, "rb") as file:
                data = file.read()
            call(path, fs.pipe_file, inner, data, fs=fs, seconds=seconds)
        else:
            call(path, fs.put_file, local, inner, fs=fs, seconds=seconds)


def put_new(path: str, fs: Any, inner: str, data: bytes) -> bool:
    """Puts a small file if there is none; whether it did. Of several at once one does, where the store can see to it.

    Where it can't, another may come between the look and the put. Where an answer is lost, all may be told that
    somebody else did it.

    Raises:
      InputError: as `put`.
      StorageError: the store fails.
    """
    with _refusals_told(path, fs):
        if look(path, fs, inner) is not None:  # often, and the file may be large
            return False
        if "mode" in inspect.signature(getattr(fs, "_pipe_file", fs.pipe_file)).parameters:
            try:
                call(path, fs.pipe_file, inner, data, mode="create", fs=fs, seconds=limit(len(data)))
                return True
            except FileExistsError:
                return False
            except StorageError as error:
                if not is_unknown(error):
                    raise
        call(path, fs.pipe_file, inner, data, fs=fs, seconds=limit(len(data)))
        return True


@contextlib.contextmanager
def _refusals_told(path: str, fs: Any) -> Iterator[None]:
    if is_web(fs):
        raise InputError(f"{path}: a web server can only be read; choose another place to write to")
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such bucket; make it first, or check the path") from error


_kept: dict[str, tuple[str, dict[str, Any]]] = {}


def local_copy(path: str) -> tuple[str, dict[str, Any]] | None:
    """Where `keep` has a copy of a file, and what its store says of it."""
    return _kept.get(path)


@contextlib.contextmanager
def downloaded(paths: Sequence[tuple[str, Any, str]]) -> Iterator[None]:
    """Downloads files: all that is read of them until the block ends comes from the copies.

    Args:
      paths: path, file system, and name there of each. What is missing is left to whoever reads it.
    """
    if not paths:
        yield
        return
    with stopping.scratch("clipdata-") as folder:
        made = []
        try:
            for number, (path, fs, inner) in enumerate(paths):
                local = os.path.join(folder, str(number))
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    with RemoteFile(path, fs, inner) as raw, open(local, "wb") as copy:
                        while piece := raw.read(_LARGEST):
                            copy.write(piece)
                        raw.check_unchanged()
                    made.append(path)
                    _kept[path] = local, raw.info
            yield
        finally:
            for path in made:
                _kept.pop(path, None)
