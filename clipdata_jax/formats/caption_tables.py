"""Tables of images and captions: csv, tsv or parquet files whose rows name image files."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import delimited, parquet, tars

SUFFIXES = (".csv", ".tsv", ".parquet")
# The names in open_clip (filepath, title), Hugging Face's imagefolder (file_name, text) and others.
IMAGE_COLUMNS = ("file_name", "filepath", "filename", "image_path", "image", "path", "file")
CAPTION_COLUMNS = ("caption", "text", "title")


@dataclasses.dataclass(frozen=True)
class CaptionTable:
    """An open table; its text columns are in memory, the images are not.

    Attributes:
      path: the file.
      images: image paths as stored, absolute or relative to the table's folder.
      captions: None where they aren't needed.
      uids: the column "uid", None if the table has none.
    """

    path: str
    images: pa.ChunkedArray
    captions: pa.ChunkedArray | None
    uids: pa.ChunkedArray | None

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
        folder = self.path.rpartition("/")[0]
        for row in range(start, stop):
            image = self.images[row].as_py()
            members = {}
            caption = None if self.captions is None else self.captions[row].as_py()
            if caption is not None:
                members["txt"] = caption.encode(errors="surrogatepass")
            if self.uids is not None:
                members["json"] = json.dumps({"uid": self.uids[row].as_py()}).encode()
            if not image:
                yield tars.RawSample(f"row {row}", members, {})
                continue
            absolute = image.startswith("/") or "://" in image or not folder
            key = image if self.times[row] == 1 else f"{image}#{self.times[row]}"
            yield tars.ImageFileSample(key, members, {}, image if absolute else storage.join(folder, image))


def open_table(path: str, image_column: str | None, caption_column: str | None, *, need_caption: bool) -> CaptionTable:
    """Opens a table.

    Args:
      path: ends in .csv or .tsv (see `delimited.read_delimited`), or .parquet.
      image_column: name of the column of paths; None finds it by its usual names.
      caption_column: name of the column of captions; None finds it by its usual names.
      need_caption: whether there must be captions.

    Raises:
      InputError: the table can't be read, is empty, or lacks a column.
    """
    table = _read_parquet(path) if path.lower().endswith(".parquet") else delimited.read_delimited(path)
    if not len(table):
        raise InputError(f"{path}: the table is empty, expected a row per image")
    image = _column(path, table, image_column, IMAGE_COLUMNS, "image")
    caption = _column(path, table, caption_column, CAPTION_COLUMNS, "caption") if need_caption else None
    uid = table["uid"] if table.column_names.count("uid") == 1 else None
    return CaptionTable(path, image, caption, uid)


def _read_parquet(path: str) -> pa.Table:
    # Another column may hold the images themselves: only text columns are read.
    texts = [name for name, kind in parquet.rows_and_types(path)[1].items() if _is_text(kind)]
    if not texts:
        raise InputError(f"{path}: no column holds text; expected one with the paths of images")
    table = parquet.read(path, texts)
    return table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names]))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # a category of pandas
        kind = kind.value_type
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)


def _column(path: str, table: pa.Table, given: str | None, usual: Sequence[str], what: str) -> pa.ChunkedArray:
    names = table.column_names
    if given is not None and names.count(given) != 1:
        raise InputError(f"{path}: has {names.count(given) or 'no'} columns {given!r}; it has {', '.join(names)}")
    found = [name for name in usual if names.count(name) == 1] if given is None else [given]
    if not found:
        raise InputError(
            f"{path}: no column is called {', '.join(usual[:-1])} or {usual[-1]}; name one with"
            f" --{what}-column: {', '.join(names)}"
        )
    return table[found[0]]
