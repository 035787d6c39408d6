"""From a checkpoint folder to a model."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from clipdata_jax.errors import InputError
from clipdata_jax.models.clip import CLIP
from clipdata_jax.models.clip_config import CLIPConfig
from clipdata_jax.models.files import WEIGHTS, checkpoint_folder, config_file, read_config
from clipdata_jax.models.image_transform import read_preprocessor
from clipdata_jax.models.weights import load_weights

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CHUNK = 1 << 20


def load_clip(
    path: str | Path, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike | None = None
) -> CLIP:
    """Reads a CLIP checkpoint.

    Args:
      path: a folder in transformers' layout (`config.json`, `model.safetensors`, and
        `preprocessor_config.json` where mean and std are not OpenAI's), or the name of a repository on the
        Hugging Face hub, "owner/name".
      dtype: what the towers compute in.
      param_dtype: what the parameters are kept in; default `dtype`. Embeddings are float32 in any case.

    Returns:
      The model, on the default device.

    Raises:
      InputError: a file is missing, broken, a pickle, of another kind of model, or does not fit the others.
    """
    folder = checkpoint_folder(path)
    config = _with_image_moments(read_config(folder), folder)
    return load_weights(
        _weights_file(folder), config, dtype=dtype, param_dtype=dtype if param_dtype is None else param_dtype
    )


def checkpoint_digest(path: str | Path) -> str:
    """What tells two checkpoints apart: a digest of the bytes of `config.json` and the weights.

    Args:
      path: as for `load_clip`.

    Returns:
      "sha256:" and 64 hex digits.

    Raises:
      InputError: a file is missing.
    """
    folder = checkpoint_folder(path)
    digest = hashlib.sha256()
    for file in (config_file(folder), _weights_file(folder)):
        # Name and size go first, so that bytes moved from one file to the next give another digest.
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _with_image_moments(config: CLIPConfig, folder: Path) -> CLIPConfig:
    """The config with the mean and std that the image processor's file says, if there is one."""
    given = read_preprocessor(folder) or {}
    try:
        moments = {
            name: tuple(map(float, given[name])) for name in ("image_mean", "image_std") if name in given
        }
        return dataclasses.replace(config, **moments)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the image processor's file in {folder} has bad image_mean or image_std: {error}"
        ) from error


def _weights_file(folder: Path) -> Path:
    file = folder / WEIGHTS
    if file.is_file():
        return file
    rewrite = (
        f'python -c "from transformers import CLIPModel as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}', max_shard_size='99GB')\""
    )
    if (folder / f"{WEIGHTS}.index.json").is_file():
        raise InputError(
            f"{folder} has its weights in several files, expected one {WEIGHTS}: join them with {rewrite}"
        )
    if pickles := sorted(found.name for pattern in _PICKLES for found in folder.glob(pattern)):
        raise InputError(
            f"{folder} has no {WEIGHTS}, only {', '.join(pickles)}: pickles can run any code and are never "
            f"loaded; convert them once where you trust them, with {rewrite}"
        )
    raise InputError(f"{folder} has no {WEIGHTS}: put the model's weights there, in safetensors' format")
