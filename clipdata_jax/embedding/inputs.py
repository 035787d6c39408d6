"""The files that a unit of `embed` is made of: described, and fetched from a store, while another is embedded."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Mapping

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats.sources import Source
from clipdata_jax.runs import manifest
from clipdata_jax.runs.records import FileEntry
from clipdata_jax.runtime import threads


@dataclasses.dataclass(frozen=True)
class Unit:
    """A source whose files are at hand.

    Attributes:
      name: of the unit.
      source: where its samples are.
      entries: its files, with the fingerprints that they had before they were read.
      error: why they can't be read; None if they can.
      copies: the files of object stores, as long as it isn't closed.
    """

    name: str
    source: Source
    entries: list[FileEntry]
    error: InputError | None
    copies: contextlib.ExitStack

    def facts(self) -> list[FileEntry]:
        """The entries as the manifest lists them, which knows no times."""
        return [entry.without_fingerprint() for entry in self.entries]


def prefetch(sources: Mapping[str, Source]) -> Generator[Unit]:
    """Units in order, each at hand until the next is asked for: digests and samples are of one version of a file.

    Another thread is one unit ahead: TMPDIR holds the files of two.

    Raises:
      StorageError: a store fails.
    """
    copies: list[contextlib.ExitStack] = []

    def fetch(named: tuple[str, Source]) -> Unit:
        unit = _fetch(*named)
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


def _fetch(name: str, source: Source) -> Unit:
    with contextlib.ExitStack() as copies:
        error = None
        try:
            copies.enter_context(storage.downloaded(source.inputs))
            fingerprints = list(map(storage.fingerprint, source.inputs))
            entries = [
                dataclasses.replace(manifest.file_entry(path), fingerprint=fingerprint)
                for path, fingerprint in zip(source.inputs, fingerprints, strict=True)
            ]
        except InputError as found:
            error = found
            entries = [FileEntry(path, storage.size(path), unreadable=True) for path in source.inputs]
        return Unit(name, source, entries, error, copies.pop_all())
