"""Keys of the samples of an output: no two samples share one, since webdataset would merge them or refuse the tars.

Of n samples with one key the first keeps it; the m-th after it gets key-m or, where a sample has that key by itself,
the first free of key-(m + n), key-(m + 2 n) and so on. The new keys thus differ from each other whatever the others
are, and a unit of the output finds its own from hashes of all keys.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from clipdata_jax.formats.hashing import scatter

_SHORT = 64  # bytes: longer keys are hashed one by one, so that one of them doesn't widen the array of all


def number_repeats(keys: Sequence[str]) -> list[str]:
    """Numbers the repeats among the keys of one unit.

    >>> number_repeats(["a", "b", "a", "a-1", "a"])
    ['a', 'b', 'a-4', 'a-1', 'a-2']
    """
    taken = set(keys)
    if len(taken) == len(keys):
        return list(keys)
    times, before = collections.Counter(keys), collections.Counter[str]()
    found = []
    for key in keys:
        found.append(_numbered(key, before[key], times[key], taken.__contains__) if before[key] else key)
        before[key] += 1
    return found


def _numbered(key: str, before: int, times: int, is_taken: Callable[[str], bool]) -> str:
    number = before
    while is_taken(f"{key}-{number}"):
        number += times
    return f"{key}-{number}"


def hash_keys(keys: Sequence[str]) -> np.ndarray:
    """Hashes keys to uint64, shape (n,); a key's hash depends on nothing else.

    >>> len(set(hash_keys(["a", "b", "a" * 100]).tolist()))
    3
    """
    encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
    if max(map(len, encoded), default=0) <= _SHORT:
        return _hash_words(encoded)
    return np.concatenate([_hash_words([key]) for key in encoded])


def _hash_words(keys: Sequence[bytes]) -> np.ndarray:
    hashes = np.zeros(len(keys), np.uint64)
    width = -(-max(map(len, keys), default=0) // 8)
    for word in np.array(keys, f"S{8 * width or 8}").view("<u8").reshape(len(keys), width or 1).T:
        # Names hold no NULs, so a word of NULs is after the end; without it the width of the array has no effect.
        hashes = np.where(word != 0, scatter(hashes ^ word), hashes)
    return hashes


@dataclasses.dataclass(frozen=True)
class Repeats:
    """The keys of a unit that units before it hold, too.

    Attributes:
      rows: their samples' positions in the unit.
      before: for each, the number of units before this one that hold the key.
      times: for each, the number of all units that hold it.
      digest: of the keys of all units, which the new keys depend on.
    """

    rows: np.ndarray
    before: np.ndarray
    times: np.ndarray
    digest: str


def find_repeats(held: Mapping[str, np.ndarray], digest: str = "") -> tuple[np.ndarray, dict[str, Repeats]]:
    """Finds keys that several units hold.

    Args:
      held: unit -> `hash_keys` of its samples' keys, which differ within the unit; in the order of the output.
      digest: as in `Repeats`.

    Returns:
      The hashes of all keys, sorted, and the units to be renamed: unit -> its repeats.
    """
    taken = np.sort(np.concatenate(list(held.values()) or [np.empty(0, np.uint64)]))
    again = taken[1:][taken[1:] == taken[:-1]]
    if not len(again):
        return taken, {}
    shared, times = np.unique(again, return_counts=True)
    times += 1
    before = np.zeros_like(times)
    found = {}
    for unit, hashes in held.items():
        at = np.minimum(np.searchsorted(shared, hashes), len(shared) - 1)
        rows = np.flatnonzero(shared[at] == hashes)
        at = at[rows]
        if (late := before[at] > 0).any():
            found[unit] = Repeats(rows[late], before[at[late]], times[at[late]], digest)
        before[at] += 1
    return taken, found


def rename(keys: Sequence[str], repeats: Repeats, taken: np.ndarray) -> list[str]:
    """Numbers those of a unit's keys that units before it hold.

    Args:
      keys: of the unit, as `number_repeats` returns them.
      repeats: of the unit; rows past its end are ignored.
      taken: as `find_repeats` returns it.
    """
    found = list(keys)

    def is_taken(key: str) -> bool:
        at = int(np.searchsorted(taken, hashed := hash_keys([key])[0]))
        return at < len(taken) and taken[at] == hashed

    within = repeats.rows < len(keys)
    columns = (column[within].tolist() for column in (repeats.rows, repeats.before, repeats.times))
    for row, before, times in zip(*columns, strict=True):
        found[row] = _numbered(keys[row], before, times, is_taken)
    return found
