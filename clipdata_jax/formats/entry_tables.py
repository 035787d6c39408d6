"""The entries of captions as a column of lists in a score table's parts, and how many captions hold each entry."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from clipdata_jax.errors import InputError

COLUMN = "entries"
COUNTS = "entry_counts.csv"


def part_bytes(uid: np.ndarray, found: Sequence[np.ndarray]) -> bytes:
    """Encodes one part: the uids (u8,u8) and the numbers of each caption's entries; the same values, the same bytes."""
    ends = np.cumsum([0, *map(len, found)]).astype(np.int32)
    numbers = np.concatenate([np.empty(0, np.int32), *found])
    table = {
        "uid_hi": pa.array(uid["f0"], pa.uint64()),
        "uid_lo": pa.array(uid["f1"], pa.uint64()),
        COLUMN: pa.ListArray.from_arrays(pa.array(ends), pa.array(numbers)),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def as_lists(path: str, name: str, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a column of lists: all numbers, int64, and how many of them each row has, int64; null is none.

    Raises:
      InputError: it holds something else than lists of integers from 0 on.
    """
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_integer(kind.value_type):
        raise InputError(
            f"{path}: column {name!r} holds {kind}, expected lists of entries, as `clipdata entries` writes"
        )
    whole = column.combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    lengths = pa.compute.fill_null(whole.value_lengths(), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    numbers = whole.flatten()
    if numbers.null_count or (len(numbers) and pa.compute.min(numbers).as_py() < 0):
        raise InputError(f"{path}: column {name!r} holds a null or negative entry, expected numbers from 0 on")
    return numbers.to_numpy(zero_copy_only=False).astype(np.int64), lengths


def write_counts(file: BinaryIO, entries: Sequence[str], counts: np.ndarray) -> None:
    """Writes number, text and count of each entry as csv."""
    table = pa.table({"number": np.arange(len(entries)), "entry": list(entries), "captions": counts})
    pa.csv.write_csv(table, file)
