"""Options of `embed`: from pictures and captions to embeddings."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tyro

from clipdata_jax.config.base import (
    IDENTIFIER,
    Folder,
    OnBad,
    SomeTars,
    Workers,
    require,
    require_positive,
    require_some,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
    """Computes the CLIP embeddings of every picture and caption of a pool.

    Writes one metadata shard (parquet and npz, as DataComp's) per tar.
    """

    tars: tyro.conf.Positional[SomeTars]
    """Webdataset tars: files, folders of tars, "{000..099}.tar" or "*.tar" patterns."""
    model: Folder
    """Folder of a CLIP or SigLIP checkpoint, transformers' or open_clip's, its tokenizer files included."""
    out: Folder
    """Folder to write the metadata shards to."""
    images_only: bool = False
    """Embed pictures without captions, for a NormSim target: tars, or plain folders of pictures."""
    tag: str = "clip"
    """Name of the model in the columns: "<tag>_img", "<tag>_txt", "clip_<tag>_similarity_score"."""
    batch_size: int = 256
    """Pictures a device takes at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The number format the towers compute in; embeddings are stored as float16."""
    decoders: int = 0
    """Threads that decode pictures; 0 means one a core. The result does not depend on it."""
    on_bad: OnBad = "stop"
    """A broken tar, picture or caption: "stop" with a message, or "skip" it and list it in the manifest."""
    workers: Workers = Workers()

    def __post_init__(self) -> None:
        require_some(self, "tars", "tar or folder of tars")
        require(bool(IDENTIFIER.fullmatch(self.tag)), "tag", self.tag, "a plain word")
        require_positive(self, "batch_size")
        require(self.decoders >= 0, "decoders", self.decoders, "0 or more")
