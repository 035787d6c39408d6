"""Options of `select`, `uids`, `reshard` and `report`: subsets and what is made of them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import (
    NONE,
    File,
    Folder,
    SomeTables,
    StopAfter,
    Workers,
    require,
    require_positive,
    require_some,
    require_stop_after,
    split_assignment,
    unset,
)
from clipdata_jax.config.reading import MaybeSources, Reading, Sources
from clipdata_jax.errors import InputError, OnBad

Files = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILES..."), NONE]
Compared = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]FILE...", help_behavior_hint="(default: none)")]
Targets = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=PATH...", help_behavior_hint="(default: none)")]
MaybeFile = Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(needed without --explain)")]
UidsOperation = Literal["union", "intersect", "minus", "stats", "convert", "verify", "show"]
_SUFFIXES = (".npy", ".txt", ".csv", ".parquet")
_UidFiles = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILES...", help_behavior_hint="(at least one)")]
_File = Annotated[str | None, tyro.conf.arg(metavar="FILE"), NONE]
_Metadata = Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), NONE]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Select:
    """Selects a subset of a pool by a rule over its scores; writes its uids in DataComp's format."""

    scores: tyro.conf.Positional[SomeTables]
    """Score tables of one pool (folders written by `score`); several are joined row by row."""
    rule: str
    """Rule of what to keep, e.g. "top(neg_clip_loss, 0.3) >> top(norm_sim_inf_in1k, 0.2)"."""
    out: MaybeFile = None
    """Output .npy file of sorted uids (u8,u8), each once, or as often as soft_cap and hard_cap draw it."""
    columns: Files = ()
    """Columns joined by uid: .parquet with uid or uid_hi, uid_lo, .npy of u8,u8,f4; NAME=FILE: called NAME_column."""
    on: Annotated[str, tyro.conf.arg(metavar="NAME")] = "uid"
    """Another column to join --columns by, which the files and the metadata have: key, sha256, url, an owner's id."""
    metadata: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), unset("the one that was scored")] = None
    """The pool's metadata, for --on."""
    explain: bool = False
    """Print how many pairs each step would keep; write nothing."""
    memory_gb: float = 1.0
    """GiB of columns to hold in memory; the rest is read again in every pass. The result does not depend on it."""
    overwrite: bool = False
    """Replace the output file, whatever it is. Otherwise only one of the same command and options is replaced."""

    def __post_init__(self) -> None:
        require_some(self, "scores", "score table")
        require(self.memory_gb >= 0, "memory_gb", self.memory_gb, "0 or more")
        require(bool(self.columns) or self.on == "uid", "on", self.on, "no value without --columns, which it joins")
        require(self.on != "uid" or self.metadata is None, "metadata", self.metadata, "no value without --on")
        if self.out is None and not self.explain:
            raise InputError(
                "--out is missing; name the .npy file to write, or add --explain to only count what is kept"
            )
        require((self.out or ".npy").endswith(".npy"), "out", self.out, "a file name that ends in .npy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uids:
    """Combines, compares, converts and checks subset files of any number and size.

    union: uids in any of the files. intersect: uids in all of them. minus: uids of the first file that are in no other.
    stats: sizes, repeats and overlaps. convert: one file in another format. verify: checks that files are what
    training tools expect; exits with status 2 if one is not. show: what the metadata has of some uids.

    A file is .npy (u8,u8: DataComp's subset files), .txt (32 hex digits a line), .csv (a column uid) or .parquet (a
    column uid, or uid_hi and uid_lo). All but .npy may hold other ids, of which the uids are made, also in a column id.
    Folders of .parquet files, such as a pool's metadata or a score table, can be read too. All but sorted .npy files
    are sorted on disk first, in TMPDIR. Memory does not grow with the files.
    """

    operation: tyro.conf.Positional[Annotated[UidsOperation, tyro.conf.arg(metavar="OPERATION")]]
    """One of union, intersect, minus, stats, convert, verify, show."""
    files: tyro.conf.Positional[_UidFiles]
    """Files of uids, or folders of .parquet files; for show the uids themselves, or ids they were made of."""
    out: _File = None
    """Output .npy, .txt, .csv or .parquet file; sorted, and unique unless --multiset."""
    ids: _Metadata = None
    """convert: write the ids that the pool's metadata has beside the uids, in its order, as .txt, .csv or .parquet."""
    metadata: _Metadata = None
    """show: the pool's metadata."""
    uid_column: Annotated[str, tyro.conf.arg(metavar="NAME")] = "uid"
    """convert --ids, show: the metadata's column of ids, as given to score."""
    multiset: bool = False
    """Count repeated uids: union adds, intersect takes the minimum, minus subtracts; verify accepts them."""
    halves: bool = False
    """Write .parquet with the uint64 columns uid_hi and uid_lo, as in score tables, instead of uid."""
    pool: _File = None
    """verify: a file or folder that must contain all uids."""
    overwrite: bool = False
    """Replace the output file, whatever it is. Otherwise only one of the same command and options is replaced."""

    def __post_init__(self) -> None:
        require_some(self, "files", "uid" if self.operation == "show" else "file of uids")
        if self.operation in ("stats", "verify", "show"):
            require(self.out is None, "out", self.out, f"no value with {self.operation}, which writes no file")
        elif self.out is None:
            raise InputError(f"{self.operation} writes a file; name it with --out")
        elif not self.out.endswith(_SUFFIXES):
            raise InputError(f"--out is {self.out!r}, expected a file name that ends in {', '.join(_SUFFIXES)}")
        if self.operation == "convert" and len(self.files) > 1:
            raise InputError(f"convert takes one file, found {len(self.files)}; use union to combine several")
        if self.operation in ("intersect", "minus") and len(self.files) < 2:
            raise InputError(f"{self.operation} takes two files or more, found one")
        if self.pool is not None and self.operation != "verify":
            require(False, "pool", self.pool, "no value except with verify")
        require(self.ids is None or self.operation == "convert", "ids", self.ids, "no value except with convert")
        require(
            self.metadata is None or self.operation == "show", "metadata", self.metadata, "no value except with show"
        )
        if self.operation == "show" and self.metadata is None:
            raise InputError("show looks uids up in a pool's metadata; name it with --metadata")
        if self.ids is not None and (self.out or "").endswith(".npy"):
            raise InputError(f"--out is {self.out!r}, but ids are text: name a .txt, .csv or .parquet file")
        if self.halves and self.ids is not None:
            raise InputError("--halves writes uids, --ids the ids they were made of: leave one of them out")
        if self.halves and not (self.out or "").endswith(".parquet"):
            raise InputError("--halves needs an --out that ends in .parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reshard:
    """Writes tars that hold only the selected pairs; those of tars are copied byte for byte, headers included.

    A uid that occurs n times in the subset is written n times. Samples of the same key, copies or of several tars,
    become key, key-1, key-2 and so on: no two of the output share a key. Selected uids that no tar holds are counted:
    some images of a web pool can no longer be downloaded.
    """

    sources: tyro.conf.Positional[Sources]
    """The pool as it was embedded: tars ("{000..099}.tar", "*.tar", folders), parquet, tables, tfds:name/split."""
    subset: File
    """The .npy file of selected uids, as `select` or DataComp writes it."""
    out: Folder
    """Output folder of the tars."""
    reading: Reading = Reading()
    samples_per_tar: Annotated[int | None, tyro.conf.arg(metavar="INT"), unset("one tar for each source")] = None
    """Repack into tars of this many samples each. Uids derived from tar name and key are recorded in uids/."""
    shrink: Annotated[int | None, tyro.conf.arg(metavar="PIXELS"), unset("images as they are")] = None
    """Scale images whose shorter side is longer down to it, as JPEGs of quality 95: training then decodes faster."""
    tars_per_unit: int = 32
    """With --samples-per-tar: the number of sources repacked as one unit; its last tar may be shorter."""
    on_bad: OnBad = "stop"
    """Broken sources and samples: "stop" with a message, or "skip" and list them in the manifest."""
    digests: bool = False
    """Record digests of the input tars instead of sizes and modification times; reads them whole, which is slow."""
    dry_run: bool = False
    """Count what would be kept; write nothing."""
    processes: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT"),
        unset("one per core for local tars, each with at least four; else one"),
    ] = None
    """Processes that work on tars in parallel."""
    stop_after: StopAfter = None
    """Do N units, then stop with status 75. Run the command without it to continue; `plan` extrapolates from them."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_stop_after(self.stop_after)
        require_some(self, "sources", "tar, folder of tars, table or tfds:name/split")
        require_positive(self, "tars_per_unit")
        if self.processes is not None:
            require_positive(self, "processes")
        if self.samples_per_tar is not None:
            require_positive(self, "samples_per_tar")
        if self.shrink is not None:
            require_positive(self, "shrink")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Makes an HTML page of what was kept and dropped: counts, histograms, quadrants, images."""

    scores: tyro.conf.Positional[SomeTables]
    """Score tables (output folders of `score`) of one pool."""
    subset: File
    """Subset file (.npy) of the selected uids."""
    out: File
    """The .html file to write; self-contained, opens offline."""
    pool: MaybeSources = ()
    """What was embedded, for images and captions; without it the page shows figures only."""
    reading: Reading = Reading()
    compare: Compared = ()
    """Other subset files of the pool to compare with, each under NAME, else under its file name."""
    target: Targets = ()
    """Target images, as scored with --nearest: each pair is shown next to its nearest one."""
    duplicates: Annotated[str | None, tyro.conf.arg(metavar="FILE"), NONE] = None
    """The table that `dedup` wrote beside its subset: show its largest groups, and what is too near other sets."""
    against: Targets = ()
    """Images of the sets of `dedup --against`: each pair that is too near one is shown next to it."""
    on_bad: OnBad = "stop"
    """A broken source: "stop" with a message, or "skip" it and name it on the page and in its manifest."""
    title: str = "Data selection report"
    """Heading of the page."""
    images: int = 6
    """Images per row of the grids."""
    seed: int = 0
    """Seed for drawing the images shown."""
    overwrite: bool = False
    """Replace the output file, whatever it is. Otherwise only one of the same command and options is replaced."""

    def __post_init__(self) -> None:
        require_some(self, "scores", "score table")
        require_positive(self, "images")
        if len(self.targets()) < len(self.target) or (self.target and not self.pool):
            what = "each name once" if self.pool else "--pool too, whose images it is shown next to"
            require(False, "target", self.target, what)
        if self.against:
            expected = "no value without --pool and --duplicates, whose images it is shown next to"
            require(bool(self.pool and self.duplicates), "against", self.against, expected)
            names = [split_assignment(text, "against")[0] for text in self.against]
            require(len(set(names)) == len(names), "against", self.against, "each name once")
        names = [name for name, _ in self.compared()]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"--compare: two subset files are named {name!r}; rename one, e.g. other_{name}=FILE")

    def targets(self) -> dict[str, str]:
        """Name -> path of a target's images."""
        return dict(split_assignment(text, "target") for text in self.target)

    def near_sets(self) -> dict[str, str]:
        """Name -> path of the images of a set of --against."""
        return dict(split_assignment(text, "against") for text in self.against)

    def compared(self) -> list[tuple[str, str]]:
        """(name, file) of every subset to compare with."""
        found = []
        for given in self.compare:
            name, sign, path = given.partition("=")
            # An equals sign after a slash belongs to a path, as in runs/lr=1/subset.npy.
            if not sign or "/" in name:
                name, path = given.rsplit("/", 1)[-1].removesuffix(".npy"), given
            require(bool(name.strip() and path), "compare", given, "NAME=FILE or FILE")
            found.append((name.strip(), path))
        return found
