"""Files that a run reads piece by piece, for days: a run that goes on is told if they are no longer the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.runs import records
from clipdata_jax.runtime import threads

NAME = "_training/inputs.json"
_BLOCKS, _BLOCK = 4, 16 << 10


class FileState(NamedTuple):
    """The state of a file when the run began.

    Attributes:
      name: its path.
      bytes: its size; None of a folder.
      fingerprint: of size and time of change, or a store's version of it.
      sample: digest of some blocks of a local file, of all its bytes if it is small; None in a store.
    """

    name: str
    bytes: int | None
    fingerprint: str
    sample: str | None


def check_unchanged(folder: storage.Folder, paths: Sequence[str]) -> list[records.FileEntry]:
    """Records the state of a run's input files when it begins, and compares them with it when it goes on.

    A digest of every byte would mean to read the whole pool before each start. So a file counts as the same if its
    size and time of change are, or else, since copying changes the latter, its size and blocks from all over it.

    Args:
      folder: of the run's output.
      paths: the files, in the same order each time.

    Returns:
      The files with their sizes, for the manifest.

    Raises:
      InputError: a file has changed since the run began.
    """
    if not folder.exists(NAME):
        states = list(threads.prefetch(_state, paths, threads=folder.threads))
        folder.write(NAME, records.to_json([list(state) for state in states]))
    else:
        try:
            states = [FileState(*one) for one in json.loads(folder.read_bytes(NAME))]
        except (ValueError, TypeError) as error:
            raise InputError(f"{folder.join(NAME)}: damaged ({error}); choose another --out") from error
        for problem in threads.prefetch(_changed, zip(states, paths, strict=True), threads=folder.threads):
            if problem:
                raise InputError(
                    f"{problem} since the run in {folder} began; put it back as it was, or choose another --out"
                )
    return [records.FileEntry(path, state.bytes) for path, state in zip(paths, states, strict=True)]


def _state(path: str) -> FileState:
    at = storage.Folder(path)
    if at.is_folder():
        return FileState(path, None, _fingerprint(at), None)
    size = storage.size(path)
    return FileState(path, size, _fingerprint(at), _sample(path, size) if at.is_local else None)


def _fingerprint(at: storage.Folder) -> str:
    """A short one: that of a folder is as long as the list of its files."""
    return hashlib.sha256(at.fingerprint().encode()).hexdigest()[:32]


def _sample(path: str, size: int) -> str:
    found = hashlib.sha256()
    with storage.open_read(path) as file:
        for block in range(_BLOCKS):
            file.seek(max(0, size - _BLOCK) * block // (_BLOCKS - 1))
            found.update(file.read(_BLOCK))
    return f"sha256:{found.hexdigest()}"


def _changed(of: tuple[FileState, str]) -> str:
    was, path = of
    at = storage.Folder(path)
    if not at.exists():
        return f"{path}: was removed"
    if _fingerprint(at) == was.fingerprint:
        return ""
    if was.bytes is not None and not at.is_folder():
        if (size := storage.size(path)) != was.bytes:
            return f"{path}: has changed from {was.bytes:,} to {size:,} bytes"
        if was.sample is not None and at.is_local and _sample(path, size) == was.sample:
            return ""
    return f"{path}: has changed"
