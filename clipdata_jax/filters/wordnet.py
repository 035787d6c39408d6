"""Captions that name one of given WordNet synsets, by the first sense of each word.

Miller 1995, "WordNet: a lexical database for English"; read from its own files, `index.*` and `*.exc`.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Sequence

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError

# In the order in which a word's senses are looked up.
_PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
# WordNet's rules of detachment (morphy): ending of an inflected word -> ending of its base form.
_ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
        ("men", "man"), ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
_LONGEST = 128  # characters of a word that endings are detached from again and again; WordNet's longest word has 71
_SYNSET = re.compile(r"[nvasr]?(\d{8})(?!\d)")
_CACHED_WORDS = 1 << 20


class WordNet:
    """A WordNet database: the first sense of every word.

    Attributes:
      path: the database's folder or .zip.
      nouns: the offsets of all synsets of nouns.
    """

    def __init__(self, path: str | None = None) -> None:
        """Reads the database.

        Args:
          path: its folder, or a .zip of it as NLTK keeps it; default: where NLTK puts what it downloads.

        Raises:
          InputError: it is missing, or something else.
        """
        self.path = find_wordnet() if path is None else path
        self._first: dict[str, dict[str, int]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        self.nouns: set[int] = set()
        for part in _PARTS_OF_SPEECH:
            self._read_index(part)
            lines = (line.split() for line in self._lines(f"{part}.exc"))
            self._exceptions[part] = {words[0]: words[1:] for words in lines if words}

    def first_sense(self, word: str) -> int | None:
        """The offset of a word's first synset, as a noun, verb, adjective or adverb; None if unknown.

        As NLTK 3.8.1 finds it, which DataComp pins: endings are detached again and again until a form is known, so that
        "womens" is a woman. Newer NLTKs detach one ending.
        """
        word = word.lower()
        for part in _PARTS_OF_SPEECH:
            first, bases = self._first[part], self._exceptions[part].get(word)
            forms = [word, *(_detach([word], part) if bases is None else bases)]
            while forms:
                for form in forms:
                    if form in first:
                        return first[form]
                forms = _detach(forms, part) if bases is None and len(word) <= _LONGEST else []
        return None

    def _read_index(self, part: str) -> None:
        found = self._first[part] = {}
        for number, line in enumerate(self._lines(f"index.{part}"), 1):
            if line.startswith(" "):  # the licence
                continue
            try:
                # lemma, part of speech, synset count, pointer count p, p pointers, 2 counts of senses, offsets
                fields = line.split()
                senses = [int(offset) for offset in fields[6 + int(fields[3]) :]]
                found[fields[0]] = senses[0]
            except (ValueError, IndexError) as error:
                raise InputError(
                    f"{self.path}: index.{part}, line {number}: {line[:60]!r} is not an entry of WordNet's index"
                ) from error
            if part == "noun":
                self.nouns.update(senses)

    def _lines(self, name: str) -> list[str]:
        inside = f"zip://wordnet/{name}::{self.path}" if self.path.endswith(".zip") else storage.join(self.path, name)
        if not (storage.exists(self.path) and storage.exists(inside)):
            raise InputError(
                f"{self.path}: holds no {name}; expected WordNet's database, the folder of index.noun, noun.exc, ..."
            )
        return storage.read_bytes(inside).decode("utf-8", "replace").splitlines()


def _detach(forms: Sequence[str], part: str) -> list[str]:
    """The forms without one ending, each once."""
    found = (form[: -len(old)] + new for form in forms for old, new in _ENDINGS[part] if form.endswith(old))
    return list(dict.fromkeys(found))


def find_wordnet() -> str:
    """Finds the WordNet that NLTK downloaded, a folder or .zip.

    Raises:
      InputError: it is in none of NLTK's folders.
    """
    home = os.path.join(os.path.expanduser("~"), "nltk_data")
    system = [os.path.join(root, "nltk_data") for root in _roots()]
    for data in [*os.environ.get("NLTK_DATA", "").split(os.pathsep), home, *system]:
        for name in ("wordnet", "wordnet.zip"):
            path = os.path.join(data, "corpora", name)
            if data and os.path.exists(path):
                return path
    raise InputError(
        "WordNet was not found: python -m nltk.downloader wordnet (package nltk) downloads it to"
        f" {home}; or pass the folder of WordNet 3.0's database as --wordnet"
    )


def _roots() -> list[str]:
    return [
        sys.prefix,
        os.path.join(sys.prefix, "share"),
        os.path.join(sys.prefix, "lib"),
        *("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib"),
    ]


def read_synsets(path: str) -> frozenset[int]:
    """Reads a file of WordNet ids, one per line such as n02084071; text after a space is ignored.

    Raises:
      InputError: no such file, no ids in it, or a line that doesn't begin with one.
    """
    found = set()
    for number, line in enumerate(storage.read_bytes(path).decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        match = _SYNSET.match(line.strip())
        if match is None:
            raise InputError(f"{path}: line {number} is {line[:60]!r}, expected a WordNet id such as n02084071")
        found.add(int(match[1]))
    if not found:
        raise InputError(f"{path}: holds no ids; expected one WordNet id per line, such as n02084071")
    return frozenset(found)


class SynsetMatcher:
    """Matches captions that have a word whose first sense is one of given synsets.

    As in DataComp, words are split at white space, with punctuation left on, and offsets are compared without their
    parts of speech.
    """

    def __init__(self, wordnet: WordNet, synsets: frozenset[int]) -> None:
        # Words recur, but a pool has too many distinct ones to cache all.
        self._matches = functools.lru_cache(_CACHED_WORDS)(lambda word: wordnet.first_sense(word) in synsets)

    def match(self, captions: Sequence[str] | np.ndarray) -> np.ndarray:
        """Marks the captions (n,) that name a synset: bool (n,)."""
        matched = (any(map(self._matches, text.split())) for text in captions)
        return np.fromiter(matched, bool, len(captions))
