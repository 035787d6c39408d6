"""Tables of images and captions: csv, tsv or parquet files whose rows name image files.

Of a csv or tsv every line is accounted for: no stray quote swallows the rows after it.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import parquet, tars

SUFFIXES = (".csv", ".tsv", ".parquet")
# The names in open_clip (filepath, title), Hugging Face's imagefolder (file_name, text) and others.
IMAGE_COLUMNS = ("file_name", "filepath", "filename", "image_path", "image", "path", "file")
CAPTION_COLUMNS = ("caption", "text", "title")
_LINE_END = rb"(?:\r\n?|\n|\Z)"


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
      path: ends in .csv or .tsv (see `read_delimited`), or .parquet.
      image_column: name of the column of paths; None finds it by its usual names.
      caption_column: name of the column of captions; None finds it by its usual names.
      need_caption: whether there must be captions.

    Raises:
      InputError: the table can't be read, is empty, or lacks a column.
    """
    table = _read_parquet(path) if path.lower().endswith(".parquet") else read_delimited(path)
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


def read_delimited(path: str) -> pa.Table:
    """Reads a file with a header; all columns as text, so that numbers keep their leading zeros.

    Columns are separated by tabs where the header has one, else by commas. Between commas, fields are quoted as in
    RFC 4180. Between tabs, quotes are text, unless the whole file is quoted as programs write it: either everywhere,
    or exactly where a field needs it.

    Args:
      path: UTF-8, or UTF-16 with a byte order mark.

    Raises:
      InputError: the file can't be read, its quotes are unbalanced, or a row has more or fewer columns than the header.
    """
    data = storage.read_bytes(path)
    try:
        return _parse(path, _as_utf8(data))
    except (pa.ArrowException, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: can't be read as a table ({reason}); write it again") from error


def _as_utf8(data: bytes) -> bytes:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # "Unicode text" of spreadsheets
        return data.decode("utf-16").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def _parse(path: str, data: bytes) -> pa.Table:
    header = "".join(data[: 1 << 20].lstrip(b"\r\n").decode(errors="replace").splitlines()[:1])
    delimiter = "\t" if "\t" in header else ","
    names = next(csv.reader([header], delimiter=delimiter), [])
    quotes = _check_quotes(data, delimiter.encode(), len(names))
    is_quoted = delimiter == "," or (not quotes.error and (data.startswith(b'"') or quotes.are_needed))
    if is_quoted and quotes.error:
        raise InputError(
            f"{path}: {quotes.error}; double each quote within a quoted field and quote each field that begins with"
            " one, or write a .tsv, where quotes are text"
        )
    if not is_quoted:
        names = header.split("\t")
    continued = quotes.continued if is_quoted else 0
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        read_options=pyarrow.csv.ReadOptions(use_threads=False),  # so that errors number the row
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if is_quoted else False, newlines_in_values=continued > 0
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )
    expected = _lines(data) - continued - 1
    if len(table) != expected:
        raise ValueError(f"its lines make {expected:,} rows, but {len(table):,} were read")
    return table


class _Quotes(NamedTuple):
    """The use of quotes in a file.

    Attributes:
      continued: lines that continue a quoted field of the line before.
      are_needed: whether fields are quoted, and just those that hold a quote, a delimiter or a line end.
      error: where quotes are first unbalanced; "" if nowhere.
    """

    continued: int
    are_needed: bool
    error: str


def _check_quotes(data: bytes, delimiter: bytes, columns: int) -> _Quotes:
    quoted, plain = rb'"[^"]*+(?:""[^"]*+)*+"', rb'(?:[^"%b\r\n][^%b\r\n]*+)?+' % (delimiter, delimiter)
    field = rb"(?:%b|%b)" % (quoted, plain)
    record = re.compile(rb"%b(?:%b%b)*+%b" % (field, delimiter, field, _LINE_END))
    fields = re.compile(rb"(%b)(?:%b|%b)" % (field, delimiter, _LINE_END))
    special = re.compile(rb'["\r\n%b]' % delimiter)
    continued, needed, some, end = 0, delimiter != b",", False, 0
    while (at := data.find(b'"', end)) >= 0:
        start = max(data.rfind(b"\n", end, at), data.rfind(b"\r", end, at), end - 1) + 1
        found = record.match(data, start)
        lines = found[0].rstrip(b"\r\n").splitlines() if found else []
        if found is None or (len(lines) > 1 and _are_rows(lines, delimiter, columns)):
            number = len(re.findall(rb"\r\n?|\n", data[:start])) + 1
            return _Quotes(continued, needed, f"line {number}: unbalanced quotes")
        if len(lines) > 1:
            continued += sum(map(bool, lines)) - 1
        for one in fields.findall(found[0]) if needed else ():
            if b'"' in one:
                some, needed = True, needed and one[:1] == b'"' and special.search(one, 1, len(one) - 1) is not None
        end = found.end()
    return _Quotes(continued, some and needed, "")


def _are_rows(lines: list[bytes], delimiter: bytes, columns: int) -> bool:
    """Whether the lines of one record are more likely rows, of which two have a stray quote.

    That is, each has as many columns as the header, and a file name with the same ending in the same column.
    """
    rows = [line.split(delimiter) for line in lines if line]
    endings = [[re.search(rb"\.\w{2,5}$", one.strip(b'"')) for one in row] for row in rows]
    names = [{(i, found[0].lower()) for i, found in enumerate(row) if found} for row in endings]
    return all(len(row) == columns for row in rows) and bool(set.intersection(*names))


def _lines(data: bytes) -> int:
    """The number of lines that aren't empty."""
    codes = np.frombuffer(data, np.uint8)
    inside = (codes != ord("\n")) & (codes != ord("\r"))
    return int(np.count_nonzero(inside[1:] & ~inside[:-1])) + int(inside[:1].sum())
