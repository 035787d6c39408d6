"""Delimited text, csv and tsv, read so that every line is accounted for: no stray quote swallows the rows after it."""

from __future__ import annotations

import codecs
import csv
import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from clipdata_jax import storage
from clipdata_jax.errors import InputError

_LINE_END = rb"(?:\r\n?|\n|\Z)"


def read_delimited(path: str) -> pa.Table:
    """Reads a file with a header; all columns as text, so that numbers keep their leading zeros.

    Columns are separated by tabs where the header has one, else by commas, or by semicolons where it has none of these.
    Between commas and semicolons, fields are quoted as in RFC 4180, and blanks around them don't count where the
    header has some. Between tabs, quotes are text, unless the whole file is quoted as programs write it: either
    everywhere, or exactly where a field needs it.

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
    delimiter = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
    names = next(csv.reader([header], delimiter=delimiter), [])
    quotes = _check_quotes(data, delimiter.encode(), len(names))
    is_quoted = delimiter != "\t" or (not quotes.error and (data.startswith(b'"') or quotes.are_needed))
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
    if any(name != name.strip() for name in names):  # a blank after each delimiter
        table = pa.table([pc.utf8_trim_whitespace(column) for column in table.columns], [n.strip() for n in names])
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
    continued, needed, some, end = 0, delimiter == b"\t", False, 0
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
