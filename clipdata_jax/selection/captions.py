"""How long captions are, as Python's words and as fastText's."""

from __future__ import annotations

import re

import numpy as np

# What fastText's tokenizer splits at: fewer characters than str.split(). A line's end is a token of its own.
_FASTTEXT_WORD = re.compile("[^ \n\r\t\v\f\0]+|\n")


def count_words(captions: np.ndarray) -> np.ndarray:
    """Words between white space, of str objects (n,): int64 (n,)."""
    return np.fromiter((len(text.split()) for text in captions), np.int64, len(captions))


def count_characters(captions: np.ndarray) -> np.ndarray:
    """Unicode characters (code points) of str objects (n,): int64 (n,)."""
    return np.fromiter(map(len, captions), np.int64, len(captions))


def count_tokens(captions: np.ndarray) -> np.ndarray:
    """Tokens as fastText's `tokenize` counts them, of str objects (n,): int64 (n,)."""
    counts = (sum(1 for _ in _FASTTEXT_WORD.finditer(text)) for text in captions)
    return np.fromiter(counts, np.int64, len(captions))
