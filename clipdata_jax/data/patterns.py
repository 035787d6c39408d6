"""Patterns of paths: `{000..099}`, `{a,b}` and `*`."""

from __future__ import annotations

import re

from fsspec.implementations.local import LocalFileSystem

from clipdata_jax.data import places, remote
from clipdata_jax.errors import InputError
from clipdata_jax.runtime import threads

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


def expand(patterns: str | tuple[str, ...]) -> list[str]:
    """The files that patterns mean: `{000..099}` and `{a,b}` braces, `*` globs, folders stay folders.

    Brace ranges keep the order they are written in and must all exist; globs are sorted.

    Raises:
      InputError: a pattern or a name matches nothing.
    """
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = expand_braces(pattern)
        plain = [name for name in names if not any(char in name for char in "*?[")]
        there = dict(
            zip(plain, threads.in_order(places.exists, plain, places.threads_for(pattern)), strict=True)
        )
        for name in names:
            if name in there and not there[name]:
                raise InputError(f"{name}: no such file or folder (from {pattern!r}); check the path")
            found += [name] if name in there else _glob(name)
    return found


def _glob(pattern: str) -> list[str]:
    fs, inner = places.filesystem(pattern)
    local = isinstance(fs, LocalFileSystem)
    matches = sorted(fs.glob(inner) if local else remote.call(pattern, fs.glob, inner, fs=fs))
    if not matches:
        raise InputError(f"{pattern}: the pattern matches no file; check the path, and quote it in the shell")
    return [match if local else fs.unstrip_protocol(match) for match in matches]
