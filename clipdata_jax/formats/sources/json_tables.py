"""Tables in JSON: an object a line, a list of objects, or COCO's captions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clipdata_jax import storage
from clipdata_jax.errors import InputError

SUFFIXES = (".jsonl", ".ndjson", ".json")
_ADVICE = "expected an object a line, a list of objects, or COCO's captions"


def read_json(path: str) -> pa.Table:
    """Reads a table; columns that hold neither text, lists of text nor integers are left out.

    Args:
      path: UTF-8. Of COCO's captions (lists "images" and "annotations") the columns are the images' `file_name`, and
        the annotations' `caption` and `id`.

    Raises:
      InputError: the file can't be read, or is of another form.
    """
    data = storage.read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
        whole = json.loads(text) if text.lstrip()[:1] == "[" or not path.lower().endswith(SUFFIXES[:2]) else None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start}); write it again") from error
    except (ValueError, RecursionError):
        whole = None  # an object a line has other names, too
    if isinstance(whole, list):
        rows = whole
    elif isinstance(whole, dict) and isinstance(whole.get("annotations"), list):
        rows = _coco(path, whole)
    else:
        rows = [_parsed(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: {_ADVICE}")
    columns = {name: _column([row.get(name) for row in rows]) for name in dict.fromkeys(n for row in rows for n in row)}
    return pa.table({name: column for name, column in columns.items() if column is not None})


def _parsed(path: str, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: line {number} is not JSON ({error}); {_ADVICE}") from error


def _coco(path: str, whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each annotation.

    Raises:
      InputError: one names an image that is not listed, or isn't a caption.
    """
    try:
        names = {image["id"]: image["file_name"] for image in whole["images"]}
        return [
            {"file_name": names[one["image_id"]], "caption": one["caption"], "id": one.get("id")}
            for one in whole["annotations"]
        ]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not COCO's captions ({error!r} is missing): expected lists images (id, file_name) and annotations"
            " (image_id, caption)"
        ) from error


def _column(values: Sequence[Any]) -> pa.Array | None:
    """The values as text, lists of text, or integers; None if they are something else."""
    for kind in (pa.string(), pa.list_(pa.string()), pa.int64()):
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
    return None
