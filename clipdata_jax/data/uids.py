"""uids: 128-bit names of pairs. As text 32 hex digits; as numbers two uint64; on disk DataComp's `u8,u8`."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clipdata_jax.data import files
from clipdata_jax.errors import InputError

DTYPE = np.dtype("u8,u8")


def uid_of(tar_name: str, key: str) -> str:
    """The uid of a sample that brings none: the first 128 bits of SHA-256 over tar name, a zero byte and key.

    Args:
      tar_name: the tar's file name without its folders, so that a pool can move.
      key: the sample's key.
    """
    # A tar may hold names that are no UTF-8; tarfile hands their bytes on as surrogates.
    parts = [name.encode(errors="surrogateescape") for name in (tar_name, key)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def is_uid(text: object) -> bool:
    """Whether a value is 32 hex digits."""
    return (
        isinstance(text, str)
        and len(text) == 32
        and text.isascii()
        and _hex_values(np.frombuffer(text.encode(), np.uint8)).min() >= 0
    )


def from_hex(column: Sequence[str] | pa.Array | pa.ChunkedArray, source: str = "uid") -> np.ndarray:
    """Turns uids written as 32 hex digits into a `u8,u8` array.

    Args:
      column: n uids.
      source: what to name in an error, usually the file.

    Returns:
      shape (n,), dtype u8,u8: field f0 holds the first 16 digits, f1 the last 16.

    Raises:
      InputError: the column is no text, or an uid is null or not 32 hex digits.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array):
        column = pa.array(column, pa.string())
    try:
        column = column.cast(pa.large_binary())
    except pa.ArrowNotImplementedError as error:
        raise InputError(
            f"{source}: the uid column is {column.type}, expected text of 32 hex digits"
        ) from error
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{source}: row {row}: the uid is missing, expected 32 hex digits")
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    wrong = np.flatnonzero(np.diff(offsets) != 32)
    if len(column) and not len(wrong):
        text = np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        digits = _hex_values(text).reshape(-1, 32)
        wrong = np.flatnonzero(digits.min(axis=1) < 0)
    if len(wrong):
        row = int(wrong[0])
        found = column[row].as_py()[:60].decode("utf-8", "replace")
        raise InputError(f"{source}: row {row}: the uid is {found!r}, expected 32 hex digits")
    if not len(column):
        return np.empty(0, DTYPE)
    packed = (digits[:, ::2] << 4 | digits[:, 1::2]).astype(np.uint8)
    halves = np.ascontiguousarray(packed).view(">u8").astype(np.uint64)
    return join_halves(halves[:, 0], halves[:, 1])


def _hex_values(text: np.ndarray) -> np.ndarray:
    table = np.full(256, -1, np.int16)
    for digits in (b"0123456789abcdef", b"0123456789ABCDEF"):
        table[np.frombuffer(digits, np.uint8)] = np.arange(16)
    return table[text]


def to_hex(uids: np.ndarray) -> list[str]:
    """The uids of a `u8,u8` array as 32 hex digits each."""
    return [f"{int(high):016x}{int(low):016x}" for high, low in uids]


def join_halves(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Two uint64 arrays as one `u8,u8` array."""
    joined = np.empty(len(high), DTYPE)
    joined["f0"], joined["f1"] = high, low
    return joined


def sort_unique(uids: np.ndarray) -> np.ndarray:
    """The uids in lexicographic order, each once."""
    ordered = uids[np.argsort(uids["f0"])]
    # Different uids hardly ever share a half, and sorting by one is several times faster.
    if (ordered["f0"][1:] == ordered["f0"][:-1]).any():
        ordered = uids[np.lexsort((uids["f1"], uids["f0"]))]
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def find(sorted_uids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The position of every wanted uid in a sorted unique array, -1 where it is not there.

    Args:
      sorted_uids: shape (n,), u8,u8, sorted and unique.
      wanted: shape (m,), u8,u8, in any order.

    Returns:
      shape (m,), int64.
    """
    if not len(sorted_uids) or not len(wanted):
        return np.full(len(wanted), -1, np.int64)
    # Two uint64 searches are many times faster than one over structured elements.
    first = np.searchsorted(sorted_uids["f0"], wanted["f0"])
    at = np.minimum(first, len(sorted_uids) - 1)
    clash = (sorted_uids["f0"][at] == wanted["f0"]) & (sorted_uids["f1"][at] != wanted["f1"])
    if clash.any():
        at[clash] = np.minimum(np.searchsorted(sorted_uids, wanted[clash]), len(sorted_uids) - 1)
    return np.where(sorted_uids[at] == wanted, at, -1)


def write_subset(path: str, uids: np.ndarray) -> None:
    """Writes a subset file: `.npy` of dtype u8,u8, sorted, unique; what DataComp's resharder takes."""
    with files.open_write(path) as file:
        np.save(file, sort_unique(uids), allow_pickle=False)


def read_subset(path: str) -> np.ndarray:
    """Reads a subset file; unsorted and repeated uids are put in order.

    Raises:
      InputError: not a .npy file, or not of dtype u8,u8.
    """
    with files.open_read(path) as file:
        try:
            uids = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not a .npy file of uids ({error})") from error
    if not isinstance(uids, np.ndarray) or uids.ndim != 1 or uids.dtype != DTYPE:
        found = getattr(uids, "dtype", type(uids).__name__)
        raise InputError(f"{path}: holds {found}, expected uids of dtype u8,u8 in one dimension")
    return sort_unique(uids)
