"""Options of `dedup`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, get_args

import tyro

from clipdata_jax.config.base import (
    IDENTIFIER,
    NONE,
    File,
    Folder,
    StopAfter,
    Workers,
    require,
    require_stop_after,
    split_assignment,
    unset,
)
from clipdata_jax.errors import OnBad

By = Literal["image", "text", "both"]
GroupsBy = Literal["components", "greedy", "semdedup"]
_BEST = "best:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dedup:
    """Finds near-duplicates, keeps one pair of each group, and drops what is too close to evaluation images.

    Pairs are compared all with all, or inside clusters only. Writes the uids of the pairs that are kept, and beside
    them OUT.duplicates.parquet with a row for each duplicate.
    """

    pool: tyro.conf.Positional[Folder]
    """Folder of metadata shards (parquet and npz, as in DataComp), or of clip-retrieval embeddings."""
    out: File
    """The .npy file to write: uids as u8,u8, sorted, unique. Work files are kept next to it until it is done."""
    threshold: float = 0.95
    """Pairs are near-duplicates from this cosine on; 1 finds equal embeddings only."""
    by: By = "image"
    """What is compared: the images, the captions ("text"), or both, of which each must reach the threshold."""
    clusters: Annotated[int | None, tyro.conf.arg(metavar="INT"), unset("compare all pairs")] = None
    """Compare pairs of one cluster only, as SemDeDup does, of so many found by k-means."""
    centroids: Annotated[str | None, tyro.conf.arg(metavar="FILE"), NONE] = None
    """A .npy of centroids (k, dim), instead of --clusters."""
    groups: GroupsBy = "components"
    """"components": connected pairs; "greedy": a pair goes if one that stays is near; "semdedup": if any better is."""
    keep: Annotated[
        str | None, tyro.conf.arg(metavar="best:COLUMN"), unset("the lowest uid; semdedup: far from the centroid")
    ] = None
    """Which pair of a group to keep: best:COLUMN, the one with the highest score."""
    scores: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), NONE] = None
    """The score table of the pool that has the column of --keep."""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=PATH..."), NONE] = ()
    """Image sets to keep clear of: embeddings (.npy, .npz, output of `embed`) or images; near ones are dropped."""
    target_model: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), NONE] = None
    """The pool's model, to embed images of --against with."""
    target_cache: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), unset("~/.cache/clipdata/targets")] = None
    """Cache for embeddings of images of --against."""
    tag: Annotated[str | None, tyro.conf.arg(metavar="TAG"), NONE] = None
    """The model whose embeddings to use, if the pool has several, e.g. b32 or l14."""
    image_key: Annotated[str | None, tyro.conf.arg(metavar="NAME"), unset("<tag>_img")] = None
    """The array of image embeddings in each .npz, if it has another name than <tag>_img."""
    text_key: Annotated[str | None, tyro.conf.arg(metavar="NAME"), unset("<tag>_txt")] = None
    """The array of caption embeddings, likewise."""
    uid_column: Annotated[str, tyro.conf.arg(metavar="NAME")] = "uid"
    """The metadata's column of ids, of which uids are made: text, integers or UUIDs."""
    seed: int = 0
    """Seed of k-means."""
    normalize: bool = False
    """Scale embeddings to unit norm instead of leaving out those that aren't."""
    force: bool = False
    """Compare even if a set of --against was embedded by another model than the pool."""
    max_bad_rows: float = 0.01
    """Largest share of bad embeddings (not finite, zero, not unit), which are no duplicates, before the run stops."""
    on_bad: OnBad = "stop"
    """Broken shards: "stop" with a message, or "skip" and list them in the manifest."""
    overwrite: bool = False
    """Replace the output, whatever it is. Otherwise only one of the same command and options is replaced."""
    stop_after: StopAfter = None
    """Do N units, then stop with status 75. Run the command without it to continue."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require(self.out.endswith(".npy"), "out", self.out, "a file name that ends in .npy")
        expected = "a cosine above -1 and at most 1"
        require(-1 < self.threshold <= 1, "threshold", self.threshold, expected)
        require(self.by in get_args(By), "by", self.by, f"one of {', '.join(get_args(By))}")
        require(self.groups in get_args(GroupsBy), "groups", self.groups, f"one of {', '.join(get_args(GroupsBy))}")
        if self.clusters is not None:
            require(self.clusters >= 2, "clusters", self.clusters, "a whole number of at least 2")
            require(self.centroids is None, "centroids", self.centroids, "no value with --clusters")
        if self.groups == "semdedup":
            expected = "a number, or --centroids a file, with --groups semdedup"
            require(self.is_clustered, "clusters", self.clusters, expected)
        if self.keep is not None:
            good = self.keep.startswith(_BEST) and bool(IDENTIFIER.fullmatch(self.keep.removeprefix(_BEST)))
            require(good, "keep", self.keep, "best:COLUMN, such as best:neg_clip_loss")
            require(self.scores is not None, "scores", self.scores, f"the folder of scores with --keep {self.keep}")
        else:
            require(self.scores is None, "scores", self.scores, "no value without --keep best:COLUMN")
        names = [split_assignment(text, "against")[0] for text in self.against]
        require(len(set(names)) == len(names), "against", self.against, "each name once")
        require(0 <= self.max_bad_rows <= 1, "max_bad_rows", self.max_bad_rows, "a share between 0 and 1")
        require_stop_after(self.stop_after)

    @property
    def is_clustered(self) -> bool:
        """Whether pairs are compared inside clusters only."""
        return self.clusters is not None or self.centroids is not None

    def sets(self) -> dict[str, str]:
        """Name -> path of a set of --against."""
        return dict(split_assignment(text, "against") for text in self.against)

    @property
    def column(self) -> str | None:
        """The score that decides which pair of a group stays; None for their uids."""
        return None if self.keep is None else self.keep.removeprefix(_BEST)
