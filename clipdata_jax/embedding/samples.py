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
from clipdata_jax.formats.sample_captions import MissingMemberError, extension_hint, member_text, sample_captions
from clipdata_jax.formats.sample_uids import json_fields, owner_id, sample_uid
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
        caption, captions = sample_captions(sample, fields) if need_caption else ("", ())
        url = fields.get("url") if isinstance(fields.get("url"), str) else None
        label = member_text(sample.members["cls"], "cls").strip() if "cls" in sample.members else None
        found = functools.partial(Decoded, path, sample.key, uid, caption, captions, label)
        found = functools.partial(found, url=url, id=owner_id(fields), image=sample.repeats or sample.key)
        found = functools.partial(found, row=sample.members.get("npy"))
        if transforms is None:
            return found(pixels=(), width=0, height=0)
        data = sample.image()
        if data is None:
            listed = f"among its members (.{', .'.join(sample.members)})"
            raise MissingMemberError(
                f"no image {listed if sample.names else 'is given'}{extension_hint(sample, 'image')}"
            )
        kind, advice = file_kinds.recognise(data[: file_kinds.HEAD])
        if advice:
            raise InputError(f"not an image but {kind}; {advice}")
        with open_image(data) as image:
            width, height = _original_size(fields) or image.size
            pixels = tuple(transform(image) for transform in transforms)
    except InputError as error:
        return Bad(path, sample.key, str(error), isinstance(error, MissingMemberError) and bool(sample.names))
    return found(pixels=pixels, width=width, height=height)


def _original_size(fields: dict[str, Any]) -> tuple[int, int] | None:
    """The image's width and height before a downloader shrank it; None if its `.json` doesn't say."""
    width: Any = fields.get("original_width")
    height: Any = fields.get("original_height")
    good = all(type(side) is int and 0 < side < 1 << 31 for side in (width, height))
    return (width, height) if good else None
