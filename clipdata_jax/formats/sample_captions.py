"""The captions of a sample: its `.txt`, else those in its `.json`."""

from __future__ import annotations

from typing import Any

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars
from clipdata_jax.formats.sample_uids import BYTE_ORDER_MARK, TEXT_BYTES


class MissingMemberError(InputError):
    """A sample lacks its image or caption."""


def sample_captions(sample: tars.RawSample, fields: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Reads the caption and all captions of a sample, none of them empty.

    Args:
      sample: with the members `txt` or `json`.
      fields: of its `.json`.

    Raises:
      MissingMemberError: there is none.
      InputError: one is empty or isn't text.
    """
    several = fields.get("captions")
    if several is not None and not (isinstance(several, list) and several):
        raise InputError(f'"captions" in its .json is {several!r:.60}, expected a list of captions')
    several = several or []
    one = member_text(sample.members["txt"], "txt") if "txt" in sample.members else fields.get("caption")
    if one is None and not several:
        expected = 'expected a .txt, or "caption" or "captions" in its .json'
        expected += extension_hint(sample, "caption")
        raise MissingMemberError(f"no caption: {expected}" if sample.names else "no caption is given")
    caption = _checked(several[0] if one is None else one)
    return caption, (tuple(map(_checked, several)) if several else (caption,))


def extension_hint(sample: tars.RawSample, what: str) -> str:
    """Advice where a member's extension has several parts: a key ends at its first dot."""
    images = [name for name in sample.names if name.rpartition(".")[2] in tars.IMAGE_EXTENSIONS]
    several = [name for name in sample.names if "." in name and (name in images) == (what == "image")]
    return f"; it has .{', .'.join(sample.names)}: name one with --{what}-ext {several[0]}" if several else ""


def _checked(caption: object) -> str:
    if not isinstance(caption, str):
        raise InputError(f"a caption in its .json is {caption!r:.60}, expected text")
    caption = caption.strip().lstrip(BYTE_ORDER_MARK).strip()
    if not caption:
        raise InputError("its caption is empty")
    if any("\ud800" <= char <= "\udfff" for char in caption):
        raise InputError("its caption holds half of a surrogate pair, which is not a character")
    return caption.strip()


def member_text(data: bytes, extension: str) -> str:
    """Decodes the bytes of a member.

    Raises:
      InputError: they are too many, or not UTF-8.
    """
    if len(data) > TEXT_BYTES:
        raise InputError(f"its .{extension} has {len(data):,} bytes, more than the {TEXT_BYTES:,} that one may have")
    try:
        return data.decode("utf-8").lstrip(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise InputError(f"its .{extension} is not UTF-8 (byte {error.start})") from error
