"""Uids: 128-bit names of pairs; as text 32 hex digits, as numbers two uint64 (DataComp's dtype `u8,u8`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clipdata_jax import storage
from clipdata_jax.errors import InputError

DTYPE = np.dtype("u8,u8")
HALVES = ("uid_hi", "uid_lo")
"""The uint64 columns that hold uids where no column `uid` holds their text."""
_STEP = 1 << 16
_HEX = re.compile(r"[0-9a-fA-F]{32}")


def uid_of(source: str, key: str) -> str:
    """The uid of a sample that has none: the first 128 bits of SHA-256 over source, a zero byte and key.

    Args:
      source: the name of its tar or other source in the pool, from `pool_names`.
      key: the sample's key.

    >>> uid_of("00000.tar", "000000007")
    '4172f8c3d93da03d015b8c099e28d9ac'
    """
    # Names in a tar may not be UTF-8; tarfile decodes such bytes as surrogates.
    parts = [name.encode(errors="surrogateescape") for name in (source, key)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def is_uid(text: object) -> bool:
    """Whether a value is 32 hex digits."""
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


def from_hex(column: Sequence[str] | pa.Array | pa.ChunkedArray, source: str = "uid", first_row: int = 0) -> np.ndarray:
    """Parses uids of 32 hex digits.

    Args:
      column: n uids.
      source: the file, for messages.
      first_row: the number of the column's first row in that file.

    Returns:
      Shape (n,), dtype u8,u8: field f0 holds the first 16 digits, f1 the last 16.

    Raises:
      InputError: the column isn't text, or a uid is null or not 32 hex digits.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array):
        column = pa.array(column, pa.string())
    try:
        column = column.cast(pa.large_binary())
    except pa.ArrowNotImplementedError as error:
        raise InputError(f"{source}: the uid column is {column.type}, expected text of 32 hex digits") from error
    if column.null_count:
        row = first_row + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{source}: row {row}: the uid is missing, expected 32 hex digits")
    if not len(column):
        return np.empty(0, DTYPE)
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    packed = None
    if (np.diff(offsets) == 32).all():
        packed = packed_hex(bytes(column.buffers()[2][offsets[0] : offsets[-1]]))
    if packed is None or len(packed) != 16 * len(column):
        wrong = (row for row, uid in enumerate(column.to_pylist()) if not is_uid(uid.decode("latin-1")))
        row = next(wrong)
        found = column[row].as_py()[:60].decode("utf-8", "replace")
        raise InputError(f"{source}: row {first_row + row}: the uid is {found!r}, expected 32 hex digits")
    return from_bytes(packed)


def packed_hex(text: bytes) -> bytes | None:
    """Decodes hex digits, ignoring white space; None if there is anything else."""
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return None


def to_hex(uids: np.ndarray) -> list[str]:
    """Formats a `u8,u8` array as 32 hex digits each."""
    return to_bytes(uids).hex("\n", 16).split("\n") if len(uids) else []


def from_bytes(packed: bytes) -> np.ndarray:
    """Decodes big-endian uids of 16 bytes each to a `u8,u8` array."""
    return np.frombuffer(packed, ">u8").astype(np.uint64).view(DTYPE)


def to_bytes(uids: np.ndarray) -> bytes:
    """Encodes a `u8,u8` array as big-endian uids of 16 bytes each."""
    return np.ascontiguousarray(uids).view(np.uint64).astype(">u8").tobytes()


def join_halves(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Joins two uint64 arrays to one `u8,u8` array."""
    joined = np.empty(len(high), DTYPE)
    joined["f0"], joined["f1"] = high, low
    return joined


def sort(uids: np.ndarray) -> np.ndarray:
    """Sorts uids lexicographically, keeping repeats.

    Comparing whole rows is slow, and an argsort is several times slower than a sort of plain numbers. So it sorts the
    top bits of the first halves, with each row's number in place of the low bits; rows that agree in those top bits,
    hardly any among hashes, are sorted afterwards.
    """
    low = np.uint64(max(len(uids) - 1, 0).bit_length())
    # In place and in steps: allocating temporaries of millions of rows costs more than sorting.
    keys = uids["f0"].copy()
    keys >>= low
    keys <<= low
    for start in range(0, len(keys), _STEP):
        keys[start : start + _STEP] |= np.arange(start, min(start + _STEP, len(keys)), dtype=np.uint64)
    keys.sort()
    differ = keys[1:] ^ keys[:-1]
    differ >>= low
    same = differ == 0
    keys &= (np.uint64(1) << low) - np.uint64(1)
    ordered = np.take(uids, keys.view(np.int64))
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        rows = ordered[tied]
        ordered[tied] = rows[np.lexsort((rows["f1"], rows["f0"]))]
    return ordered


def first_of_each(ordered: np.ndarray) -> np.ndarray:
    """Marks, in sorted uids, the first row of each uid: shape (n,), bool."""
    first = np.ones(len(ordered), bool)
    high, low = ordered["f0"], ordered["f1"]
    np.not_equal(high[1:], high[:-1], out=first[1:])
    first[1:] |= low[1:] != low[:-1]
    return first


def unique(ordered: np.ndarray) -> np.ndarray:
    """Removes repeats from sorted uids."""
    first = first_of_each(ordered)
    return ordered if first.all() else ordered[first]


def sort_unique(uids: np.ndarray) -> np.ndarray:
    """Sorts uids lexicographically and removes repeats."""
    return unique(sort(uids))


class UidIndex:
    """Lookup of uids in a sorted unique array.

    Args:
      sorted_uids: shape (n,), u8,u8, sorted and unique.
      high: their first halves, contiguous; None copies them.

    Attributes:
      high: the first halves.
    """

    def __init__(self, sorted_uids: np.ndarray, high: np.ndarray | None = None) -> None:
        self._uids = sorted_uids
        # np.searchsorted in a field would copy it on every call.
        self.high = np.ascontiguousarray(sorted_uids["f0"]) if high is None else high

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Finds the position of each wanted uid, -1 where it is missing.

        Args:
          wanted: shape (m,), u8,u8, in any order.

        Returns:
          Shape (m,), int64.
        """
        if not len(self._uids) or not len(wanted):
            return np.full(len(wanted), -1, np.int64)
        # Two uint64 searches are many times faster than one over structured elements.
        first = np.searchsorted(self.high, np.ascontiguousarray(wanted["f0"]))
        at = np.minimum(first, len(self._uids) - 1)
        clash = (self.high[at] == wanted["f0"]) & (self._uids["f1"][at] != wanted["f1"])
        if clash.any():
            at[clash] = np.minimum(np.searchsorted(self._uids, wanted[clash]), len(self._uids) - 1)
        return np.where(self._uids[at] == wanted, at, -1)


def find(sorted_uids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Finds the position of each wanted uid in a sorted unique array, -1 where it is missing (`UidIndex.find`)."""
    return UidIndex(sorted_uids).find(wanted)


def write_subset(path: str, uids: np.ndarray) -> None:
    """Writes a subset file, as DataComp's resharder reads: .npy of dtype u8,u8, sorted and unique."""
    with storage.open_write(path) as file:
        np.save(file, sort_unique(uids), allow_pickle=False)
