"""Ids of any kind as uids of 128 bits: UUIDs are taken as they are, other texts and integers are hashed.

The rule, which `docs/uids.md` has with test vectors: 32 hex digits in upper or lower case are a uid, with the dashes
of a UUID, too. Of any other id it is the first 128 bits of SHA-256 over its UTF-8 text; an integer's text is decimal.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from clipdata_jax.errors import InputError
from clipdata_jax.formats import uids

_UID = re.compile(rb"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DASHES = (8, 13, 18, 23)
_UUID = 36  # characters of a UUID with dashes


class ParsedIds(NamedTuple):
    """ParsedIds of a column of ids.

    Attributes:
      uid: shape (n,), u8,u8.
      hashed: how many of the ids were hashed; the others are uids themselves.
    """

    uid: np.ndarray
    hashed: int


def uid_of_id(value: object) -> str:
    """Returns the uid of one id, 32 hex digits in lower case.

    Raises:
      InputError: the id is empty, or neither text nor an integer.

    >>> uid_of_id("0A0B0C0D-0E0F-1011-1213-141516171819")
    '0a0b0c0d0e0f10111213141516171819'
    >>> uid_of_id(17) == uid_of_id("17")
    True
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"its uid is {value!r:.60}, expected text or an integer")
    try:
        return _bits(str(value).encode()).hex()
    except UnicodeEncodeError as error:
        raise InputError(f"its uid {value!r:.60} holds half of a surrogate pair, which is not a character") from error


def _bits(text: bytes) -> bytes:
    return bytes.fromhex(text.replace(b"-", b"").decode()) if _is_uid(text) else hashlib.sha256(text).digest()[:16]


def _is_uid(text: bytes) -> bool:
    return len(text) in (32, _UUID) and _UID.fullmatch(text) is not None


def from_column(
    column: Sequence[str] | pa.Array | pa.ChunkedArray, source: str, first_row: int = 0, name: str = "uid"
) -> ParsedIds:
    """Returns the uids of a column of ids.

    Args:
      column: n ids: text, integers, or UUIDs in binary form (16 bytes each, which are the uid).
      source: the file, for messages.
      first_row: the number of the column's first row in that file.
      name: of the column.

    Raises:
      InputError: the ids are of another kind, one is missing, or two that differ have the same uid.

    >>> found = from_column(pa.array([7, 8]), "ids.parquet")
    >>> uids.to_hex(found.uid), found.hashed
    (['7902699be42c8a8e46fbbb4501726517', '2c624232cdd221771294dfbb310aca00'], 2)
    """
    texts = as_text(column, source, name)
    if texts.null_count:
        row = first_row + int(np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{source}: row {row}: the {name} is missing, expected text or an integer")
    if not len(texts):
        return ParsedIds(np.empty(0, uids.DTYPE), 0)
    if pa.types.is_fixed_size_binary(texts.type):
        return ParsedIds(uids.from_bytes(b"".join(texts.to_pylist())), 0)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    widths = np.diff(offsets)
    if not widths.all():
        raise InputError(f"{source}: row {first_row + int(widths.argmin())}: the {name} is empty, expected an id")
    packed = _packed(texts.buffers()[2], offsets, widths)
    if packed is not None:
        return ParsedIds(uids.from_bytes(packed), 0)
    held = texts.to_pylist()
    if np.isin(widths, (32, _UUID)).any():
        uid = uids.from_bytes(b"".join(map(_bits, held)))
        hashed = len(held) - sum(map(_is_uid, held))
    else:  # none can be a uid
        sha256 = hashlib.sha256
        uid = uids.from_bytes(b"".join([sha256(text).digest()[:16] for text in held]))
        hashed = len(held)
    check_collisions(uid, held, source)
    return ParsedIds(uid, hashed)


def check_name(path: str, names: Iterable[str], column: str) -> None:
    """Checks the name that --uid-column gives: other commands take a column uid where there is one.

    Args:
      path: of the metadata.
      names: of its columns.
      column: the one with the ids.

    Raises:
      InputError: it is missing, or another one is called uid.
    """
    there = list(names)
    if column not in there:
        hint = "; --uid-column names another one with ids" if column == "uid" else ""
        raise InputError(f"{path}: column {column!r} is missing; it has {', '.join(there)}{hint}")
    if column != "uid" and "uid" in there:
        raise InputError(
            f"{path}: --uid-column is {column!r}, but there is a column uid: leave it out, or rename that one"
        )


def as_text(column: Sequence[str] | pa.Array | pa.ChunkedArray, source: str, name: str = "uid") -> pa.Array:
    """Returns ids as one array of bytes: their UTF-8 text, or of UUIDs in binary form these 16 bytes.

    Args:
      column: as of `from_column`; ids may be null.
      source: the file, for messages.
      name: of the column.

    Raises:
      InputError: they are of another kind.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array):
        column = pa.array(column, pa.string())
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16:
        return column
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    elif pa.types.is_dictionary(kind):
        return as_text(column.dictionary_decode(), source, name)
    elif not any(is_kind(kind) for is_kind in _TEXTS):
        hint = "; pandas makes floats of integers where some are missing" if pa.types.is_floating(kind) else ""
        raise InputError(f"{source}: column {name!r} holds {str(kind)[:60]}, expected text, integers or UUIDs{hint}")
    return column.cast(pa.large_binary())


_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_null,
)


def _packed(data: pa.Buffer, offsets: np.ndarray, widths: np.ndarray) -> bytes | None:
    """The bytes of texts that all are 32 hex digits, or all UUIDs with dashes; else None."""
    if (widths != widths[0]).any() or widths[0] not in (32, _UUID):
        return None
    text = bytes(data[offsets[0] : offsets[-1]])
    if widths[0] == _UUID:
        grid = np.frombuffer(text, np.uint8).reshape(-1, _UUID)
        if (grid[:, _DASHES] != ord("-")).any():
            return None
        text = np.delete(grid, _DASHES, axis=1).tobytes()
    packed = uids.packed_hex(text)
    return packed if packed is not None and len(packed) == 16 * len(widths) else None


def check_collisions(uid: np.ndarray, texts: Iterable[bytes], source: str) -> None:
    """Checks that ids of the same uid are the same.

    Args:
      uid: shape (n,), u8,u8.
      texts: the ids.
      source: the file, for messages.

    Raises:
      InputError: two differ, other than by case and dashes.
    """
    ordered = uids.sort(uid)
    first = uids.first_of_each(ordered)
    if first.all():
        return
    again = uids.find(uids.unique(ordered[~first]), uid)
    seen: dict[int, bytes] = {}
    for at, text in zip(again.tolist(), texts, strict=True):
        plain = text.replace(b"-", b"").lower() if _is_uid(text) else text
        if at >= 0 and seen.setdefault(at, plain) != plain:
            one, other = (repr(each.decode("utf-8", "replace")) for each in (seen[at], plain))
            raise InputError(f"{source}: the ids {one:.80} and {other:.80} have the same uid; rename one of the two")


def from_table(table: pa.Table, path: str, first_row: int = 0) -> ParsedIds:
    """Returns the uids of a table: of its columns uid_hi and uid_lo if it has them, else of its column uid.

    Raises:
      InputError: as `from_column`; or a half isn't uint64, or has nulls.
    """
    if not set(uids.HALVES) <= set(table.column_names):
        return from_column(table["uid"], path, first_row)
    for name in uids.HALVES:
        nulls, kind = table[name].null_count, table[name].type
        if kind != pa.uint64() or nulls:
            what = f"has {nulls} nulls" if kind == pa.uint64() else f"is {str(kind)[:60]}"
            raise InputError(f"{path}: column {name!r} {what}, expected uint64")
    return ParsedIds(uids.join_halves(*(table[name].to_numpy() for name in uids.HALVES)), 0)
