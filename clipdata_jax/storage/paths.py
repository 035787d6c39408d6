"""Files at any path, local or in a store: read, listed, and written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, NamedTuple

from clipdata_jax.errors import InputError
from clipdata_jax.storage import local, remote, remote_files, temporary
from clipdata_jax.storage.location import CONNECTIONS, Location
from clipdata_jax.storage.retries import call

_ROWS_AHEAD = 1 << 24


class Content(NamedTuple):
    """The size of a file in bytes, and its digest if it was computed: `sha256:` and 64 hex digits."""

    bytes: int
    digest: str | None


class Folder(Location):
    """A folder, local or in a store, whose files are read, listed and written by name.

    Its path is resolved once. Every method that takes a name also works without one, on a lone file at the path
    itself, as the module's functions do. Symlinks are followed.

    Args:
      path: a local path or a URL (gs://, s3://, https://, ...).

    Raises:
      InputError: no file system takes such a path, or the package for it is missing.

    >>> folder = Folder("out")
    >>> folder.write("a.txt", b"12345").bytes
    5
    >>> folder.read_bytes("a.txt"), folder.sizes(), folder.is_local
    (b'12345', {'a.txt': 5}, True)
    """

    @property
    def threads(self) -> int:
        """How many small files to read at a time: a store's responses are waited for, a disk's are not."""
        return 1 if self.is_local else CONNECTIONS

    def threads_for_rows(self, rows: Sequence[int]) -> int:
        """How many parts of so many rows to read at a time: `threads`, and fewer of large ones, for the memory."""
        return max(1, min(self.threads, _ROWS_AHEAD // max(rows, default=1)))

    def _info(self, name: str = "") -> dict[str, Any] | None:
        at = self.at(name)
        if at.is_local:
            return local.info(at)
        copy = remote_files.local_copy(at.path)
        return copy[1] if copy else remote.info(at)

    def _existing(self, name: str) -> dict[str, Any]:
        info = self._info(name)
        if info is None:
            raise InputError(f"{self.at(name)}: no such file; check the path")
        return info

    def _entries(self) -> list[dict[str, Any]]:
        return local.entries(self) if self.is_local else remote.entries(self)

    def exists(self, name: str = "") -> bool:
        """Returns whether a file or folder exists."""
        return self._info(name) is not None

    def is_folder(self, name: str = "") -> bool:
        """Returns whether it is a folder; in a store a prefix of files, on a web server a page of links."""
        at = self.at(name)
        if at.is_local:
            return bool(at.fs.isdir(at.inner))
        info = at._info()
        if at.is_web:  # every address is a file there, and listing one reads all of it
            return info is not None and info.get("mimetype") == "text/html" and bool(at._entries())
        return info is not None and info["type"] == "directory"

    def size(self, name: str = "") -> int:
        """Returns the size of a file in bytes.

        Raises:
          InputError: no such file.
        """
        return int(self._existing(name)["size"] or 0)

    def fingerprint(self, name: str = "") -> str:
        """Returns the size of a file and the time or tag of its last change; of a folder, those of all its files.

        Raises:
          InputError: no such file.
        """
        if self.is_folder(name):
            return " ".join(fingerprint(path) for path in self.at(name).tree())
        return remote.fingerprint(self._existing(name))

    def names(self) -> list[str]:
        """Returns the names of all files and folders directly in the folder, sorted; [] if there is no folder."""
        return sorted(os.path.basename(entry["name"].rstrip("/")) for entry in self._entries())

    def files(self, suffix: str | tuple[str, ...] = "") -> list[str]:
        """Returns the paths of the files directly in the folder, sorted by name; [] if there is no folder.

        Hidden files are nobody's: macOS leaves ._0.parquet beside 0.parquet on some disks.

        Args:
          suffix: the end of their names.

        Raises:
          InputError: one is a broken symlink.
        """
        named = [(os.path.basename(entry["name"]), entry) for entry in self._entries()]
        found = [(name, entry) for name, entry in named if name.endswith(suffix) and not name.startswith(".")]
        return sorted(self.join(name) for name, entry in found if self._is_file(entry))

    def _is_file(self, entry: dict[str, Any]) -> bool:
        if entry["type"] in ("file", "directory"):
            return bool(entry["type"] == "file")
        # fsspec has other types for symlinks, which differ between its versions.
        name = entry["name"]
        if self.fs.isdir(name):
            return False
        if not self.fs.isfile(name):
            raise InputError(f"{name}: is a broken link or a special file; fix or remove it")
        return True

    def tree(self) -> list[str]:
        """Returns the paths of all files in the folder and the folders below it, sorted by name."""
        found = local.find(self) if self.is_local else remote.find(self)
        return [self.join(name) for name in sorted(map(self._relative, found))]

    def sizes(self) -> dict[str, int]:
        """Returns the sizes in bytes of all files in the folder and the folders below it, by relative name."""
        if self.is_local:
            return {self._relative(name): local.entry_size(entry) for name, entry in local.find(self).items()}
        return {self._relative(name): int(info["size"] or 0) for name, info in remote.find(self).items()}

    def _relative(self, name: str) -> str:
        return name[len(self.inner) :].lstrip("/")

    def fingerprints(self) -> dict[str, str]:
        """Returns the `fingerprint` of each file directly in the folder, by path and from one listing.

        None of a web server's, whose listings have names only.
        """
        return {
            self.join(os.path.basename(entry["name"])): remote.fingerprint(entry)
            for entry in self._entries()
            if entry["type"] == "file" and entry["size"] is not None
        }

    @contextlib.contextmanager
    def open_read(self, name: str = "", *, at_once: bool = False) -> Iterator[BinaryIO]:
        """Opens a file for reading bytes; no read of a store's is ever silently short.

        Args:
          name: of the file.
          at_once: fetch a store's file by one request if it is small, where only parts of it will be read.

        Raises:
          InputError: the file doesn't exist, is a folder, or can't be read.
          StorageError: its store or mount fails.
        """
        at = self.at(name)
        if at.is_local and os.path.exists(at.inner) and not os.path.isfile(at.inner) | os.path.isdir(at.inner):
            raise InputError(f"{at}: is a pipe or a device, expected a file")
        copy = remote_files.local_copy(at.path)
        with local.explained_reads(at.path):
            if copy or at.is_local:
                with open(copy[0] if copy else at.inner, "rb") as here:
                    yield here
            else:
                with remote_files.open_read(at, at_once) as file:
                    yield file

    def read_bytes(self, name: str = "") -> bytes:
        """Reads a small file."""
        with self.open_read(name) as file:
            return file.read()

    def digest(self, name: str = "") -> str:
        """Returns `sha256:` and the hex digest of a file's bytes."""
        with self.open_read(name) as file:
            return _digest(file)

    def size_and_digest(self, name: str = "") -> Content:
        """Returns the size and digest of a file, reading it once."""
        with self.open_read(name) as file:
            return _describe(file, digests=True)

    def open_write(self, name: str = "") -> AbstractContextManager[BinaryIO]:
        """Opens a file for writing that appears whole when the block ends without an error, or not at all.

        The bytes go to a temporary file, which is flushed to the disk and then renamed, or uploaded to the store.

        Raises:
          InputError: the file can't be written, or the disk is full.
          StorageError: the store fails.
        """
        return self._written(name)

    def write(self, name: str, content: bytes | Callable[[BinaryIO], object], *, digests: bool = False) -> Content:
        """Writes a file as `open_write` does.

        Args:
          name: of the file.
          content: its bytes, or a function that writes them.
          digests: whether to compute its digest.

        Returns:
          what was written; a store's file isn't read again for it.
        """
        with self._written(name) as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            written = _describe(file, digests=digests)
        return written

    def write_new(self, name: str, data: bytes) -> bool:
        """Writes a small file unless it exists, and returns whether it did; of several processes at once, one does.

        Not every store can guarantee that, see `remote_files.put_new`.
        """
        at = self.at(name)
        if not at.is_local:
            remote.invalidate(at)
            return remote_files.put_new(at, data)
        if at.exists():
            return False
        try:
            with at._written(new=True) as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    @contextlib.contextmanager
    def _written(self, name: str = "", *, new: bool = False) -> Iterator[BinaryIO]:
        at = self.at(name)
        with local.explained_writes(at, new=new):
            if at.is_local:
                folder = os.path.dirname(at.inner)
                local.make_folder(folder)
                with temporary.written(at.inner, new=new) as file:
                    yield file
                local.sync_folder(folder)
                return
            with temporary.scratch("clipdata-") as scratch:
                part = os.path.join(scratch, "part")
                with open(part, "x+b") as file:
                    yield file
                remote.invalidate(at)
                remote_files.put(at, part)

    def remove(self, name: str = "") -> None:
        """Removes a file, or a folder with all in it."""
        at = self.at(name)
        remote.invalidate(at)
        if at.is_local:
            at.fs.rm(at.inner, recursive=True)
        else:
            call(at, at.fs.rm, at.inner, recursive=True)

    def sweep(self) -> None:
        """Removes the temporary files that killed processes left in the folder and the folders below it."""
        if self.is_local:
            temporary.sweep(self.inner)


def _describe(file: BinaryIO, *, digests: bool) -> Content:
    file.flush()
    size = file.seek(0, os.SEEK_END)
    return Content(size, _digest(file) if digests else None)


def _digest(file: BinaryIO) -> str:
    total = hashlib.sha256()
    file.seek(0)
    while piece := file.read(1 << 20):
        total.update(piece)
    return f"sha256:{total.hexdigest()}"


def open_read(path: str, *, at_once: bool = False) -> AbstractContextManager[BinaryIO]:
    """Opens a lone file for reading; see `Folder.open_read`."""
    return Folder(path).open_read(at_once=at_once)


def read_bytes(path: str) -> bytes:
    """Reads a small lone file.

    >>> write_bytes("a.txt", b"12345")
    >>> read_bytes("a.txt"), size("a.txt"), digest("a.txt")[:15]
    (b'12345', 5, 'sha256:5994471a')
    """
    return Folder(path).read_bytes()


def open_write(path: str) -> AbstractContextManager[BinaryIO]:
    """Opens a lone file for writing, whole or not at all; see `Folder.open_write`."""
    return Folder(path).open_write()


def write_bytes(path: str, data: bytes) -> None:
    """Writes a small lone file, whole or not at all; see `Folder.write`."""
    Folder(path).write("", data)


def exists(path: str) -> bool:
    """Returns whether a file or folder exists."""
    return Folder(path).exists()


def is_folder(path: str) -> bool:
    """Returns whether a path is a folder; see `Folder.is_folder`."""
    return Folder(path).is_folder()


def size(path: str) -> int:
    """Returns the size of a lone file in bytes."""
    return Folder(path).size()


def digest(path: str) -> str:
    """Returns `sha256:` and the hex digest of a lone file's bytes."""
    return Folder(path).digest()


def fingerprint(path: str) -> str:
    """Returns the size of a file and the time or tag of its last change; see `Folder.fingerprint`."""
    return Folder(path).fingerprint()


def remove(path: str) -> None:
    """Removes a file, or a folder with all in it."""
    Folder(path).remove()


def sweep_beside(path: str) -> None:
    """Removes the temporary files that killed processes left of a local file and of others with its stem.

    >>> sweep_beside("subset.npy")  # those of subset.npy.manifest.json, too
    """
    at = Folder(path)
    if at.is_local:
        folder, name = os.path.split(at.inner)
        temporary.sweep(folder, name.partition(".")[0], deep=False)
