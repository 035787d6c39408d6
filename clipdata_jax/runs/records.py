"""What runs recorded of their files, read as data that strangers may have written: nothing in it is taken on trust."""

from __future__ import annotations

import dataclasses
import json
import os
import posixpath
from collections.abc import Callable
from typing import Any

from clipdata_jax import storage
from clipdata_jax.errors import InputError

_OF_THE_KERNEL = ("/proc/", "/sys/", "/dev/")  # to read there may do something


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with a file.

    Attributes:
      kind: "missing", "doubled", "damaged", "changed", "foreign" or "refused".
      path: the file.
      text: what was found and what is recorded.
    """

    kind: str
    path: str
    text: str


@dataclasses.dataclass(frozen=True)
class Check:
    """A file that should be what was recorded.

    Attributes:
      path: the file.
      bytes: its recorded size, None if none is.
      digest: its recorded digest, None if none is or it needn't be compared.
      wrong: what kind of problem it is if it isn't.
      look: says what is wrong with the contents, "" if nothing; asked only where size and digest are right.
    """

    path: str
    bytes: int | None
    digest: str | None
    wrong: str = "damaged"
    look: Callable[[], str] | None = None


@dataclasses.dataclass
class Run:
    """One of the outputs to check, and what its records say at first sight.

    Attributes:
      path: of the folder or file.
      command: that wrote it.
      units: how many units it has, and how many of them have a receipt.
      checks: of its own files.
      inputs: checks of the files it was made of.
      problems: what the records alone tell.
      stores: buckets and servers besides its own whose files may be opened where records name them.
    """

    path: str
    command: str = "?"
    units: tuple[int, int] = (0, 0)
    checks: list[Check] = dataclasses.field(default_factory=list)
    inputs: list[Check] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    stores: tuple[str, ...] = ()
    _named: set[str] = dataclasses.field(default_factory=set)

    def add(self, kind: str, path: str, text: str) -> None:
        """Takes note of a problem."""
        self.problems.append(Problem(kind, path, text))

    def may_open(self, name: str) -> bool:
        """Whether an input that a record names may be looked at; where not, a problem says so.

        To read a file of this machine does nothing, to anybody. What is sent to a store or a server may do something,
        in the user's name: these are asked only where the user named them.
        """
        store = _store(name)
        if not store:
            try:
                kernel = os.path.realpath(name).startswith(_OF_THE_KERNEL)
            except ValueError:  # no system has such names
                kernel = True
            if kernel:
                self.add("refused", self.path, f"a record names {name[:200]!r}, which is no file; not opened")
            return not kernel
        if store in {_store(self.path), *map(_store, self.stores)} and "::" not in name:
            return True
        if self.names_first(store):
            self.add(
                "refused",
                store,
                f"inputs lie there, say the records, which may be a stranger's ({name[:200]!r} for one); not asked:"
                f" allow it with --stores {store}, or leave inputs out with --pool no",
            )
        return False

    def names_first(self, name: str) -> bool:
        """Whether no record of the run has named an input before."""
        before = len(self._named)
        self._named.add(name)
        return len(self._named) > before


def read_json(path: str) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
      InputError: it can't be read, or holds something else.
    """
    try:
        content = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content


def _store(path: str) -> str:
    """The bucket or server of an address, "s3://bucket/"; "" for a path of this machine."""
    if "://" not in path and "::" not in path:
        return ""
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/"


def is_inside(name: object) -> bool:
    """Whether a recorded name stays in its folder: no absolute path, no way up, no URL, no other system's path."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name or "://" in name:
        return False
    parts = name.split("/")
    return not posixpath.isabs(name) and not (set(parts) & {"", ".", ".."}) and ":" not in parts[0]


def leaves(folder: str, name: str) -> bool:
    """Whether a file of a folder is in truth elsewhere: a link that leads out of it."""
    at = storage.Folder(folder)
    if not at.is_local:
        return False
    root = os.path.realpath(at.inner)
    target = os.path.realpath(os.path.join(root, name))
    return os.path.commonpath([root, target]) != root


def entries(held: object) -> dict[str, tuple[int, str | None]]:
    """Recorded files -> size and digest.

    Raises:
      InputError: this is no such record.
    """
    if not isinstance(held, dict):
        raise InputError(f"its files are a {type(held).__name__}, expected an object")
    return {name: _size_and_digest(entry) for name, entry in held.items()}


def _size_and_digest(entry: object) -> tuple[int, str | None]:
    if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
        raise InputError(f"a file's entry is {str(entry)[:60]!r}, expected its bytes and digest")
    digest = entry.get("digest")
    if digest is not None and not isinstance(digest, str):
        raise InputError(f"a digest is {str(digest)[:60]!r}, expected text")
    return entry["bytes"], digest


def input_checks(run: Run, held: object, *, digests: bool) -> None:
    """Adds the checks of the inputs in a record: entries with name, bytes and digest, or names alone."""
    for entry in held if isinstance(held, list) else []:
        name = entry.get("name") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or "\0" in name:
            run.add(
                "damaged", run.path, f"its record of inputs holds {str(entry)[:60]!r}, expected a file's name"
            )
            continue
        if not run.names_first(name) or not run.may_open(name):
            continue
        size, digest = (entry.get("bytes"), entry.get("digest")) if isinstance(entry, dict) else (None, None)
        size = size if isinstance(size, int) else None
        run.inputs.append(
            Check(name, size, digest if digests and isinstance(digest, str) else None, "changed")
        )
