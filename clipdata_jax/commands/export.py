"""`clipdata export`: scores, and what the metadata says of each pair, as csv, jsonl or parquet. Imports no jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from clipdata_jax import config, storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import ids, metadata, parquet, row_files, score_tables, uid_files, uids
from clipdata_jax.runs import file_output, manifest
from clipdata_jax.runtime import console

_ROWS = 1 << 13
_EXAMPLES = 3
# Columns written from the metadata, each with the names that it may have there.
_TEXTS = {
    "id": ("id",),
    "source": ("source", "tar"),
    "key": ("key", "image_path"),
    "caption": ("text", "caption"),
    "url": ("url",),
}


@dataclasses.dataclass(frozen=True)
class ExportSummary:
    """What was exported.

    Attributes:
      pairs: pairs in the score tables.
      rows: rows written.
      columns: their names.
      missing: uids of the subset that have no row in the score tables.
      missing_examples: the first few of these.
      without_score: with `top` and `bottom`: pairs without a value in that column, which are left out.
    """

    pairs: int
    rows: int
    columns: tuple[str, ...]
    missing: int = 0
    missing_examples: tuple[str, ...] = ()
    without_score: int = 0


@storage.stat_cache()
def run(options: config.Export) -> ExportSummary:
    """Writes the table and its manifest, and prints what it holds.

    Memory holds the scores of one part and a block of captions, with `top` or `bottom` all rows that are written, and
    of a subset nine bytes a uid.

    Raises:
      InputError: a table, the subset or the metadata is wrong or of another pool, nothing is left to write, or `out`
        holds something else.
    """
    table = score_tables.open_tables(options.scores)
    table.check_shared_names(list(table.columns))
    texts = None if options.metadata is None else _Texts.of(options.metadata, table)
    ranked = options.ranked()
    if ranked is not None and ranked[1] not in table.columns:
        flag = "top" if ranked[2] else "bottom"
        raise InputError(f"--{flag}: no column {ranked[1]!r}; the score tables have {', '.join(sorted(table.columns))}")
    plan = manifest.describe("export", options, inputs=[] if options.subset is None else [options.subset])
    file_output.check_replaceable(options.out, plan, overwrite=options.overwrite)
    schema, without = _schema(table, texts), 0
    with storage.scratch("clipdata-export-") as scratch:
        wanted = _Wanted(options.subset, scratch)
        if ranked is None:
            blocks = _blocks(table, texts, schema, wanted.mask)
        else:
            rows, without = _ranked(table, wanted, *ranked)
            blocks = iter([_in_order(table, texts, schema, rows)])
        written = row_files.write(options.out, schema, _some(blocks, options))
    summary = ExportSummary(
        pairs=len(table), rows=written, columns=tuple(schema.names), without_score=without, **wanted.missing()
    )
    files = [*_part_paths(table), *([] if texts is None else [part.path for part in texts.parts.values()])]
    pool_files = [{"name": path, "bytes": storage.size(path)} for path in files]
    manifest.write_beside(options.out, plan, {"pool_files": pool_files, **dataclasses.asdict(summary)})
    print(_text(summary, options))
    return summary


def _some(blocks: Iterator[pa.Table], options: config.Export) -> Iterator[pa.Table]:
    """The blocks, of which one must have rows.

    Raises:
      InputError: none has.
    """
    rows = 0
    for block in blocks:
        rows += len(block)
        yield block
    if not rows:
        what = "no pair" if options.subset is None else f"none of the pairs of {options.subset}"
        raise InputError(f"{options.scores[0]}: holds {what}, so there is nothing to export")


class _Wanted:
    """The uids of a subset, or all if there is none, and which of them have been met."""

    def __init__(self, path: str | None, scratch: str) -> None:
        self._uids = np.empty(0, uids.DTYPE) if path is None else uid_files.open_uids(path, scratch).rows
        self._index = None if path is None else uids.UidIndex(self._uids)
        self._met = np.zeros(len(self._uids), bool)

    def mask(self, start: int, uid: np.ndarray) -> np.ndarray:
        """Marks the wanted among the rows from `start` on, whose uids are given."""
        if self._index is None:
            return np.ones(len(uid), bool)
        at = self._index.find(uid)
        self._met[at[at >= 0]] = True
        return at >= 0

    def missing(self) -> dict[str, Any]:
        """The number of uids that were not met, and the first of them."""
        # Of a uid that the file repeats only the first row is ever met.
        rows: Any = np.flatnonzero(~self._met & uids.first_of_each(self._uids)) if len(self._uids) else []
        return {"missing": len(rows), "missing_examples": tuple(uids.to_hex(self._uids[rows[:_EXAMPLES]]))}


@dataclasses.dataclass(frozen=True)
class _Texts:
    """The metadata's files by part of the score table, and the columns to take: name -> name in the files."""

    parts: dict[str, metadata.Part]
    names: dict[str, str]

    @classmethod
    def of(cls, folder: str, table: score_tables.ScoreTable) -> _Texts:
        inside = storage.join(folder, "metadata")  # clip-retrieval's
        listed = metadata.list_parts(inside if storage.is_folder(inside) else folder, metadata.Skipped())
        parts = {part.path.rpartition("/")[2].removesuffix(".parquet"): part for part in listed}
        for name, rows in zip(table.parts, table.rows, strict=True):
            if name not in parts:
                raise InputError(f"{folder}: has no {name}.parquet; {table.folders[0]} was scored from other metadata")
            if parts[name].rows != rows:
                raise InputError(
                    f"{parts[name].path}: has {parts[name].rows:,} rows, {table.folders[0]} {rows:,} of that name; name"
                    " the metadata that was scored"
                )
        first = parts[table.parts[0]].types
        found = {name: next((one for one in given if one in first), None) for name, given in _TEXTS.items()}
        return cls({name: parts[name] for name in table.parts}, {name: one for name, one in found.items() if one})

    def iterate(self, part: str, uid: np.ndarray) -> Iterator[pa.Table]:
        """Yields the columns of a part's rows as text, some rows at a time.

        Raises:
          InputError: its uids are not those given.
        """
        path, has_uids = self.parts[part].path, "uid" in self.parts[part].types
        start = 0
        for block in parquet.iterate(path, [*self.names.values(), *(["uid"] if has_uids else [])], _ROWS):
            if has_uids and not np.array_equal(ids.from_table(block, path, start).uid, uid[start : start + len(block)]):
                raise InputError(
                    f"{path}: its uids are not those of the score table; name the metadata that it was scored from"
                )
            start += len(block)
            yield pa.table({name: _as_text(path, given, block[given]) for name, given in self.names.items()})


def _as_text(path: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise InputError(f"{path}: column {name!r} holds {str(column.type)[:60]}, expected text") from error


def _schema(table: score_tables.ScoreTable, texts: _Texts | None) -> pa.Schema:
    types = {folder: parquet.rows_and_types(_part_path(folder, table.parts[0]))[1] for folder in table.folders}
    fields = [(name, pa.string()) for name in ("uid", *(texts.names if texts else ()))]
    for name, folder in table.columns.items():
        fields.append((name, pa.int32() if pa.types.is_integer(types[folder][name]) else pa.float32()))
    return pa.schema(fields)


def _part_path(folder: str, part: str) -> str:
    return storage.join(folder, f"{part}.parquet")


def _part_paths(table: score_tables.ScoreTable) -> list[str]:
    return [_part_path(folder, part) for folder in table.folders for part in table.parts]


def _blocks(
    table: score_tables.ScoreTable,
    texts: _Texts | None,
    schema: pa.Schema,
    choose: Callable[[int, np.ndarray], np.ndarray],
) -> Iterator[pa.Table]:
    """Yields rows in the order of the table.

    Args:
      table: the scores.
      texts: the metadata.
      schema: of the blocks.
      choose: takes the number of a part's first row and the part's uids, returns a mask of the rows to yield.
    """
    start = 0
    with console.bar(total=len(table), unit="row", name="export") as bar:
        for part, uid, columns in table.iterate(list(table.columns)):
            mask = choose(start, uid)
            if mask.any():
                scores = {name: pa.array(columns[name], schema.field(name).type, from_pandas=True) for name in columns}
                whole = pa.table({"uid": pa.array(uids.to_hex(uid), pa.string()), **scores})
                first = 0
                for block in [None] if texts is None else texts.iterate(part, uid):
                    last = len(uid) if block is None else first + len(block)
                    both = {name: whole[name][first:last] for name in whole.column_names}
                    both |= {} if block is None else {name: block[name] for name in block.column_names}
                    yield pa.table(both).select(schema.names).filter(pa.array(mask[first:last])).cast(schema)
                    first = last
            start += len(uid)
            bar.update(len(uid))


def _ranked(
    table: score_tables.ScoreTable, wanted: _Wanted, count: int, column: str, highest: bool
) -> tuple[np.ndarray, int]:
    """The numbers of the wanted rows that are highest, or lowest, in a column, in this order; equal ones as they come.

    Returns:
      shape (at most count,), int64; and the number of wanted rows without a value, which are never among them.
    """
    rows, keys, start, without = np.empty(0, np.int64), np.empty(0), 0, 0
    for _, uid, columns in table.iterate([column]):
        values = columns[column].astype(np.float64)
        here = wanted.mask(start, uid)
        without += int(np.count_nonzero(here & np.isnan(values)))
        found = np.flatnonzero(here & ~np.isnan(values))
        keys = np.append(keys, -values[found] if highest else values[found])
        rows = np.append(rows, start + found)
        best = np.argsort(keys, kind="stable")[:count]
        rows, keys, start = rows[best], keys[best], start + len(uid)
    return rows, without


def _in_order(table: score_tables.ScoreTable, texts: _Texts | None, schema: pa.Schema, rows: np.ndarray) -> pa.Table:
    """Some rows of the table in the order given."""
    ascending = np.sort(rows)

    def choose(start: int, uid: np.ndarray) -> np.ndarray:
        first, last = np.searchsorted(ascending, [start, start + len(uid)])
        mask = np.zeros(len(uid), bool)
        mask[ascending[first:last] - start] = True
        return mask

    found = pa.concat_tables([schema.empty_table(), *_blocks(table, texts, schema, choose)])
    return found.take(pa.array(np.searchsorted(ascending, rows)))


def _text(summary: ExportSummary, options: config.Export) -> str:
    lines = [
        f"exported {summary.rows:,} of {console.counted(summary.pairs, 'pair')}, {len(summary.columns)} columns:"
        f" {options.out}"
    ]
    if summary.missing:
        uid = console.counted(summary.missing, "uid")
        lines.append(
            f"{uid} of {options.subset} {'has' if summary.missing == 1 else 'have'} no row in the score tables, e.g."
            f" {', '.join(summary.missing_examples)}"
        )
    if summary.without_score:
        lines.append(f"{summary.without_score:,} pairs have no score in that column; they are never among the rows")
    ranked = options.ranked()
    if ranked is not None and summary.rows < ranked[0]:
        lines.append(f"{ranked[0]:,} were asked for: there are no more")
    if options.metadata is None:
        lines.append("Uids and scores only: --metadata FOLDER, which was scored, adds source, key, caption and url")
    return "\n".join(lines)
