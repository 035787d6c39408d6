"""Words, characters and tokens of captions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipdata_jax.filters import conditions

# What the tokenizers tell apart: white space of both kinds, ends of lines, letters of one and more bytes.
PIECES = st.lists(
    st.sampled_from([" ", "\n", "\t", "\0", "\v", "\r", "\u00a0", "\u2003", "\x1c", "a", "é", "日", "🏠"])
)


def fasttext_tokens(text: str) -> int:
    """fastText's reader, byte by byte: words end at these bytes, and a line's end is a token too."""
    count, inside = 0, False
    for byte in text.encode():
        ends = byte in b" \n\r\t\v\f\0"
        count += (byte == ord("\n")) + (not ends and not inside)
        inside = not ends
    return count


@given(st.lists(PIECES.map("".join), max_size=5))
def test_counts(texts):
    array = np.empty(len(texts), object)
    array[:] = texts
    assert conditions.count_words(array).tolist() == [len(text.split()) for text in texts]
    assert conditions.count_characters(array).tolist() == [len(text) for text in texts]
    assert conditions.count_tokens(array).tolist() == [fasttext_tokens(text) for text in texts]
