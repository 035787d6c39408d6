"""The samples of tars whose uids are in a subset, found from headers and `.json`s alone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import sample_uids, tar_index, uid_files, uids

_ARRAYS = ("uids.npy", "times.npy", "high.npy")
# Reading headers holds the interpreter's lock: one thread at a time, so that the others can write meanwhile.
_HEADER_LOCK = threading.Lock()


class Subset:
    """The selected uids.

    Attributes:
      uids: shape (n,), u8,u8, sorted, unique.
      times: shape (n,), int64: how often each is to be written.
      index: of `uids`.
    """

    def __init__(self, uid: np.ndarray, times: np.ndarray, high: np.ndarray | None = None) -> None:
        self.uids, self.times, self.index = uid, times, uids.UidIndex(uid, high)

    @classmethod
    def read(cls, path: str) -> Subset:
        """Reads a subset file.

        Raises:
          InputError: it can't be read, or is empty.
        """
        uid, times = uid_files.read_multiset(path)
        if not len(uid):
            raise InputError(f"{path}: the subset is empty, so no tar would be written")
        return cls(uid, times)

    def save(self, folder: str) -> None:
        """Writes it to a local folder, for other processes to map into their memory."""
        for name, array in zip(_ARRAYS, (self.uids, self.times, self.index.high), strict=True):
            np.save(os.path.join(folder, name), array)

    @classmethod
    def mapped(cls, folder: str) -> Subset:
        """Maps what `save` wrote; processes share the memory."""
        paths = (os.path.join(folder, name) for name in _ARRAYS)
        return cls(*(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)) for path in paths))


@dataclasses.dataclass(frozen=True)
class SelectedSamples:
    """The selected samples of a tar or another source.

    Attributes:
      samples: in order, as often as the subset holds their uid; of tars `tar_index.IndexedSample`s.
      at: for each of them, the position of its uid in the subset.
      seen: number of samples in the source.
      skipped: samples that can't be used: "tar", "key" and "reason".
      hidden: number of hidden members that have been left out.
    """

    samples: Sequence[Any]
    at: np.ndarray
    seen: int
    skipped: list[dict[str, str]]
    hidden: int = 0


def select_samples(path: str, subset: Subset, *, name: str, skip_bad: bool) -> SelectedSamples:
    """Finds the selected samples of a tar.

    Args:
      path: of the tar.
      subset: the selected uids.
      name: the tar's name in its pool, from `pool_names`.
      skip_bad: whether to skip samples without a valid uid.

    Raises:
      InputError: the tar is broken, or a sample is and `skip_bad` is False.
    """
    lock = _HEADER_LOCK if storage.Folder(path).is_local else contextlib.nullcontext()
    with tar_index.open_tar(path) as tar, lock:
        index = tar_index.index_tar(tar)
        texts: list[str] = []
        good: list[int] = []
        skipped: list[dict[str, str]] = []
        for i, number in enumerate(index.jsons):
            json = index.read(number, tar) if number >= 0 else None
            uid = None if json is None else sample_uids.plain_uid(json)
            if uid is None:
                try:
                    fields = sample_uids.json_fields({} if json is None else {"json": json})
                    uid = sample_uids.sample_uid(name, index.keys[i], fields)
                except InputError as error:
                    if not skip_bad:
                        raise InputError(f"{path}: sample {index.keys[i]!r}: {error}") from error
                    skipped.append({"tar": path, "key": index.keys[i], "reason": str(error)})
                    continue
            good.append(i)
            texts.append(uid)
    at = subset.index.find(uids.from_hex(texts))
    kept = np.flatnonzero(at >= 0)
    kept = np.repeat(kept, subset.times[at[kept]])
    return SelectedSamples([index.sample(good[i]) for i in kept], at[kept], len(index.keys), skipped, index.hidden)
