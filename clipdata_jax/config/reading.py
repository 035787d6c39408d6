"""Options of reading samples, the same for every command that does."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from clipdata_jax.config.base import unset

Sources = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCES...", help_behavior_hint="(at least one)")]
MaybeSources = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCES...", help_behavior_hint="(default: none)")]
_Name = tyro.conf.arg(metavar="NAME")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """Where sources have their images, captions and uids, if not in the usual places."""

    image_column: Annotated[str | None, _Name, unset("the first of file_name, filepath, image, path, ...")] = None
    """Tables and parquet: the column of images or image paths."""
    caption_column: Annotated[str | None, _Name, unset("the first of caption, text, title")] = None
    """Tables and parquet: the column of captions."""
    image_root: Annotated[str | None, tyro.conf.arg(metavar="FOLDER"), unset("the table's folder")] = None
    """Tables: the folder that image paths are relative to."""
    image_ext: Annotated[str | None, tyro.conf.arg(metavar="EXT"), unset("jpg, png, webp, ...")] = None
    """Tars: the extension of images, all after the key's first dot, such as input.jpg."""
    caption_ext: Annotated[str | None, tyro.conf.arg(metavar="EXT"), unset("txt")] = None
    """Tars: the extension of captions, such as outputs.txt."""
    uid_column: Annotated[str | None, _Name, unset("uid, if there is one")] = None
    """Tables and parquet: the column of ids that tell pairs apart."""
