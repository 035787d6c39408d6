"""Which of the two layouts a checkpoint folder has, and where its shape and weights lie."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from clipdata_jax.errors import InputError
from clipdata_jax.models.checkpoint_files import (
    CONFIG,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    WEIGHTS,
    read_json,
)
from clipdata_jax.models.clip_config import CLIPConfig
from clipdata_jax.models.open_clip_config import config_from_open_clip, open_clip_text_prefix
from clipdata_jax.models.transformers_config import config_from_transformers, is_siglip
from clipdata_jax.models.weight_tables import CLIP_TABLE, SIGLIP_TABLE, WeightTable, open_clip_table

Convention = Literal["transformers", "open_clip"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# What the shape is read from and what the weights are called, by layout.
_NAMES: dict[Convention, tuple[str, str]] = {
    "transformers": (CONFIG, WEIGHTS),
    "open_clip": (OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A checkpoint folder, its layout ("transformers" or "open_clip") and the content of its config file."""

    folder: Path
    kind: Convention
    content: dict[str, Any]

    @property
    def config_file(self) -> Path:
        """The file that says the shape."""
        return self.folder / _NAMES[self.kind][0]

    def config(self) -> CLIPConfig:
        """The shape of the model.

        Raises:
          InputError: the file is broken, or of another kind of model.
        """
        read = config_from_open_clip if self.kind == "open_clip" else config_from_transformers
        try:
            return read(self.content)
        except InputError as error:
            raise InputError(f"{self.config_file}: {error}") from error

    def table(self) -> WeightTable:
        """Which tensor is which parameter."""
        if self.kind == "open_clip":
            return open_clip_table(text_prefix=open_clip_text_prefix(self.content))
        return SIGLIP_TABLE if is_siglip(self.config()) else CLIP_TABLE

    def weights(self) -> list[Path]:
        """The weights: one file, or the index and the files that it names.

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
                f"never loaded; convert them once where you trust them, with {self._rewrite(pickles[0])}"
            )
        raise InputError(
            f"{self.folder} has no {file.name}: put the model's weights there, in safetensors' format"
        )

    def _rewrite(self, pickle: str) -> str:
        if self.kind == "transformers":
            return (
                'python -c "from transformers import AutoModel as M; '
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
    """The layout of a folder, None if it holds no model's config.

    Of a folder with both, that whose weights are there in safetensors' format, transformers' before open_clip's.

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
    # open_clip's folders may also hold a config.json of some other library.
    theirs, open_clip = found
    if theirs.content.get("model_type") not in ("clip", "siglip"):
        return open_clip
    there = {layout.kind: any(folder.glob(f"{_NAMES[layout.kind][1]}*")) for layout in found}
    return open_clip if there["open_clip"] and not there["transformers"] else theirs


def read_layout(folder: Path) -> Layout:
    """The layout of a folder that must hold a model.

    Raises:
      InputError: there is no config file, or it can't be read.
    """
    layout = find_layout(folder)
    if layout is None:
        within = folder / "model"  # where `train` puts it
        there = f"; {within} is a model: give that" if find_layout(within) else ""
        raise InputError(
            f"{folder} has no {CONFIG} and no {OPEN_CLIP_CONFIG}: expected transformers' layout, {CONFIG} "
            f"beside {WEIGHTS}, or open_clip's, {OPEN_CLIP_CONFIG} beside {OPEN_CLIP_WEIGHTS}{there}"
        )
    return layout


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index} has no weight_map: copy it again")
    shards = []
    for name in sorted(set(map(str, names.values()))):
        if Path(name).name != name:
            raise InputError(f"{index} names {name!r}, expected a file beside it")
        shards.append(index.with_name(name))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(
            f"{index.parent} lacks {', '.join(missing)}, which {index.name} names: copy them too"
        )
    return shards
