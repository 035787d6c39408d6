"""Image data sets of the hub as they lie on a disk: rows in parquet, arrow, csv or json, images inside or in a zip."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import parquet, tars
from clipdata_jax.formats.sources import delimited_text, json_tables
from clipdata_jax.formats.sources import table_columns as columns

_TEXT_TABLES = (".csv", ".tsv", *json_tables.SUFFIXES)
# The first kind that a folder has counts: beside a csv, parquet files are what was made of it.
_KINDS = ((".parquet",), (".arrow",), _TEXT_TABLES)
_TEST = "test"
_BATCH = 16  # rows in memory at a time, besides a page of the file
_DOWNLOADS = "/downloads/"  # in the cache of `datasets`, where arrow files' images are
# zipfile raises the last two for a compression and a password that it does not know.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclasses.dataclass(frozen=True)
class HubTable:
    """A data set's table, and the zips and folders that hold its images where they aren't inside.

    Attributes:
      folder: of the data set.
      paths: the files of the table, in order.
      archives: zips of images.
    """

    folder: str
    paths: tuple[str, ...]
    archives: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """All files that are read, but for single image files."""
        return (*self.paths, *self.archives)

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        path = self.paths[0]
        if path.endswith(".parquet"):
            return tuple(parquet.groups_and_types(path)[1])
        return tuple(next(_batches(path, None)).schema.names)

    def column(self, usual: Sequence[str], what: str) -> str:
        """Finds a column by its usual names.

        Raises:
          InputError: none has one of them, or several have.
        """
        found = columns.find_any(self.paths[0], self.columns, usual, what)
        if found is None:
            raise InputError(
                f"{self.paths[0]}: has no column of {what}, called {', '.join(usual[:-1])} or {usual[-1]}; it has"
                f" {', '.join(self.columns)}"
            )
        return found

    def rows(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields the rows of these columns; only those of the split "test" where a csv or json has such."""
        for path in self.paths:
            for batch in _batches(path, names):
                yield from batch.to_pylist()

    @contextlib.contextmanager
    def images(self) -> Iterator[Callable[[Any], bytes]]:
        """Opens what holds the images; yields a function from a row's value to the encoded image.

        The value is bytes, a record of bytes and path, or a file's name or path.
        """
        with contextlib.ExitStack() as stack:
            yield _Images(self, stack).read


def find_table(folder: str) -> HubTable | None:
    """Finds the table of a data set in a folder and those below it; None if there is none.

    Of files of several splits those count that have "test" in their names.
    """
    paths = [path for path in storage.Folder(folder).tree() if not storage.is_hidden(path[len(folder) + 1 :])]
    for kind in _KINDS:
        found = [path for path in paths if path.endswith(kind)]
        of_test = [path for path in found if _TEST in path.rpartition("/")[2].lower()]
        if chosen := of_test or found:
            if kind is _TEXT_TABLES and len(chosen) > 1:
                raise InputError(f"{folder}: holds {len(chosen)} tables, {chosen[0]} and others; keep the one of test")
            return HubTable(folder, tuple(chosen), tuple(path for path in paths if path.endswith(".zip")))
    return None


def texts_of(value: object, where: str) -> list[str]:
    """A list of texts, also one that a csv holds as JSON or as Python writes it; one text is a list of one.

    Args:
      value: of the column.
      where: file, row and column, for messages.

    Raises:
      InputError: it is something else, or empty.

    >>> texts_of('["a cat", "a dog"]', "t.csv"), texts_of("['a cat']", "t.csv"), texts_of("a cat", "t.csv")
    (['a cat', 'a dog'], ['a cat'], ['a cat'])
    """
    several = [value] if isinstance(value, str) else value
    if isinstance(value, str) and value.lstrip().startswith("["):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                several = parse(value.strip())
                break
    if not isinstance(several, list) or not several or not all(isinstance(one, str) and one for one in several):
        raise InputError(f"{where} is {value!r:.60}, expected a text or a list of texts")
    return several


def _batches(path: str, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Some columns of a table; all of them if `names` is None."""
    if path.endswith(".parquet"):
        groups, _ = parquet.groups_and_types(path)
        yield from parquet.stream(path, list(names or ()), range(len(groups)), _BATCH)
    elif path.endswith(".arrow"):
        yield from _arrow_batches(path, names)
    else:
        is_text = path.endswith((".csv", ".tsv"))
        table = _test_rows(delimited_text.read_delimited(path) if is_text else json_tables.read_json(path))
        yield from (table if names is None else table.select(list(names))).to_batches()


def _test_rows(table: pa.Table) -> pa.Table:
    name = next((name for name in table.column_names if name.lower() == "split"), None)
    of_test = [] if name is None else [str(value).strip().lower() == _TEST for value in table[name].to_pylist()]
    return table.filter(pa.array(of_test)) if any(of_test) else table


def _arrow_batches(path: str, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """The rows of a file of Arrow's stream or file format, as `datasets` keeps them in its cache."""
    with storage.open_read(path) as file:
        try:
            try:
                stream: Any = pa.ipc.open_stream(file)
            except pa.ArrowInvalid:
                file.seek(0)
                found = pa.ipc.open_file(file)
                stream = map(found.get_batch, range(found.num_record_batches))
            for batch in stream:
                chosen = batch if names is None else batch.select(list(names))
                yield from (chosen.slice(start, _BATCH) for start in range(0, max(len(chosen), 1), _BATCH))
        except (pa.ArrowException, KeyError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: damaged or not an arrow file ({reason}); download it again") from error


class _Images:
    """The images of a table, by what its rows say of them."""

    def __init__(self, table: HubTable, stack: contextlib.ExitStack) -> None:
        self._table, self._stack = table, stack

    @functools.cached_property
    def _zipped(self) -> dict[str, tuple[str, zipfile.ZipFile, zipfile.ZipInfo]]:
        """The zips' images by name without folder, and by name without ending, too."""
        found: dict[str, tuple[str, zipfile.ZipFile, zipfile.ZipInfo]] = {}
        for path in self._table.archives:
            try:
                archive = self._stack.enter_context(zipfile.ZipFile(self._stack.enter_context(storage.open_read(path))))
            except _DAMAGE as error:
                raise InputError(f"{path}: damaged or not a zip file ({error}); download it again") from error
            for info in archive.infolist():
                name = info.filename.rpartition("/")[2]
                if not info.is_dir() and name.lower().endswith(tars.IMAGE_EXTENSIONS) and not name.startswith("."):
                    found[name] = found[name.rpartition(".")[0]] = path, archive, info
        return found

    @functools.cached_property
    def _files(self) -> dict[str, str]:
        """Image files beside the table, likewise."""
        paths = [path for path in storage.Folder(self._table.folder).tree() if path.endswith(tars.IMAGE_EXTENSIONS)]
        names = [(path.rpartition("/")[2], path) for path in paths]
        return dict(itertools.chain(((name.rpartition(".")[0], path) for name, path in names), names))

    def read(self, value: Any) -> bytes:
        """The encoded image of a row's value.

        Raises:
          InputError: there is none, or it can't be read.
        """
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            raise InputError(f"its image is {value!r:.60}, expected an image or the name of one")
        name = value.rpartition("/")[2]
        if name in self._zipped:
            return self._unzipped(*self._zipped[name])
        if "/" in value and (path := self._cached(value)):
            return storage.read_bytes(path)
        if name in self._files:
            return storage.read_bytes(self._files[name])
        raise InputError(f"its image {value!r:.60} is neither in a zip beside the table nor a file in its folder")

    def _cached(self, path: str) -> str | None:
        """Where a path of the cache of `datasets` is now, which may have been moved."""
        moved = path.rpartition(_DOWNLOADS)[2]
        root = self._table.folder.rpartition("/")[0]
        tried = (path, storage.join(root, _DOWNLOADS.strip("/"), moved))
        return next((one for one in tried if storage.exists(one)), None)

    def _unzipped(self, path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
        tars.check_size(path, info.filename, info.file_size)
        try:
            return archive.read(info)
        except _DAMAGE as error:
            raise InputError(f"{path}: member {info.filename!r} is damaged ({error}); download it again") from error
