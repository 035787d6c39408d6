"""Target picture embeddings for NormSim: a .npy file, a metadata shard's .npz, or a folder of shards."""

from __future__ import annotations

import numpy as np

from clipdata_jax import storage
from clipdata_jax.data.arrays import read_array
from clipdata_jax.data.embeddings import BAD_REASONS, find_bad_rows
from clipdata_jax.errors import InputError


def read_target(path: str, tag: str, *, dim: int | None = None) -> np.ndarray:
    """Reads target picture embeddings.

    Args:
      path: a .npy of shape (rows, dim), a .npz with `<tag>_img`, or a folder of such .npz files.
      tag: the model.
      dim: the pool's dimension, None if not known yet.

    Returns:
      shape (rows, dim), float16 or float32, unit rows.

    Raises:
      InputError: unreadable, empty, of another dimension than the pool's, or rows that are not unit.
    """
    parts = [path]
    if storage.is_folder(path):
        storage.check_finished(path)
        parts = storage.list_folder(path, ".npz")
        if not parts:
            raise InputError(
                f"{path}: the target folder holds no .npz; embed its pictures first, clipdata embed {path}"
                f" --images-only --model {tag}=CHECKPOINT ..., and name that --out here"
            )
    try:
        arrays = [read_array(part, f"{tag}_img") for part in parts]
    except InputError as error:
        raise InputError(
            f"{error} (the target of a pool tagged {tag!r}: embed both with the same --model {tag}=CHECKPOINT)"
        ) from error
    for part, array in zip(parts, arrays, strict=True):
        if array.ndim != 2 or array.dtype.kind != "f":
            raise InputError(
                f"{part}: the target is {array.dtype}{list(array.shape)}, expected floats (rows, dim)"
            )
        if dim is not None and array.shape[1] != dim:
            raise InputError(
                f"{part}: the target has dimension {array.shape[1]}, the pool {dim}; embed both with the same model"
            )
    target = np.concatenate(arrays)
    if not len(target):
        raise InputError(f"{path}: the target is empty, expected at least one row")
    _, bad = find_bad_rows([target])
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(f"{path}: target row {row} is {BAD_REASONS[int(bad[row])]}; expected unit rows")
    return target.astype(np.float32) if target.dtype == np.float64 else target
