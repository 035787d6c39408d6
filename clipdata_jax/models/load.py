"""Loading a checkpoint, and its digest."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from clipdata_jax.errors import InputError
from clipdata_jax.models.checkpoint_files import checkpoint_folder
from clipdata_jax.models.checkpoint_layout import Layout, read_layout
from clipdata_jax.models.clip import CLIP
from clipdata_jax.models.clip_config import CLIPConfig
from clipdata_jax.models.image_settings import read_preprocessor
from clipdata_jax.models.weights import load_weights

_CHUNK = 1 << 20


def load_clip(
    path: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> CLIP:
    """Reads a CLIP or SigLIP checkpoint, one tensor at a time, from the mapped file to the devices.

    Args:
      path: a folder, or the name of a repository on the Hugging Face hub, "owner/name". Its layout is either
        transformers' (`config.json`, `model.safetensors` or several files with an index, and
        `preprocessor_config.json` where mean and std are not the published models') or open_clip's
        (`open_clip_config.json`, `open_clip_model.safetensors`); in a folder with both, the former.
      dtype: compute dtype of the towers.
      param_dtype: dtype of the parameters; default `dtype`. Embeddings are float32 in any case.
      sharding: of all parameters: `NamedSharding(mesh, PartitionSpec())` puts a copy on every device of a mesh.
        Default: one device.

    Returns:
      The model.

    Raises:
      InputError: a file is missing, broken, a pickle, of another kind of model, has unsupported settings, or does
        not fit the others.

    >>> from importlib.resources import files
    >>> from clipdata_jax import load_clip
    >>> folder = files("clipdata_jax") / "demo" / "model"
    >>> load_clip(folder).config.embed_dim
    128
    """
    layout = read_layout(checkpoint_folder(path))
    config = _with_image_moments(layout)
    return load_weights(
        layout.weights(),
        config,
        dtype=dtype,
        param_dtype=dtype if param_dtype is None else param_dtype,
        table=layout.table(),
        config_name=layout.config_file.name,
        prefix=layout.prefix,
        sharding=sharding,
    )


def checkpoint_digest(path: str | Path) -> str:
    """Computes a digest of a checkpoint: of the bytes of its config file and its weights.

    Args:
      path: as for `load_clip`.

    Returns:
      "sha256:" and 64 hex digits.

    Raises:
      InputError: a file is missing.

    >>> from importlib.resources import files
    >>> from clipdata_jax import models
    >>> folder = files("clipdata_jax") / "demo" / "model"
    >>> models.checkpoint_digest(folder)[:7]
    'sha256:'
    """
    layout = read_layout(checkpoint_folder(path))
    digest = hashlib.sha256()
    for file in (layout.config_file, *layout.weights()):
        # Name and size come first, so that moving bytes from one file to the next changes the digest.
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _with_image_moments(layout: Layout) -> CLIPConfig:
    """The config with the mean and std of the image processor's file, if it exists."""
    config = layout.config()
    if layout.kind == "open_clip":
        return config  # which has them
    given = read_preprocessor(layout.folder) or {}
    try:
        moments = {name: tuple(map(float, given[name])) for name in ("image_mean", "image_std") if name in given}
        return dataclasses.replace(config, **moments)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the image processor's file in {layout.folder} has bad image_mean or image_std: {error}"
        ) from error
