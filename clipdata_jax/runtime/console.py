"""Terminal output: progress bars, text tables, counts, and text made safe to print."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

HIDDEN = "hidden or system"
"""Name in counts of files that begin with a dot, or that systems and file managers leave."""
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\n\t]")


_quiet = False


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Shows no bars in the block, and nothing that is printed to standard output or said for the log."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        _quiet = before


def bar(*, total: int | None, unit: str, name: str, done: int = 0) -> Any:
    """Makes a tqdm bar with rate and time left, to `update(n)`; in a log file, a line every ten seconds.

    The total is None if it isn't known, and includes what was `done` before; nothing is shown if none is left.
    """
    import tqdm as tqdms

    notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None
    tqdm = importlib.import_module("tqdm.notebook").tqdm if notebook else tqdms.tqdm
    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    shown: dict[str, Any] = {} if live else {"file": _Lines(), "mininterval": 10.0, "ncols": 100}
    shown |= {"desc": name, "initial": done, "disable": _quiet or total == done}
    return tqdm(total=total, unit=unit, unit_scale=True, leave=True, **shown)


class _Lines:
    """Standard error for a bar in a log file: a new line for each update instead of overwriting one."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        counts = re.sub(r"\|.*\|", "", line.partition("[")[0])  # the bar is as wide as rate and times leave room
        if line and (counts != self._last or not counts):  # tqdm closes a bar with its last line again
            sys.stderr.write(f"{line}\n")
        self._last = counts or self._last

    def flush(self) -> None:
        sys.stderr.flush()


def printable(text: str) -> str:
    """Escapes control and invisible characters, so that no text can steer a terminal."""
    return _UNPRINTABLE.sub(_show, text)


def _show(match: re.Match[str]) -> str:
    char = match[0]
    shown = char.isprintable() or unicodedata.category(char) == "Zs"
    return char if shown else char.encode("unicode_escape", "replace").decode()


@contextlib.contextmanager
def all_printable() -> Iterator[None]:
    """Makes all that is printed in the block `printable`: captions, keys and column names are untrusted text."""
    with contextlib.redirect_stdout(_Printable(sys.stdout)), contextlib.redirect_stderr(_Printable(sys.stderr)):
        yield


class _Printable:
    """A stream without control characters, except that a bar may return to the start of its line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write("\r".join(map(printable, text.split("\r"))))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str, *, log: bool = False) -> None:
    """Prints a line for code outside commands/, to standard error if it belongs to the log rather than the result."""
    if not _quiet:
        print(text, file=sys.stderr if log else None)


def table(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Formats rows of cells, the first one being the head, in columns.

    Args:
      rows: of equal length.
      left: columns aligned to the left, negative ones counted from the end; the others are aligned to the right.

    >>> print(table([["step", "kept"], ["all", "6,000"], ["top", "12"]]))
    step   kept
    -----------
    all   6,000
    top      12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust if {i, i - len(widths)} & set(left) else str.rjust for i in range(len(widths))]
    lines = [
        "  ".join(fit(cell, width) for fit, cell, width in zip(align, row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def counted(number: int, noun: str) -> str:
    """Formats a number with its noun: "1 tar", "1,000 tars", "2 batches"."""
    ending = "" if number == 1 else "es" if noun.endswith(("ch", "ss")) else "s"
    return f"{number:,} {noun}{ending}"


def percent(share: float) -> str:
    """Formats a share: "12.34 %"."""
    return f"{share:.2%}".replace("%", " %")


def skipped(listed: str, **reasons: Sequence[str]) -> str:
    """Formats what was skipped and why, in a sentence; "" if nothing was.

    Args:
      listed: name of the file that lists all of it.
      reasons: noun -> the reason for each skipped thing of that kind.

    >>> skipped("_manifest.json", tar=["a.tar: damaged"], sample=[])
    'Skipped 1 tar, listed in _manifest.json; the first: a.tar: damaged'
    """
    given = {noun: texts for noun, texts in reasons.items() if texts}
    if not given:
        return ""
    counts = " and ".join(counted(len(texts), noun) for noun, texts in given.items())
    return f"Skipped {counts}, listed in {listed}; the first: {next(iter(given.values()))[0]}"


def skipped_samples(samples: Iterable[Mapping[str, str]]) -> list[str]:
    """Formats a manifest's `skipped_samples`, each with "tar", "key" and "reason"."""
    return [f"{bad['tar']}: sample {bad['key']!r}: {bad['reason']}" for bad in samples]


def passed_over(counts: Mapping[str, int]) -> str:
    """Formats the number of files that were not taken for images; "" if all were.

    Args:
      counts: ending of the names, or `HIDDEN` -> number of files.

    >>> print(passed_over({".json": 2, ".txt": 3, HIDDEN: 1}))
    Passed over 5 files that are not images: .txt 3, .json 2; and 1 hidden or system file
    """
    others = sorted(((name, n) for name, n in counts.items() if name != HIDDEN), key=lambda one: (-one[1], one[0]))
    parts = []
    if total := sum(number for _, number in others):
        kinds = ", ".join(f"{name} {number:,}" for name, number in others)
        parts.append(f"{counted(total, 'file')} that {'is not an image' if total == 1 else 'are not images'}: {kinds}")
    if HIDDEN in counts:
        parts.append(counted(counts[HIDDEN], f"{HIDDEN} file"))
    return f"Passed over {'; and '.join(parts)}" if parts else ""
