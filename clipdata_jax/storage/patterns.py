"""Patterns of paths: braces and globs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from clipdata_jax.errors import InputError
from clipdata_jax.runtime import threads
from clipdata_jax.storage.paths import Folder, exists
from clipdata_jax.storage.retries import call

_WILD = "*?["
_BRACES = re.compile(r"\{([^{}]*)\}")
# Files and folders that systems and file managers leave, besides those that begin with a dot.
SYSTEM_NAMES = (
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"),
    "system volume information",
)
# "./" and "../" only lead to a file.
_HIDDEN = re.compile(
    rf"(?:^|/)(?:\.(?!\.?/)|(?:{'|'.join(map(re.escape, SYSTEM_NAMES))})(?:/|$))", re.IGNORECASE | re.ASCII
)
# Protocols of fsspec that need another one after "::".
_WRAPPERS = ("blockcache", "cached", "dir", "filecache", "libarchive", "reference", "simplecache", "tar", "zip")


def expand(patterns: str | tuple[str, ...]) -> list[str]:
    """Returns the files that patterns name: with `{000..099}` and `{a,b}` braces, and `*` globs; folders stay folders.

    Args:
      patterns: local paths or URLs, or several joined by "::" as open_clip joins them.

    Returns:
      the paths: of braces in the order written, which must all exist; of a glob sorted. A local file or folder of
      exactly that name is meant itself.

    Raises:
      InputError: a pattern or a name matches nothing.

    >>> for name in ("a-08.tar", "a-09.tar", "a-10.tar"):
    ...     open(name, "w").close()
    >>> expand("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found: list[str] = []
    for pattern in split_joined([patterns] if isinstance(patterns, str) else patterns):
        if Folder(pattern).is_local and exists(pattern):
            found.append(pattern)
            continue
        names = expand_braces(pattern)
        plain = [name for name in names if not any(char in name for char in _WILD)]
        found_each = threads.prefetch(exists, plain, threads=Folder(pattern).threads)
        there = dict(zip(plain, found_each, strict=True))
        for name in names:
            if name in there and not there[name]:
                raise InputError(f"{name}: no such file or folder (from {pattern!r}); check the path")
            found += [name] if name in there else _glob(name)
    return found


def is_hidden(name: str) -> bool:
    """Returns whether a relative path names a file that systems and file managers leave, or is in such a folder.

    >>> is_hidden("a/._0.tar"), is_hidden(".ipynb_checkpoints/0.jpg"), is_hidden("@eaDir/0.jpg"), is_hidden("a/0.tar")
    (True, True, True, False)
    >>> is_hidden("./a/0.tar"), is_hidden("./.a/0.tar")
    (False, True)
    """
    return _HIDDEN.search(name) is not None


def split_joined(patterns: Sequence[str]) -> list[str]:
    """Splits patterns that are joined by "::"; a chained URL of fsspec stays whole.

    Raises:
      InputError: nothing stands on one side of a "::".

    >>> split_joined(["a/{0..9}.tar::b/*.tar", "simplecache::s3://c/0.tar::s3://d/0.tar"])
    ['a/{0..9}.tar', 'b/*.tar', 'simplecache::s3://c/0.tar', 's3://d/0.tar']
    """
    found: list[str] = []
    for pattern in patterns:
        chain = ""
        for part in pattern.split("::"):
            chain += part
            if part.partition("://")[0] in _WRAPPERS:
                chain += "::"
            else:
                found.append(chain)
                chain = ""
        if chain:
            found.append(chain.removesuffix("::"))
        if "::" in pattern and "" in found:
            raise InputError(f"{pattern}: nothing stands before or after a '::'; remove it")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Returns the names that a pattern's braces stand for, in the order written; ranges keep their leading zeros.

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


def _glob(pattern: str) -> list[str]:
    at = Folder(pattern)
    found = sorted(at.fs.glob(at.inner) if at.is_local else call(at, at.fs.glob, at.inner))
    if not found:
        raise InputError(f"{pattern}: the pattern matches no file; check the path, and quote it in the shell")
    start = at.inner.rfind("/", 0, min(at.inner.find(char) for char in _WILD if char in at.inner)) + 1
    is_meant = is_hidden(at.inner[start:])  # as in "pool/._*.tar"
    matches = [match for match in found if is_meant or not is_hidden(match[start:])]
    if not matches:
        raise InputError(f"{pattern}: only hidden files match; name those that are meant")
    if "**" in pattern:  # a folder stands for all in it
        folders = set(matches)
        matches = [match for match in matches if folders.isdisjoint(_parents(match))]
    return matches if at.is_local else [at.fs.unstrip_protocol(match) for match in matches]


def _parents(path: str) -> list[str]:
    return [path[:at] for at, char in enumerate(path) if char == "/"]
