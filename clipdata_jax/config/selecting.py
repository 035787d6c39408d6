"""Options of what turns scores into a subset: `select`, `reshard` and `report`."""

from __future__ import annotations

import dataclasses

import tyro

from clipdata_jax.config.base import (
    File,
    Folder,
    OnBad,
    SomeTables,
    SomeTars,
    Tars,
    Workers,
    require_positive,
    require_some,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Select:
    """Cuts a subset from score tables by a rule, and writes its uids in DataComp's form."""

    scores: tyro.conf.Positional[SomeTables]
    """Score tables (folders that `score` wrote) of one pool; several join by part name and position."""
    rule: str
    """What to keep, e.g. "top(neg_clip_loss, 0.3) >> top(norm_sim_inf_in1k, 0.2)"."""
    out: File
    """The .npy file to write: uids as u8,u8, sorted, unique."""

    def __post_init__(self) -> None:
        require_some(self, "scores", "score table")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reshard:
    """Writes tars that hold only the selected pairs, their members byte for byte as they were."""

    tars: tyro.conf.Positional[SomeTars]
    """The pool's webdataset tars: files, folders of tars, "{000..099}.tar" or "*.tar" patterns."""
    subset: File
    """The .npy file of selected uids (`select` writes it; DataComp's subset files work too)."""
    out: Folder
    """Folder to write the tars to."""
    on_bad: OnBad = "stop"
    """A broken tar: "stop" with a message, or "skip" it and list it in the manifest."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_some(self, "tars", "tar or folder of tars")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Makes one HTML page that shows what was kept and dropped: counts, histograms, quadrants, pictures."""

    scores: tyro.conf.Positional[SomeTables]
    """Score tables of one pool."""
    subset: File
    """The .npy file of selected uids."""
    out: File
    """The .html file to write; it opens offline."""
    tars: Tars = ()
    """The pool's tars, for pictures and captions; without them the page has figures only."""
    title: str = "Data selection report"
    """The page's heading."""
    pictures: int = 6
    """Pictures in each row of the grids."""
    seed: int = 0
    """Seed of the choice of pictures."""

    def __post_init__(self) -> None:
        require_some(self, "scores", "score table")
        require_positive(self, "pictures")
