"""The two layouts of a checkpoint folder, transformers' and open_clip's: config file, weights and weight table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from clipdata_jax.errors import InputError
from clipdata_jax.models.checkpoint_files import CONFIG, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS, read_json
from clipdata_jax.models.clip_config import CLIPConfig
from clipdata_jax.models.open_clip_config import (
    Cleaning,
    config_from_open_clip,
    open_clip_cleaning,
    open_clip_text_prefix,
)
from clipdata_jax.models.transformers_config import FAMILIES, config_from_transformers, is_siglip, model_family
from clipdata_jax.models.weight_tables import CLIP_TABLE, SIGLIP_TABLE, WeightTable, open_clip_table

Convention = Literal["transformers", "open_clip"]
_Read = TypeVar("_Read")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# The names of the config file and of the weights.
_NAMES: dict[Convention, tuple[str, str]] = {
    "transformers": (CONFIG, WEIGHTS),
    "open_clip": (OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A checkpoint folder, the kind of its layout, and the content of its config file."""

    folder: Path
    kind: Convention
    content: dict[str, Any]

    @property
    def config_file(self) -> Path:
        """The file with the model's shape."""
        return self.folder / _NAMES[self.kind][0]

    def config(self) -> CLIPConfig:
        """Reads the shape of the model.

        Raises:
          InputError: the file is broken, or of another kind of model.
        """
        return self._read(config_from_open_clip if self.kind == "open_clip" else config_from_transformers)

    @property
    def family(self) -> str:
        """The kind of model: "open_clip", or the family of transformers' model."""
        return self.kind if self.kind == "open_clip" else model_family(self.content)[0]

    def cleaning(self) -> Cleaning | None:
        """How open_clip cleans captions for a tokenizer that is not CLIP's; None otherwise.

        Raises:
          InputError: settings of the tokenizer are not supported.
        """
        return self._read(open_clip_cleaning) if self.kind == "open_clip" else None

    def table(self) -> WeightTable:
        """The table of tensors and parameters."""
        config = self.config()
        if self.kind == "open_clip":
            return open_clip_table(
                text_prefix=open_clip_text_prefix(self.content),
                timm=is_siglip(config),
                projection_bias=config.text is not None and config.text.projection_bias,
            )
        return SIGLIP_TABLE if is_siglip(config) else CLIP_TABLE

    @property
    def prefix(self) -> str:
        """The prefix of the table's names that a file of one tower may leave out, else empty."""
        tower = None if self.kind == "open_clip" else model_family(self.content)[1]
        return f"{tower}_model." if tower else ""

    def weights(self) -> list[Path]:
        """Finds the weights: one file, or an index and the files that it names.

        Raises:
          InputError: a file is missing, or there are only pickles.
        """
        file = self.folder / _NAMES[self.kind][1]
        index = file.with_name(f"{file.name}.index.json")
        if file.is_file():
            return [file]
        if index.is_file():
            return [index, *_shards(index)]
        if pickles := sorted(found.name for pattern in _PICKLES for found in self.folder.glob(pattern)):
            raise InputError(
                f"{self.folder} has no {file.name}, only {', '.join(pickles)}: pickles can run any code and are "
                f"never loaded; if you trust them, convert them with {self._conversion(pickles[0])}"
            )
        raise InputError(f"{self.folder} has no {file.name}; put the model's weights there in safetensors format")

    def _read(self, reader: Callable[[dict[str, Any]], _Read]) -> _Read:
        try:
            return reader(self.content)
        except InputError as error:
            raise InputError(f"{self.config_file}: {error}") from error

    def _conversion(self, pickle: str) -> str:
        if self.kind == "transformers":
            # AutoModel leaves out the projection of a single tower.
            named = self.content.get("architectures") if self.prefix else None
            name = named[0] if isinstance(named, list) and named and str(named[0]).isidentifier() else "AutoModel"
            return (
                f'python -c "from transformers import {name} as M; '
                f"M.from_pretrained('{self.folder}').save_pretrained('{self.folder}')\""
            )
        return (
            'python -c "import torch; from safetensors.torch import save_file; '
            f"s = torch.load('{self.folder / pickle}', map_location='cpu', weights_only=True); "
            "s = s.get('state_dict', s); "
            "save_file({k.removeprefix('module.'): v.clone().contiguous() for k, v in s.items()}, "
            f"'{self.folder / OPEN_CLIP_WEIGHTS}')\""
        )


def find_layout(folder: Path) -> Layout | None:
    """Finds the layout of a folder; None if it has no model's config.

    In a folder with both layouts, the one with safetensors weights; transformers' if both have them.

    Raises:
      InputError: a config file can't be read.
    """
    found = [
        Layout(folder=folder, kind=kind, content=read_json(folder / config))
        for kind, (config, _) in _NAMES.items()
        if (folder / config).is_file()
    ]
    if len(found) < 2:
        return found[0] if found else None
    # open_clip's folders may also hold a config.json of another library.
    theirs, open_clip = found
    if model_family(theirs.content)[0] not in FAMILIES:
        return open_clip
    there = {layout.kind: any(folder.glob(f"{_NAMES[layout.kind][1]}*")) for layout in found}
    return open_clip if there["open_clip"] and not there["transformers"] else theirs


def read_layout(folder: Path) -> Layout:
    """Reads the layout of a folder that must hold a model.

    Raises:
      InputError: the config file is missing or can't be read.
    """
    layout = find_layout(folder)
    if layout is None:
        within = folder / "model"  # where `train` puts it
        hint = f"; give {within} instead" if find_layout(within) else ""
        raise InputError(
            f"{folder} has no {CONFIG} and no {OPEN_CLIP_CONFIG}: expected transformers' layout, {CONFIG} "
            f"and {WEIGHTS}, or open_clip's, {OPEN_CLIP_CONFIG} and {OPEN_CLIP_WEIGHTS}{hint}"
        )
    return layout


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index} has no weight_map; copy it again")
    shards = []
    for name in sorted(set(map(str, names.values()))):
        if Path(name).name != name:
            raise InputError(f"{index} names {name!r}, expected a file in the same folder")
        shards.append(index.with_name(name))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(f"{index.parent} lacks {', '.join(missing)}, named by {index.name}; copy them too")
    return shards
