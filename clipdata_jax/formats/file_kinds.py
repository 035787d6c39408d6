"""The kinds of files, told by their first bytes: finds images of any name, and names files of the wrong kind."""

from __future__ import annotations

import codecs
import re

from clipdata_jax import storage
from clipdata_jax.errors import InputError

HEAD = 512
"""Bytes that are enough to tell."""
_UNPACK = "unpack it first"
# (kind, pattern at the start, what to do where nothing can read it); the first match counts.
_KINDS = (
    ("a JPEG image", rb"\xff\xd8\xff", ""),
    ("a PNG image", rb"\x89PNG\r\n\x1a\n", ""),
    ("a WebP image", rb"RIFF....WEBP", ""),
    ("a GIF image", rb"GIF8[79]a", ""),
    ("a BMP image", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", ""),
    ("a TIFF image", rb"II\x2a\0|MM\0\x2a|II\x2b\0|MM\0\x2b", ""),
    ("an AVIF image", rb"....ftyp(?:avif|avis|(?:mif1|msf1).{4}(?:.{4}){0,15}?avif)", ""),
    ("a tar file", rb".{257}ustar", ""),
    ("a parquet file", rb"PAR1", ""),
    ("a .npy array", rb"\x93NUMPY", ""),
    ("a gzip file", rb"\x1f\x8b", _UNPACK),
    ("a bzip2 file", rb"BZh[1-9]", _UNPACK),
    ("an xz file", rb"\xfd7zXZ\0", _UNPACK),
    ("a zstd file", rb"\x28\xb5\x2f\xfd", _UNPACK),
    (
        "a pickle",
        rb"\x80[\x02-\x05][^\x80]|PK\x03\x04.{26}[^/]{1,80}/(?:\.format_version|data\.pkl)",
        "pickles are never read; save arrays as .npy or .npz, weights as .safetensors",
    ),
    ("a .npz file", rb"PK\x03\x04.{26}[^/]{1,80}\.npy", ""),
    ("a zip file", rb"PK\x03\x04", _UNPACK),
    ("a Git LFS pointer", rb"version https://git-lfs\.github\.com", "fetch the file itself: git lfs pull"),
    ("a web page", rb"(?i)\s*<(?:!doctype html|html)", "its download failed; download it again"),
    ("an XML file", rb"\s*<\?xml", ""),
    ("a JSON file", rb"\s*[{\[]\s*[\"{\[\d\]}]", ""),
)
_PATTERNS = [(kind, re.compile(pattern, re.DOTALL), advice) for kind, pattern, advice in _KINDS]
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+\Z")


def kind_of(head: bytes) -> str:
    """Returns what a file is, with its article: "a PNG image", "a tar file", "a text file"; "" if unknown.

    Args:
      head: its first `HEAD` bytes, or all of a shorter file.

    >>> kind_of(b"GIF89a..."), kind_of(b"<!DOCTYPE html><html>"), kind_of(b"a caption"), kind_of(bytes(9))
    ('a GIF image', 'a web page', 'a text file', '')
    """
    return recognise(head)[0]


def is_image(head: bytes) -> bool:
    """Whether a file is an image of a kind that is decoded: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."""
    return kind_of(head).endswith("image")


def extension(head: bytes) -> str:
    r"""Returns the usual extension of an image, "jpg" if its kind is unknown.

    >>> extension(b"GIF89a..."), extension(b"\xff\xd8\xff...")
    ('gif', 'jpg')
    """
    kind = kind_of(head)
    return "jpg" if not kind.endswith("image") else kind.split()[1].lower().replace("jpeg", "jpg")


def recognise(head: bytes) -> tuple[str, str]:
    """Returns `kind_of` a file, and what to do about one that nothing here reads; "" for other kinds.

    Args:
      head: its first `HEAD` bytes, or all of a shorter file.
    """
    if not head:
        return "an empty file", ""
    for kind, pattern, advice in _PATTERNS:
        if pattern.match(head):
            return kind, advice
    if _TEXT.match(head.removeprefix(codecs.BOM_UTF8)):
        return "a text file", ""
    return "", ""


def is_pickle(path: str) -> bool:
    """Whether a path is a pickle, such as torch.save writes."""
    if not storage.exists(path) or storage.is_folder(path):
        return False
    with storage.open_read(path) as file:
        return kind_of(file.read(HEAD)) == "a pickle"


def kind_of_file(path: str) -> str:
    """Returns `kind_of` a file; "" if it can't be read, which is an error where it is needed."""
    try:
        with storage.open_read(path) as file:
            return kind_of(file.read(HEAD))
    except InputError:
        return ""


def mistaken(path: str, expected: str, advice: str) -> str:
    """Returns the sentence for a file that isn't of the expected kind; "" if it is, or its kind is unknown.

    Args:
      path: of the file.
      expected: its kind, as of `kind_of`.
      advice: what to do where the kind alone doesn't say.
    """
    try:
        with storage.open_read(path) as file:
            kind, known_advice = recognise(file.read(HEAD))
    except InputError:
        return ""
    if kind in ("", expected) or (expected, kind) == ("a .npz file", "a zip file"):
        return ""
    return f"{path}: is {kind}, not {expected}; {known_advice or advice}"
