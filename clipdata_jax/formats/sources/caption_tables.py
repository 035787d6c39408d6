"""Tables of images and captions: csv, tsv, JSON or parquet files whose rows name image files."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipdata_jax import storage
from clipdata_jax.config import Reading
from clipdata_jax.errors import InputError
from clipdata_jax.formats import parquet, tars
from clipdata_jax.formats.sources import json_tables
from clipdata_jax.formats.sources import table_columns as columns
from clipdata_jax.formats.sources.delimited_text import read_delimited

SUFFIXES = (".csv", ".tsv", *json_tables.SUFFIXES, ".parquet")


@dataclasses.dataclass(frozen=True)
class CaptionTable:
    """An open table, a row per caption; its columns are in memory, the images are not.

    Attributes:
      path: the file.
      folder: where relative paths of images begin: the table's folder, or another one that was named.
      images: image paths as stored, absolute or relative.
      captions: None where they aren't needed.
      uids: the ids, text or integers; None if the table has none.
      places: for each row the place of its caption in the list that it is from, from 1; None if there are no lists.
    """

    path: str
    folder: str
    images: pa.ChunkedArray
    captions: pa.ChunkedArray | None
    uids: pa.ChunkedArray | None
    places: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def times(self) -> np.ndarray:
        """For each row, how often its image occurs up to and including it."""
        codes = self.images.combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        first = np.flatnonzero(np.diff(codes[order], prepend=-1))
        times = np.empty(len(codes), np.int64)
        times[order] = np.arange(len(codes)) - np.repeat(first, np.diff(first, append=len(codes))) + 1
        return times

    def facts(self) -> dict[str, str | int]:
        """The table's name, size, digest and number of rows."""
        size, digest = storage.size(self.path), storage.digest(self.path)
        return {"name": self.path, "bytes": size, "digest": digest, "images": len(self)}

    def samples(self, start: int, stop: int) -> Iterator[tars.RawSample]:
        """Yields rows as samples; the key is the image's path, or the row's number where the path is null.

        An image's second row, with another caption, is another pair, with the key "path#2".
        """
        for row in range(start, stop):
            image = self.images[row].as_py()
            members = {}
            caption = None if self.captions is None else self.captions[row].as_py()
            if caption is not None:
                members["txt"] = caption.encode(errors="surrogatepass")
            if self.uids is not None:
                uid = columns.as_id(self.uids[row].as_py())
                if uid is not None and self.places is not None and self.places[row] > 1:
                    uid = f"{uid}#{self.places[row]}"
                members["json"] = json.dumps({"uid": uid}).encode()
            if not image:
                yield tars.RawSample(f"row {row}", members, {})
                continue
            repeats = image if self.times[row] > 1 else ""
            key = f"{image}#{self.times[row]}" if repeats else image
            yield tars.ImageFileSample(key, members, {}, columns.image_path(self.folder, image), repeats=repeats)


def open_table(
    path: str, types: Mapping[str, pa.DataType] | None, reading: Reading, *, is_json: bool, need_caption: bool
) -> CaptionTable:
    """Opens a table; a row with a list of captions becomes a row for each.

    Args:
      path: a parquet file, delimited text (see `read_delimited`), or JSON (see `read_json`).
      types: name -> type of each column of a parquet file; None for text.
      reading: which columns to read; None finds one by its usual names.
      is_json: whether the text is JSON.
      need_caption: whether there must be captions.

    Raises:
      InputError: the table can't be read, is empty, or lacks a column.
    """
    table = None
    if types is None:
        table = json_tables.read_json(path) if is_json else read_delimited(path)
    types = {field.name: field.type for field in table.schema} if table is not None else types or {}
    names = table.column_names if table is not None else list(types)
    texts = [name for name in names if columns.is_text(types[name])]
    if not texts:
        raise columns.NoColumnError(f"{path}: no column holds text; expected one with the paths of images")
    image = columns.find(path, texts, reading.image_column, columns.IMAGES, "image")
    caption = None
    if need_caption:
        either = [name for name in names if name in texts or columns.is_texts(types[name])]
        caption = columns.find(path, either, reading.caption_column, columns.CAPTIONS, "caption")
    uid = columns.find_uid(path, types, reading.uid_column)
    if table is None:
        table = parquet.read(path, list(dict.fromkeys(filter(None, (image, caption, uid)))))
    if not len(table):
        raise InputError(f"{path}: the table is empty, expected a row per image")
    places = None
    captions, uids = (None if name is None else table[name] for name in (caption, uid))
    images = table[image]
    if captions is not None and columns.is_texts(captions.type):
        rows, places, captions = _one_a_row(captions)
        images, uids = images.take(rows), None if uids is None else uids.take(rows)
    folder = columns.folder_of_images(path, reading.image_root)
    return CaptionTable(path, folder, _as_text(images), None if captions is None else _as_text(captions), uids, places)


def has_paths(path: str, types: Mapping[str, pa.DataType], given: str | None) -> bool:
    """Whether a parquet file has a column of image paths."""
    texts = [name for name, kind in types.items() if columns.is_text(kind)]
    return columns.find_any(path, texts, columns.IMAGES if given is None else (given,), "image") is not None


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.large_string())


def _one_a_row(lists: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray, pa.ChunkedArray]:
    """Cuts lists of captions; one that is null or empty becomes a null.

    Returns:
      For each caption the row and the place, from 1, of its list, and the captions.
    """
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    kept = np.maximum(lengths, 1)
    rows = np.repeat(np.arange(len(lengths)), kept)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept) + 1
    lacking = lengths[rows] == 0
    values = pa.array(np.cumsum(~lacking) - 1, mask=lacking)
    return pa.array(rows), places, pc.list_flatten(lists).take(values)
