"""Options of `uids`: sets of uids."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import NONE, require, require_some
from clipdata_jax.errors import InputError

UidsOperation = Literal["union", "intersect", "minus", "stats", "convert", "verify"]
_SUFFIXES = (".npy", ".txt", ".parquet")
_Files = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILES...", help_behavior_hint="(at least one)")]

_File = Annotated[str | None, tyro.conf.arg(metavar="FILE"), NONE]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uids:
    """Combines, compares, converts and checks subset files of any number and size.

    union: uids in any of the files. intersect: uids in all of them. minus: uids of the first file that are in no other.
    stats: sizes, repeats and overlaps. convert: one file in another format. verify: checks that files are what
    training tools expect; exits with status 2 if one is not.

    A file is .npy (u8,u8: DataComp's subset files), .txt (32 hex digits a line) or .parquet (a column uid, or uid_hi
    and uid_lo); folders of .parquet files, such as a pool's metadata or a score table, can be read too. All but sorted
    .npy files are sorted on disk first, in TMPDIR. Memory does not grow with the files.
    """

    operation: tyro.conf.Positional[Annotated[UidsOperation, tyro.conf.arg(metavar="OPERATION")]]
    """One of union, intersect, minus, stats, convert, verify."""
    files: tyro.conf.Positional[_Files]
    """Files of uids, and folders of .parquet files."""
    out: _File = None
    """The .npy, .txt or .parquet file to write: sorted; unique unless --multiset."""
    multiset: bool = False
    """Count repeated uids: union adds, intersect takes the minimum, minus subtracts; verify accepts them."""
    halves: bool = False
    """Write .parquet with columns uid_hi and uid_lo (uint64), as score tables have them, instead of uid."""
    pool: _File = None
    """verify: a file or folder that must contain all uids."""

    def __post_init__(self) -> None:
        require_some(self, "files", "file of uids")
        if self.operation in ("stats", "verify"):
            require(self.out is None, "out", self.out, f"nothing with {self.operation}, which writes no file")
        elif self.out is None:
            raise InputError(f"{self.operation} writes a file: say where with --out")
        elif not self.out.endswith(_SUFFIXES):
            raise InputError(
                f"--out is {self.out!r}, expected a file name that ends in {', '.join(_SUFFIXES)}"
            )
        if self.operation == "convert" and len(self.files) > 1:
            raise InputError(
                f"convert takes one file, found {len(self.files)}; use union to put files together"
            )
        if self.operation in ("intersect", "minus") and len(self.files) < 2:
            raise InputError(f"{self.operation} takes two files or more, found one")
        if self.pool is not None and self.operation != "verify":
            require(False, "pool", self.pool, "nothing but with verify")
        if self.halves and not (self.out or "").endswith(".parquet"):
            raise InputError("--halves is about .parquet, but that is not what is written")
