"""Tables for people and other tools: .csv, .jsonl and .parquet, written block by block."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from clipdata_jax import storage

_GROUP = 1 << 16  # rows of a row group in parquet


def write(path: str, schema: pa.Schema, blocks: Iterable[pa.Table]) -> int:
    """Writes blocks of rows to a file, atomically; its ending says in what form.

    csv: comma-separated UTF-8 with a header; text is quoted, null is an empty field without quotes. jsonl: an object a
    line, null where there is no value. float32 numbers are written with the fewest digits that give them back.

    Args:
      path: a file that ends in .csv, .jsonl or .parquet, local or in a store.
      schema: of all blocks: text, float32 or int32.
      blocks: the rows.

    Returns:
      The number of rows.
    """
    writer: Callable[[BinaryIO, pa.Schema, Iterable[pa.Table]], None] = {
        ".csv": _write_csv,
        ".jsonl": _write_jsonl,
        ".parquet": _write_parquet,
    }[path[path.rindex(".") :]]
    rows = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal rows
        for block in blocks:
            rows += len(block)
            yield block

    with storage.open_write(path) as file:
        writer(file, schema, counted())
    return rows


def _write_csv(file: BinaryIO, schema: pa.Schema, blocks: Iterable[pa.Table]) -> None:
    with pa.csv.CSVWriter(file, schema) as writer:
        for block in blocks:
            writer.write_table(block)


def _write_jsonl(file: BinaryIO, schema: pa.Schema, blocks: Iterable[pa.Table]) -> None:
    for block in blocks:
        columns = [_python_values(column) for column in block.columns]
        lines = (json.dumps(dict(zip(schema.names, row, strict=True)), ensure_ascii=False) for row in zip(*columns))
        file.write("".join(f"{line}\n" for line in lines).encode())


def _python_values(column: pa.ChunkedArray) -> list[Any]:
    if not pa.types.is_floating(column.type):
        return list(column.to_pylist())
    # As text, a float32 has its own shortest digits; as a Python float it would have those of the nearest double.
    return [None if text is None else float(text) for text in column.cast(pa.string()).to_pylist()]


def _write_parquet(file: BinaryIO, schema: pa.Schema, blocks: Iterable[pa.Table]) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        waiting: list[pa.Table] = []
        for block in itertools.chain(blocks, [None]):
            waiting += [] if block is None else [block]
            if waiting and (block is None or sum(map(len, waiting)) >= _GROUP):
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
