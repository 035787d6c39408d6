"""Options of `embed`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from clipdata_jax.config.base import (
    IDENTIFIER,
    NONE,
    Profile,
    StopAfter,
    Workers,
    name_advice,
    require,
    require_positive,
    require_some,
    require_stop_after,
)
from clipdata_jax.config.reading import Reading, Sources
from clipdata_jax.errors import OnBad

Models = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[TAG=]FOLDER...", help_behavior_hint="(at least one)")]
Output = Annotated[str, tyro.conf.arg(metavar="FOLDER|FILE")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
    """Computes the CLIP embeddings of every image and caption of a pool.

    Writes one metadata shard (parquet and npz, as in DataComp) per tar, or per 10,000 images of other sources.
    """

    sources: tyro.conf.Positional[Sources]
    """Tars, parquet with images inside, tables of image paths (.csv, .tsv, .parquet), folders, tfds:name/split."""
    model: Models
    """CLIP or SigLIP checkpoints (transformers or open_clip), all in one pass; TAG, else "clip", names the columns."""
    out: Output
    """Folder to write the metadata shards to; with --images-only also a single .npz, or a .npy for one model."""
    images_only: bool = False
    """Embed images without captions, for a NormSim target; SOURCES may then also be plain folders of images."""
    reading: Reading = Reading()
    batch_size: int = 256
    """Images per device and step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the towers; embeddings are stored as float16."""
    decoders: int = 0
    """Threads that decode images; 0 means one per core. The result does not depend on it."""
    on_bad: OnBad = "stop"
    """Broken tars, images and captions: "stop" with a message, or "skip" and list them in the manifest."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N"), NONE] = None
    """Embed only the first N samples, to try the command."""
    profile: Profile = None
    """Trace a few batches with `jax.profiler` into this local folder, for TensorBoard or Perfetto."""
    stop_after: StopAfter = None
    """Do N units, then stop with status 75. Run the command without it to continue; `plan` extrapolates from them."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_stop_after(self.stop_after)
        require_some(self, "sources", "tar, folder of tars, table or tfds:name/split")
        require(bool(self.model), "model", self.model, "the folder of a checkpoint")
        tags = [tag for tag, _ in map(_split_tag, self.model)]
        require(len(set(tags)) == len(tags), "model", self.model, "TAG=FOLDER with distinct tags")
        require_positive(self, "batch_size", *(["limit"] if self.limit is not None else []))
        require(self.decoders >= 0, "decoders", self.decoders, "0 or more")
        if self.out.endswith((".npz", ".npy")):
            require(self.images_only, "out", self.out, "a folder; single files are for --images-only")
        if self.out.endswith(".npy"):
            require(len(tags) == 1, "out", self.out, "a .npz or a folder for several models")

    def models(self) -> dict[str, str]:
        """Tag -> checkpoint."""
        return dict(map(_split_tag, self.model))


def _split_tag(text: str) -> tuple[str, str]:
    tag, sign, folder = text.partition("=")
    if sign and folder and "/" not in tag:
        words = "TAG=FOLDER where TAG consists of letters, digits and _"
        expected = f"{words}{name_advice(tag)} (write ./a=b for a folder a=b)"
        require(bool(IDENTIFIER.fullmatch(tag)), "model", text, expected)
        return tag, folder
    return "clip", text
