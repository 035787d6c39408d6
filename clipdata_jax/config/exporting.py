"""Options of `export`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from clipdata_jax.config.base import NONE, File, SomeTables, require, require_some, unset
from clipdata_jax.errors import InputError

SUFFIXES = (".csv", ".jsonl", ".parquet")
_Ranked = Annotated[tuple[int, str], tyro.conf.arg(metavar="N COLUMN", help_behavior_hint="(default: all)")]
_ALL = (0, "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Writes scores as a table to read or to load elsewhere: .csv, .jsonl or .parquet, one row per pair.

    The columns are uid, what --metadata has of id (the owner's), source (the tar or other file), key, caption and url,
    and every score.
    """

    scores: tyro.conf.Positional[SomeTables]
    """Score tables of one pool (folders written by `score`); several are joined row by row."""
    out: File
    """The file to write; its ending, .csv, .jsonl or .parquet, is its form."""
    subset: Annotated[str | None, tyro.conf.arg(metavar="FILE"), unset("all pairs")] = None
    """Subset file of the pairs to export, or another file of uids that `uids` reads."""
    metadata: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), NONE] = None
    """The metadata that was scored: adds source, key, caption and url."""
    top: _Ranked = _ALL
    """Only the N pairs that are highest in a column, the highest first."""
    bottom: _Ranked = _ALL
    """Only the N pairs that are lowest in a column, the lowest first."""
    overwrite: bool = False
    """Replace the output file, whatever it is. Otherwise only one of the same command and options is replaced."""

    def __post_init__(self) -> None:
        require_some(self, "scores", "score table")
        require(self.out.endswith(SUFFIXES), "out", self.out, f"a file name that ends in {', '.join(SUFFIXES)}")
        if _ALL not in (self.top, self.bottom):
            raise InputError("--top and --bottom: give one of them; two exports make two files")
        for name in ("top", "bottom"):
            count, column = getattr(self, name)
            require(count >= 1 or not column, name, count, "a number of pairs, at least 1, and a column")

    def ranked(self) -> tuple[int, str, bool] | None:
        """How many pairs, by which column, and whether the highest; None for all."""
        count, column = self.bottom if self.top == _ALL else self.top
        return (count, column, self.top != _ALL) if count else None
