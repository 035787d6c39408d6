"""What a person reads while a command works and when it is done."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

_UNPRINTABLE = re.compile(r"[^\x20-\x7e\n\t]")


def bar(*, total: int, unit: str, name: str) -> Any:
    """A tqdm bar with rate and time left, to `update(n)`; a log file gets a line every ten seconds.

    Where nothing is left to do, none is shown.
    """
    import tqdm as tqdms

    notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None
    tqdm = importlib.import_module("tqdm.notebook").tqdm if notebook else tqdms.tqdm
    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    shown = {} if live else {"file": _Lines(), "mininterval": 10.0, "ncols": 100}
    return tqdm(total=total, unit=unit, unit_scale=True, desc=name, leave=True, disable=not total, **shown)


class _Lines:
    """Standard error for a bar in a log file: lines one below the other, not one written over and over."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def printable(text: str) -> str:
    """Text that a terminal shows and doesn't obey: control and invisible characters written out."""
    return _UNPRINTABLE.sub(_show, text)


def _show(match: re.Match[str]) -> str:
    char = match[0]
    shown = char.isprintable() or unicodedata.category(char) == "Zs"
    return char if shown else char.encode("unicode_escape", "replace").decode()


@contextlib.contextmanager
def all_printable() -> Iterator[None]:
    """Whatever is printed in the block is `printable`: captions, keys, columns and names are strangers' text."""
    with (
        contextlib.redirect_stdout(_Printable(sys.stdout)),
        contextlib.redirect_stderr(_Printable(sys.stderr)),
    ):
        yield


class _Printable:
    """A stream that control characters don't reach; a bar may go back to the start of its line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write("\r".join(map(printable, text.split("\r"))))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first being the head, in columns: the first column to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 tar", "1,000 tars", "2 batches"."""
    ending = "" if number == 1 else "es" if noun.endswith(("ch", "ss")) else "s"
    return f"{number:,} {noun}{ending}"
