"""Input files of a unit: digested, and downloaded from object stores, while the unit before is embedded."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Mapping

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats.sources.source import Source
from clipdata_jax.runs import manifest
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import threads


@dataclasses.dataclass(frozen=True)
class FetchedUnit:
    """A source whose files are local.

    Attributes:
      name: of the unit.
      source: of its samples.
      entries: its files, with the fingerprints that they had before they were read.
      error: why they can't be read; None if they can.
      copies: holds the downloaded files until it is closed.
    """

    name: str
    source: Source
    entries: list[FileEntry]
    error: InputError | None
    copies: contextlib.ExitStack

    def facts(self) -> list[FileEntry]:
        """The entries without fingerprints, which depend on the clock."""
        return [entry.without_fingerprint() for entry in self.entries]


def prefetch(sources: Mapping[str, Source]) -> Generator[FetchedUnit]:
    """Yields units in order; each one's files stay local until the next is requested.

    Digests and samples thus come from the same version of a file. A thread is one unit ahead, so that TMPDIR holds
    the files of two.

    Raises:
      StorageError: a store fails.
    """
    copies: list[contextlib.ExitStack] = []
    known: dict[str, FileEntry] = {}  # of the unit before, which may be of the same file

    def fetch(named: tuple[str, Source]) -> FetchedUnit:
        nonlocal known
        unit = _fetch(*named, known)
        known = {entry.name: entry for entry in unit.entries}
        copies.append(unit.copies)
        return unit

    try:
        with contextlib.closing(threads.prefetch(fetch, sources.items(), threads=1, ahead=1)) as units:
            for unit in units:
                with unit.copies:
                    yield unit
    finally:
        for left in copies:
            left.close()


def _fetch(name: str, source: Source, known: Mapping[str, FileEntry]) -> FetchedUnit:
    with contextlib.ExitStack() as copies:
        error = None
        try:
            copies.enter_context(storage.downloaded(source.inputs))
            entries = [_entry(path, known.get(path)) for path in source.inputs]
        except InputError as found:
            error = found
            entries = [FileEntry(path, storage.size(path), unreadable=True) for path in source.inputs]
        return FetchedUnit(name, source, entries, error, copies.pop_all())


def _entry(path: str, known: FileEntry | None) -> FileEntry:
    fingerprint = storage.fingerprint(path)
    if known is not None and known.fingerprint == fingerprint:
        return known
    return dataclasses.replace(manifest.file_entry(path), fingerprint=fingerprint)
