"""Braces in paths: `{000..099}` and `{a,b}`."""

from __future__ import annotations

import re

from clipdata_jax.errors import InputError

_BRACES = re.compile(r"\{([^{}]*)\}")


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern means, in the order they are written; ranges keep their zeros.

    Raises:
      InputError: a range is empty.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        if last < first:
            raise InputError(f"{pattern}: the range {match[0]} is empty; write the smaller number first")
        choices = [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    start, end = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in expand_braces(start + choice + end)]
