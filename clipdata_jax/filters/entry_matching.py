"""The entries of a list that captions hold, as MetaCLIP finds them: substrings between spaces, all in one pass.

MetaCLIP (Xu et al. 2023, arXiv:2309.16671) takes 500,000 entries from WordNet and Wikipedia. An automaton (Aho and
Corasick 1975) finds all of them in a caption in time proportional to its length.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError

_SPACED = str.maketrans({sign: f" {sign} " for sign in ",.;:?!`"} | dict.fromkeys("\t\n\r", " "))


def spaced(caption: str) -> str:
    """Puts spaces around a caption and each of , . ; : ? ! and the backtick; tabs and ends of lines become spaces.

    >>> spaced("a cat, a dog")
    ' a cat ,  a dog '
    """
    return f" {caption} ".translate(_SPACED)


class EntryMatcher:
    """Finds the entries of a list in captions.

    An entry occurs in a caption if " entry " does in the `spaced` caption: case counts, and entries may overlap and
    hold spaces. As in MetaCLIP entries aren't spaced, so one with such a sign next to a letter is never found.

    Args:
      entries: different, not empty.

    Raises:
      InputError: the package pyahocorasick is missing.

    >>> matcher = EntryMatcher(["cat", "a cat", "dog", "at"])
    >>> [found.tolist() for found in matcher.find(["a cat, a cat and dogs", None])]
    [[0, 1], []]
    """

    def __init__(self, entries: Sequence[str]) -> None:
        try:
            import ahocorasick
        except ImportError as error:
            raise InputError(
                "finding entries needs the package pyahocorasick; install it with: pip install 'clipdata_jax[entries]'"
            ) from error
        self._automaton = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for number, entry in enumerate(entries):
            self._automaton.add_word(f" {entry} ", number)
        self._automaton.make_automaton()

    def find(self, captions: Iterable[str | None]) -> list[np.ndarray]:
        """Returns the numbers of each caption's entries, int32, ascending, each once; none where it is null."""
        search = self._automaton.iter
        return [
            np.array(sorted({number for _, number in search(spaced(caption))}), np.int32)
            if caption
            else np.empty(0, np.int32)
            for caption in captions
        ]


def read_entries(path: str) -> list[str]:
    """Reads a list of entries: a .json list of texts (MetaCLIP's metadata.json), else text with an entry a line.

    Blank lines are left out; their lines have no number.

    Raises:
      InputError: it can't be read, is empty, or names an entry twice.
    """
    try:
        text = storage.read_bytes(path).decode()
        entries = json.loads(text) if path.endswith(".json") else [line.strip() for line in text.splitlines()]
    except ValueError as error:
        raise InputError(
            f"{path}: can't be read as a list of entries ({error}); expected UTF-8, an entry a line"
        ) from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise InputError(f"{path}: holds something else than a list of texts; expected a JSON list of entries")
    entries = [entry for entry in entries if entry.strip()]
    if not entries:
        raise InputError(f"{path}: holds no entries; expected an entry a line")
    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if first.setdefault(entry, number) != number:
            raise InputError(f"{path}: entry {number} is {entry!r}, as entry {first[entry]} is; name each once")
    return entries
