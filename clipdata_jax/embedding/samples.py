"""Samples as pixels, captions and uids: in order, decoded by threads, the bad ones named."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.formats import file_kinds, tars
from clipdata_jax.formats.sample_uids import BYTE_ORDER_MARK, TEXT_BYTES, json_fields, owner_id, sample_uid
from clipdata_jax.runtime import threads


@dataclasses.dataclass(frozen=True)
class Decoded:
    """One sample, ready for a model.

    Attributes:
      tar: the path of its tar, or of what else it is from.
      key: its key in there.
      uid: 32 hex digits: of the id in the `.json` where it has one, else the hash of the tar's name and the key.
      caption: the `.txt`, else "caption" of the `.json`, else the first of its "captions", without a byte order
        mark; "" if not needed.
      captions: "captions" of the `.json`, else the one caption; () if not needed.
      label: the `.cls` as text, None where there is none.
      pixels: uint8, what each transform made of the image; () of one that came before, see `decoded_samples`.
      width: "original_width" of the `.json` where it has both sizes, else of the image as stored, in pixels.
      height: likewise.
      url: "url" of the `.json`, None where there is none.
      id: the id that the uid was made of, None if it is the uid itself or there is none.
      image: the key of the sample whose image it is: its own, or that of an earlier one.
      row: the `.npy`, as stored; None where there is none.
    """

    tar: str
    key: str
    uid: str
    caption: str
    captions: tuple[str, ...]
    label: str | None
    pixels: tuple[np.ndarray, ...]
    width: int
    height: int
    url: str | None = None
    id: str | None = None
    image: str = ""
    row: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Bad:
    """A sample that can't be used, and why; `lacks_member` where its tar may hold what it lacks elsewhere."""

    tar: str
    key: str
    reason: str
    lacks_member: bool = False


class _MissingError(InputError):
    """A sample lacks its image or caption."""


def decoded_samples(
    samples: Iterable[tars.RawSample],
    transforms: Sequence[Callable[[Image.Image], np.ndarray]],
    *,
    path: str,
    on_bad: OnBad,
    decoders: int = 0,
    need_caption: bool = True,
    keep: Callable[[str], bool] | None = None,
    name: str = "",
    once: bool = False,
) -> Iterator[Decoded | Bad]:
    """Samples decoded by threads (Pillow lets go of the interpreter's lock), in their order.

    What comes out, and where it stops, doesn't depend on the number of threads. Memory is bounded by a few
    samples per thread.

    Args:
      samples: of one tar (`tars.read_tar`) or other source.
      transforms: an image -> uint8 pixels, each; raising InputError for a broken one. It is decoded once.
      path: the tar, for messages.
      on_bad: what a sample does that has no readable image, caption or uid: "stop" raises, "skip" yields a
        `Bad`.
      decoders: threads; 0 means one a core.
      need_caption: whether samples must have a caption; else captions aren't looked at.
      keep: uid -> whether the sample is wanted; others are neither decoded nor yielded.
      name: the tar's name in its pool, from `pool_names`, for the uids of samples that bring none; its file name
        if not given.
      once: whether an image that several samples have is decoded for the first one only.

    Raises:
      InputError: the samples can't be read to their end (after those before that place), or one is bad and
        on_bad is "stop".
    """
    uid_of = functools.partial(sample_uid, name or path.rpartition("/")[2])

    def decode(sample: tars.RawSample, *, again: bool) -> Decoded | Bad | None:
        return _decode(path, sample, uid_of, None if again else transforms, need_caption, keep)

    def begin(found: tuple[tars.RawSample, bool] | InputError) -> tuple[tars.RawSample, Decoded | Bad | None]:
        if isinstance(found, InputError):
            raise found
        sample, again = found
        return sample, decode(sample, again=again)

    decoded: set[str] = set()
    for sample, begun in threads.prefetch(begin, _until_broken(samples, once), threads=decoders):
        item = begun
        if once and isinstance(item, Decoded) and not item.pixels and item.image not in decoded:
            item = decode(sample, again=False)  # the sample before had no caption, or its image is broken
        if once and isinstance(item, Decoded):
            decoded.add(item.image)
        if isinstance(item, Bad) and on_bad == "stop":
            if item.lacks_member:
                tars.check_adjacent(path)
            raise InputError(f"{item.tar}: sample {item.key!r}: {item.reason}; fix it, or pass --on-bad skip")
        if item is not None:
            yield item


def _until_broken(samples: Iterable[tars.RawSample], once: bool) -> Iterator[tuple[tars.RawSample, bool] | InputError]:
    """The samples, then the error that ended them, if any: it must come after what was read before it.

    With each comes whether one before it has the same image; always False unless `once`.
    """
    seen: set[str] = set()
    try:
        for sample in samples:
            yield sample, sample.repeats in seen
            if once:
                seen.add(sample.repeats or sample.key)
    except InputError as error:
        yield error


def _decode(
    path: str,
    sample: tars.RawSample,
    uid_of: Callable[[str, dict[str, Any]], str],
    transforms: Sequence[Callable[[Image.Image], np.ndarray]] | None,
    need_caption: bool,
    keep: Callable[[str], bool] | None,
) -> Decoded | Bad | None:
    """A sample, with no pixels if there are no transforms."""
    from clipdata_jax.models import open_image  # brings jax, which readers of uids alone don't need

    try:
        fields = json_fields(sample.members)
        uid = uid_of(sample.key, fields)
        if keep is not None and not keep(uid):
            return None
        caption, captions = _captions(sample, fields) if need_caption else ("", ())
        url = fields.get("url") if isinstance(fields.get("url"), str) else None
        label = _text(sample.members["cls"], "cls").strip() if "cls" in sample.members else None
        found = functools.partial(Decoded, path, sample.key, uid, caption, captions, label)
        found = functools.partial(found, url=url, id=owner_id(fields), image=sample.repeats or sample.key)
        found = functools.partial(found, row=sample.members.get("npy"))
        if transforms is None:
            return found(pixels=(), width=0, height=0)
        data = sample.image()
        if data is None:
            listed = f"among its members (.{', .'.join(sample.members)})"
            raise _MissingError(f"no image {listed if sample.names else 'is given'}{_hint(sample, 'image')}")
        kind, advice = file_kinds.recognise(data[: file_kinds.HEAD])
        if advice:
            raise InputError(f"not an image but {kind}; {advice}")
        with open_image(data) as image:
            width, height = _original_size(fields) or image.size
            pixels = tuple(transform(image) for transform in transforms)
    except InputError as error:
        return Bad(path, sample.key, str(error), isinstance(error, _MissingError) and bool(sample.names))
    return found(pixels=pixels, width=width, height=height)


def _original_size(fields: dict[str, Any]) -> tuple[int, int] | None:
    """The image's width and height before a downloader shrank it; None if its `.json` doesn't say."""
    width: Any = fields.get("original_width")
    height: Any = fields.get("original_height")
    good = all(type(side) is int and 0 < side < 1 << 31 for side in (width, height))
    return (width, height) if good else None


def _captions(sample: tars.RawSample, fields: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The caption and all captions, none of them empty."""
    several = fields.get("captions")
    if several is not None and not (isinstance(several, list) and several):
        raise InputError(f'"captions" in its .json is {several!r:.60}, expected a list of captions')
    several = several or []
    one = _text(sample.members["txt"], "txt") if "txt" in sample.members else fields.get("caption")
    if one is None and not several:
        expected = 'expected a .txt, or "caption" or "captions" in its .json'
        expected += _hint(sample, "caption")
        raise _MissingError(f"no caption: {expected}" if sample.names else "no caption is given")
    caption = _checked(several[0] if one is None else one)
    return caption, (tuple(map(_checked, several)) if several else (caption,))


def _hint(sample: tars.RawSample, what: str) -> str:
    """Advice where a member's extension has several parts: a key ends at its first dot."""
    several = [name for name in sample.names if "." in name]
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


def _text(data: bytes, extension: str) -> str:
    if len(data) > TEXT_BYTES:
        raise InputError(f"its .{extension} has {len(data):,} bytes, more than the {TEXT_BYTES:,} that one may have")
    try:
        return data.decode("utf-8").lstrip(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise InputError(f"its .{extension} is not UTF-8 (byte {error.start})") from error
