"""Columns of tables and parquet files: found by name without regard to case, and their kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from clipdata_jax import storage
from clipdata_jax.errors import InputError

# The names in open_clip (filepath, title), Hugging Face's imagefolder (file_name, text), LAION (TEXT) and others.
IMAGES = ("file_name", "filepath", "filename", "image_path", "image", "path", "file")
CAPTIONS = ("caption", "text", "title")
UIDS = ("uid",)
_NO_NAME = re.compile(r"^https?://|\.(?:jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_URLS = ("url", "image_url", "img_url", "image_link")


class NoColumnError(InputError):
    """A table has no column of the usual names."""


def find(path: str, names: Sequence[str], given: str | None, usual: Sequence[str], what: str) -> str:
    """Finds a column by its name, or else by the usual ones, without regard to case.

    Args:
      path: of the table, for messages.
      names: of its columns.
      given: the value of --WHAT-column.
      usual: tried in this order if none is given.
      what: "image", "caption" or "uid".

    Raises:
      NoColumnError: none has a usual name.
      InputError: none has the given name, or several match.

    >>> find("t.csv", ["URL", "TEXT"], None, CAPTIONS, "caption")
    'TEXT'
    """
    found = find_any(path, names, usual if given is None else (given,), what)
    if found is not None:
        return found
    if given is not None:
        raise InputError(f"{path}: has no columns {given!r}; it has {', '.join(names)}")
    rows = [name for name in names if _NO_NAME.search(name)]
    if rows:
        raise NoColumnError(
            f"{path}: its first line looks like a row, not a header ({rows[0]!r:.60} is no column's name); write a line"
            " with the names of the columns above it, such as file_name and caption; where images are only URLs,"
            " download them first, for example with img2dataset"
        )
    urls = [name for name in names if name.lower() in _URLS]
    if what == "image" and urls:
        raise NoColumnError(
            f"{path}: its images are only URLs (column {urls[0]!r}); download them first, for example with img2dataset"
            f" --url_list {path} --url_col {urls[0]} --output_format webdataset, and embed the tars that it writes"
        )
    *others, last = usual
    called = f"{', '.join(others)} or {last}" if others else last
    raise NoColumnError(f"{path}: no column is called {called}; name one with --{what}-column: {', '.join(names)}")


def find_any(path: str, names: Sequence[str], usual: Sequence[str], what: str) -> str | None:
    """Finds a column as `find`; None if no name matches.

    Raises:
      InputError: several columns match a name, none of them exactly.
    """
    for name in usual:
        found = [one for one in names if one == name] or [one for one in names if one.lower() == name.lower()]
        if len(found) > 1:
            raise InputError(
                f"{path}: has {len(found)} columns {' and '.join(map(repr, found))}; rename all but one, or name"
                f" another with --{what}-column"
            )
        if found:
            return found[0]
    return None


def find_uid(path: str, types: Mapping[str, pa.DataType], given: str | None) -> str | None:
    """Finds the column of ids; None if there is none, and none was named.

    Raises:
      InputError: the one that was named is missing, or neither text, integers nor 16 bytes.
    """
    names = list(types)
    found = find_any(path, names, UIDS, "uid") if given is None else find(path, names, given, UIDS, "uid")
    if found is None:
        return None
    kind = types[found]
    is_uuid = pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16
    if is_text(kind) or pa.types.is_integer(kind) or is_uuid:
        return found
    raise InputError(f"{path}: column {found!r} holds {str(kind)[:60]}, expected ids: text, integers or 16 bytes")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, also as categories."""
    if pa.types.is_dictionary(kind):  # a category of pandas
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_texts(kind: pa.DataType) -> bool:
    """Whether a column holds lists of text."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in lists) and is_text(kind.value_type)


def is_binary(kind: pa.DataType) -> bool:
    """Whether a column holds bytes."""
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(check(kind) for check in kinds)


def is_image_struct(kind: pa.DataType) -> bool:
    """Whether a column holds records of bytes and path, as `datasets` stores images."""
    return bool(pa.types.is_struct(kind)) and any(one.name == "bytes" and is_binary(one.type) for one in kind)


def folder_of_images(path: str, root: str | None) -> str:
    """Where the relative paths of a table begin: in the folder that was named, else in the table's own.

    Raises:
      InputError: the one that was named is no folder.
    """
    if root is None:
        return path.rpartition("/")[0]
    if not storage.is_folder(root):
        raise InputError(f"--image-root is {root!r}, expected a folder")
    return root


def image_path(folder: str, stored: str) -> str:
    """The path of an image, which a table stores absolute or relative to a folder."""
    return stored if stored.startswith("/") or "://" in stored or not folder else storage.join(folder, stored)


def as_id(value: object) -> str | int | None:
    """A value of a column of ids, as a sample's `.json` has it: 16 bytes as hex digits, no text as None."""
    if isinstance(value, bytes):
        return value.hex() or None
    return value if isinstance(value, (str, int)) and value != "" else None
