"""Where the samples of a tar lie.

What decides which samples are wanted is their headers and `.json`s; pictures are not looked at until they are copied.
"""

from __future__ import annotations

import tarfile
from typing import NamedTuple

import numpy as np

from clipdata_jax import storage
from clipdata_jax.data import tar_headers, tars
from clipdata_jax.data.tar_bytes import Bytes

_UPPER = np.uint8(ord("A"))
_MOST = 64  # members of a sample: comparing all of them with each other would take too long


class Index(NamedTuple):
    """The members of a tar in columns, and its samples, which are neighbours each: objects would cost more.

    Attributes:
      path: of the tar.
      names: of the members, as stored.
      starts: where each one's header begins, or the extended ones that belong to it.
      data: where its bytes begin.
      sizes: their number.
      links: number of a link -> the bytes that it leads to.
      keys: of the samples, in order: those of `tars.read_tar`.
      first: number of each sample's first member, and after the last sample's that of all members.
      jsons: number of each sample's `.json`, -1 where it has none.
    """

    path: str
    names: list[bytes]
    starts: list[int]
    data: list[int]
    sizes: list[int]
    links: dict[int, bytes]
    keys: list[str]
    first: list[int]
    jsons: list[int]

    def name(self, i: int) -> str:
        """The name of the member of that number."""
        return self.names[i].decode(tarfile.ENCODING, "surrogateescape")

    def read(self, i: int, tar: Bytes) -> bytes:
        """The bytes of the member of that number."""
        if (found := tar.jsons.get(self.data[i])) is not None:
            return found
        tars.check_size(self.path, self.name(i), self.sizes[i])
        return self.links[i] if i in self.links else tar[self.data[i] : self.data[i] + self.sizes[i]]

    def sample(self, i: int) -> Sample:
        """The sample of that number."""
        return Sample(self, self.keys[i], range(self.first[i], self.first[i + 1]))


class Sample(NamedTuple):
    """A sample of a tar.

    Attributes:
      table: the index of its tar.
      key: its key there.
      numbers: of its members.
    """

    table: Index
    key: str
    numbers: range


class _Groups(NamedTuple):
    keys: list[str]
    first: list[int]
    jsons: list[int]


def index(tar: Bytes) -> Index:
    """Looks through an open tar.

    Raises:
      InputError: as `tars.read_tar`.
    """
    headers = tar_headers.read(tar)
    if headers is None:
        return _walked(tar.path)
    tar.jsons = headers.jsons
    starts, data, sizes = (column.tolist() for column in headers[1:4])
    names = _texts(headers.names)
    groups = _plain_groups(headers.names) or _groups(tar.path, names)
    return Index(tar.path, names, starts, data, sizes, {}, *groups)


def _walked(path: str) -> Index:
    """The index of a tar of any form, as tarfile knows it."""
    with storage.open_read(path) as file:
        walked, linked = [], 0
        for info, data in tars.walk(path, file):
            # Many links to one large member would be as many copies of it.
            linked += len(data or b"")
            tars.check_size(path, f"{info.name} and other links", linked)
            walked.append((info, data))
    names = [info.name.encode(tarfile.ENCODING, "surrogateescape") for info, _ in walked]
    return Index(
        path,
        names,
        [info.offset for info, _ in walked],
        [info.offset_data for info, _ in walked],
        [info.size if data is None else len(data) for info, data in walked],
        {i: data for i, (_, data) in enumerate(walked) if data is not None},
        *_groups(path, names),
    )


def _groups(path: str, names: list[bytes]) -> _Groups:
    """The samples that members of these names make, name by name.

    Raises:
      InputError: as `tars.grouped`.
    """
    texts = [name.decode(tarfile.ENCODING, "surrogateescape") for name in names]
    found = _Groups([], [0], [])
    for key, members, _ in tars.grouped(path, zip(texts, range(len(texts)), strict=True)):
        found.keys.append(key)
        found.first.append(found.first[-1] + len(members))
        found.jsons.append(members.get("json", -1))
    return found


def _plain_groups(names: np.ndarray) -> _Groups | None:
    """The same by columns; None where letters aren't plain, samples are very large or something is wrong.

    Args:
      names: shape (n, w), uint8.
    """
    if not len(names) or (names >= 128).any():
        return None
    columns = np.arange(names.shape[1])
    dots = (names == ord(".")) & (columns >= tar_headers.base_starts(names)[:, None])
    lengths = (names != 0).sum(axis=1)
    ends = np.where(dots.any(axis=1), dots.argmax(axis=1), lengths)
    keys = _strings(np.where(columns < ends[:, None], names, 0))
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    first = np.append(starts, len(names))
    most = int(np.diff(first).max())
    # "a" and "a." have one extension, none.
    if most > _MOST or (names[np.arange(len(names)), lengths - 1] == ord(".")).any():
        return None
    texts = _texts(keys[starts])
    # Within a sample names differ in their extensions only, which are told apart in lower case.
    lower = _strings(names | ((names >= _UPPER) & (names < _UPPER + 26)) * np.uint8(32))
    sample = np.repeat(np.arange(len(starts)), np.diff(first))
    for lag in range(1, most):
        if ((lower[lag:] == lower[:-lag]) & (sample[lag:] == sample[:-lag])).any():
            return None
    if len(set(texts)) < len(texts):
        return None
    jsons = np.full(len(starts), -1)
    numbers = np.flatnonzero(np.strings.endswith(lower, b".json") & (ends == lengths - 5))
    jsons[sample[numbers]] = numbers
    return _Groups([text.decode("ascii") for text in texts], first.tolist(), jsons.tolist())


def _strings(names: np.ndarray) -> np.ndarray:
    """Bytes, shape (n, w), as strings of NumPy, shape (n,)."""
    return np.ascontiguousarray(names).view(f"S{names.shape[1]}")[:, 0]


def _texts(names: np.ndarray) -> list[bytes]:
    """Strings of NumPy, or bytes of shape (n, w), as a list."""
    return list((names if names.ndim == 1 else _strings(names)).tolist())
