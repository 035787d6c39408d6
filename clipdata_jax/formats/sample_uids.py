"""The `.json` of a webdataset sample, and the uid that identifies the sample."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from clipdata_jax.errors import InputError
from clipdata_jax.formats import ids, uids

# A .json takes some twenty times its size when parsed.
TEXT_BYTES = 1 << 24
BYTE_ORDER_MARK = "\ufeff"
_KEY = b'"uid"'
_PLAIN = re.compile(rb'"uid"\s*:\s*"([0-9a-fA-F]{32})"')


def json_fields(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Parses the `.json` of a sample; {} if it has none.

    Args:
      members: extension -> bytes, as of a `tars.RawSample`.

    Raises:
      InputError: it is too large, not JSON, or not an object.
    """
    if "json" not in members:
        return {}
    if (size := len(members["json"])) > TEXT_BYTES:
        raise InputError(f"its .json has {size:,} bytes, more than the {TEXT_BYTES:,} that one may have")
    try:
        fields = json.loads(members["json"])
    except (ValueError, RecursionError) as error:
        raise InputError(f"its .json is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"its .json holds a {type(fields).__name__}, expected an object")
    return fields


def sample_uid(source: str, key: str, fields: Mapping[str, Any]) -> str:
    """Determines the uid of a sample: "uid" of its `.json`, any id (see `ids`), else the hash of source and key.

    Args:
      source: the name of its tar or other source in the pool, from `pool_names`.
      key: of the sample.
      fields: of its `.json`.

    Raises:
      InputError: the uid is empty, or neither text nor an integer.
    """
    if fields.get("uid") is None:
        return uids.uid_of(source, key)
    return ids.uid_of_id(fields["uid"])


def owner_id(fields: Mapping[str, Any]) -> str | None:
    """The id that a sample's uid was made of, as text; None if it is the uid itself, or there is none.

    Args:
      fields: of its `.json`.
    """
    given = fields.get("uid")
    return None if given is None or uids.is_uid(given) else str(given)


def plain_uid(text: bytes) -> str | None:
    """Finds the uid of a JSON object without parsing it; None if only parsing can tell.

    Parsing takes several times longer. A plain uid is the only "uid", after one brace, the object's own, and after no
    backslash, so that it isn't the end of a longer key.

    >>> plain_uid(b'{"uid": "00000000000000000000000000000001", "width": 64}')
    '00000000000000000000000000000001'
    """
    at = text.find(_KEY)
    if at < 0 or text.find(_KEY, at + 1) >= 0 or text.count(b"{", 0, at) != 1 or text.find(b"\\", 0, at) >= 0:
        return None
    match = _PLAIN.match(text, at)
    return match[1].decode().lower() if match else None
