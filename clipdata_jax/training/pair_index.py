"""An index of training pairs: where each one's image and caption are, in files that all processes map.

A row takes 49 bytes on disk and none of a process's own memory. Tars are read by their headers only, and `.json`s for
their ids; captions and paths of image files, which have no tar, are copied to a file beside the index.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.formats import sample_uids, tar_index, tars, uids
from clipdata_jax.formats.sources.source import Source, TarSource
from clipdata_jax.formats.tar_index import TarIndex, TarReader

TEXT_IS_JSON, TEXT_IS_EXTRA, IMAGE_IS_EXTRA, IMAGE_IS_PATH = 1, 2, 4, 8
"""Bits of a row's `form`: the caption is in a `.json`; the text, or the image, is in the extra file; what is there is
the image's path."""
ROW = np.dtype(
    [
        ("uid_hi", "<u8"), ("uid_lo", "<u8"), ("image", "<i8"), ("text", "<i8"), ("image_size", "<u4"),
        ("text_size", "<u4"), ("source", "<u4"), ("place", "<u4"), ("form", "u1"),
    ]
)  # fmt: skip
"""A row: the pair's uid, offset and bytes of image and text, its source, and its place among all samples there."""
_ROWS, _EXTRA = "rows.bin", "extra.bin"


class SkippedSample(NamedTuple):
    """A pair that can't be used.

    Attributes:
      tar: the path of its tar, or of what else it is from.
      key: its key in there.
      reason: what is wrong with it.
    """

    tar: str
    key: str
    reason: str


class PairFiles(NamedTuple):
    """The files of an index, and where its pairs are; cheap to send to other processes of this machine.

    Attributes:
      folder: where the index is.
      length: number of rows.
      paths: of the sources.
      states: of each local tar its size and time of change when it was indexed; (0, 0) for others.
    """

    folder: str
    length: int
    paths: tuple[str, ...]
    states: tuple[tuple[int, int], ...]

    def rows(self) -> np.ndarray:
        """The rows, mapped: shape (n,), dtype `ROW`; in the order of the sources and their samples."""
        path = f"{self.folder}/{_ROWS}"
        return np.memmap(path, ROW, "r", shape=(self.length,)) if self.length else np.empty(0, ROW)

    @property
    def extra(self) -> str:
        """The file of texts and paths."""
        return f"{self.folder}/{_EXTRA}"


@dataclasses.dataclass(frozen=True)
class PairIndex:
    """An index, as `build_index` makes it.

    Attributes:
      files: where it is.
      sources: what the pairs are from.
      random_access: whether every pair can be read by itself; else sources are read from their beginning.
      skipped: broken pairs, which have no row.
      skipped_tars: why tars, and other sources, were left out, a sentence each.
      not_found: number of uids of the subset that no source has.
    """

    files: PairFiles
    sources: tuple[Source, ...]
    random_access: bool
    skipped: tuple[SkippedSample, ...]
    skipped_tars: tuple[str, ...]
    not_found: int

    def __len__(self) -> int:
        return self.files.length

    def key_of(self, source: int, place: int) -> str:
        """The key of a tar's sample, for messages; reads its headers again."""
        return _tar_keys(self.files.paths[source])[place]

    def repeated_uids(self) -> int:
        """Counts the rows whose uid an earlier one has."""
        rows = self.files.rows()
        return len(rows) - len(uids.sort_unique(uids.join_halves(rows["uid_hi"], rows["uid_lo"])))


@functools.lru_cache(maxsize=1)
def _tar_keys(path: str) -> list[str]:
    with tar_index.open_tar(path) as tar:
        return tar_index.index_tar(tar).keys


def build_index(
    sources: Sequence[Source],
    *,
    names: Mapping[str, str],
    folder: str,
    on_bad: OnBad,
    subset: tuple[np.ndarray, np.ndarray] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> PairIndex:
    """Indexes the pairs of some sources, in one pass.

    Memory is bounded by one source, not by the pool, but for one byte a uid of the subset.

    Args:
      sources: in order.
      names: the name of each source's path in the pool, from `pool_names`, for uids of samples that bring none.
      folder: a local folder that stays until the index is no longer used.
      on_bad: what a broken tar, or a pair without image, caption or uid, does: "stop" raises, "skip" leaves it out and
        lists it.
      subset: the uids to keep, sorted and unique, dtype u8,u8, and how often each counts (`uid_files.read_multiset`);
        None keeps all, once.
      progress: called after each source.

    Raises:
      InputError: a source can't be read, or a pair is broken, with "stop"; or no uid of the subset is in the pool.

    >>> from clipdata_jax.formats import tars
    >>> from clipdata_jax.formats.sources import discovery
    >>> from clipdata_jax.training import build_index
    >>> tars.write_tar("0.tar", [("0.jpg", b"..."), ("0.txt", b"a dog"), ("1.jpg", b"..."), ("1.txt", b"a cat")])
    >>> found = discovery.find_sources(["0.tar"], images_only=False)
    >>> len(build_index(list(found.units.values()), names=found.names, folder="index", on_bad="stop"))
    2
    """
    os.makedirs(folder, exist_ok=True)
    keep = None if subset is None else _Chooser(*subset)
    broken: list[SkippedSample] = []
    skipped_tars: list[str] = []
    states: list[tuple[int, int]] = []
    count, seen, random_access = 0, 0, True
    with open(f"{folder}/{_ROWS}", "wb") as file, open(f"{folder}/{_EXTRA}", "wb") as extra:
        for number, source in enumerate(sources):
            states.append((0, 0))
            try:
                states[-1] = _state(source)
                found = _read_source(source, names.get(source.path, source.path.rpartition("/")[2]), extra)
            except InputError as error:
                if on_bad == "stop":
                    raise
                skipped_tars.append(str(error))
                found = _Found(np.empty(0, ROW), {}, random_access=True)
            rows, seen = found.rows, seen + len(found.rows)
            rows["source"] = number
            if keep is not None:
                rows = keep(rows)
            good = np.ones(len(rows), bool)
            for i in np.flatnonzero(np.isin(rows["place"], list(found.broken))).tolist() if found.broken else ():
                sample = SkippedSample(source.path, *found.broken[int(rows["place"][i])])
                if on_bad == "stop":
                    raise InputError(broken_sentence(sample))
                broken.append(sample)
                good[i] = False
            rows[good].tofile(file)
            count += int(good.sum())
            random_access &= found.random_access
            progress()
    if keep is not None and not keep.seen.any():
        raise InputError(
            f"none of the {len(keep.seen):,} uids of --subset is among the {seen:,} pairs of the pool; give the pool"
            " that the subset was chosen from"
        )
    files = PairFiles(folder, count, tuple(source.path for source in sources), tuple(states))
    not_found = 0 if keep is None else int(np.count_nonzero(~keep.seen))
    # A pair that a subset names twice is broken once.
    once = tuple(dict.fromkeys(broken))
    return PairIndex(files, tuple(sources), random_access, once, tuple(skipped_tars), not_found)


def broken_sentence(sample: SkippedSample) -> str:
    """The message of a broken sample that stops a run."""
    return f"{sample.tar}: sample {sample.key!r}: {sample.reason}; fix it, or pass --on-bad skip"


class _Chooser:
    """Keeps the rows of a subset, each as often as its uid counts."""

    def __init__(self, wanted: np.ndarray, counts: np.ndarray) -> None:
        self._index, self._counts = uids.UidIndex(wanted), counts
        self.seen = np.zeros(len(wanted), bool)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        at = self._index.find(uids.join_halves(rows["uid_hi"], rows["uid_lo"]))
        found = at >= 0
        self.seen[at[found]] = True
        return np.repeat(rows[found], self._counts[at[found]])


class _Found(NamedTuple):
    """The rows of a source, and place -> key and reason of its broken samples."""

    rows: np.ndarray
    broken: dict[int, tuple[str, str]]
    random_access: bool


def _state(source: Source) -> tuple[int, int]:
    """Size and time of change of a local tar."""
    at = storage.Folder(source.path)
    if not (isinstance(source, TarSource) and at.is_local):
        return 0, 0
    try:
        return file_state(os.stat(at.inner))
    except OSError as error:
        raise InputError(f"{source.path}: can't be read ({error.strerror})") from error


def file_state(found: os.stat_result) -> tuple[int, int]:
    """What tells a changed file from an unchanged one: its size and its time of change."""
    return found.st_size, found.st_mtime_ns


def _read_source(source: Source, name: str, extra: BinaryIO) -> _Found:
    entries = _tar_entries(source, name, extra) if isinstance(source, TarSource) else _entries(source, name, extra)
    rows: list[tuple[int, ...]] = []
    hexes: list[str] = []
    broken: dict[int, tuple[str, str]] = {}
    random_access = not isinstance(source, TarSource) or storage.Folder(source.path).is_local
    for place, entry in enumerate(entries):
        if isinstance(entry.uid, InputError):
            # It has no uid to be chosen by.
            broken[place] = entry.key, str(entry.uid)
        elif entry.problem:
            broken[place] = entry.key, entry.problem
        hexes.append(uids.uid_of(name, entry.key) if isinstance(entry.uid, InputError) else entry.uid)
        rows.append((0, 0, *entry.image, *entry.text, 0, place, entry.form))
        random_access &= entry.random_access
    table = np.empty(len(rows), ROW)
    if rows:
        order = ("uid_hi", "uid_lo", "image", "image_size", "text", "text_size", "source", "place", "form")
        for field, column in zip(order, zip(*rows, strict=True), strict=True):
            table[field] = column
        parsed = uids.from_hex(hexes)
        table["uid_hi"], table["uid_lo"] = parsed["f0"], parsed["f1"]
    return _Found(table, broken, random_access)


class _Entry(NamedTuple):
    """A sample: its uid, or why it has none; offset and size of image and text; what else is wrong with it."""

    key: str
    uid: str | InputError
    image: tuple[int, int]
    text: tuple[int, int]
    form: int
    problem: str
    random_access: bool


def _tar_entries(source: TarSource, name: str, extra: BinaryIO) -> Iterator[_Entry]:
    """The samples of a tar, from its headers."""
    with tar_index.open_tar(source.path) as tar:
        index = tar_index.index_tar(tar)
        images = tars.IMAGE_EXTENSIONS if source.image_ext is None else (source.image_ext,)
        captions = "txt" if source.caption_ext is None else source.caption_ext
        for i, key in enumerate(index.keys):
            members = range(index.first[i], index.first[i + 1])
            by_ending = {tars.split_name(index.name(m))[1]: m for m in members}
            image = next((by_ending[ending] for ending in images if ending in by_ending), None)
            uid = _tar_uid(index, i, tar, name)
            text = by_ending.get(captions, by_ending.get("json"))
            problem = ""
            if image is None:
                problem = f"no image among its members (.{', .'.join(by_ending)})"
            elif text is None:
                problem = 'no caption: expected a .txt, or "caption" or "captions" in its .json'
            form = TEXT_IS_JSON if captions not in by_ending else 0
            if image in index.links:
                form |= IMAGE_IS_EXTRA
            if text in index.links:
                form |= TEXT_IS_EXTRA
            yield _Entry(key, uid, _place(index, image, extra), _place(index, text, extra), form, problem, True)


def _place(index: TarIndex, member: int | None, extra: BinaryIO) -> tuple[int, int]:
    """Offset and size of a member in its tar; of a link, whose target has another header, in the file beside."""
    if member is None:
        return 0, 0
    return _put(extra, index.links[member]) if member in index.links else (index.data[member], index.sizes[member])


def _tar_uid(index: TarIndex, i: int, tar: TarReader, name: str) -> str | InputError:
    if index.jsons[i] < 0:
        return uids.uid_of(name, index.keys[i])
    data = index.read(index.jsons[i], tar)
    return sample_uids.plain_uid(data) or _uid(name, index.keys[i], {"json": data})


def _uid(name: str, key: str, members: Mapping[str, bytes]) -> str | InputError:
    try:
        return sample_uids.sample_uid(name, key, sample_uids.json_fields(members))
    except InputError as error:
        return error


def _entries(source: Source, name: str, extra: BinaryIO) -> Iterable[_Entry]:
    """The samples of another source; those whose image is a local file can be read by themselves."""
    for sample in source.samples():
        uid = _uid(name, sample.key, sample.members)
        text, form = sample.members.get("txt"), 0
        if text is None:
            text, form = sample.members.get("json", b""), TEXT_IS_JSON
        if isinstance(sample, tars.ImageFileSample) and storage.Folder(sample.path).is_local:
            form |= IMAGE_IS_PATH | IMAGE_IS_EXTRA | TEXT_IS_EXTRA
            at = _put(extra, os.fsencode(sample.path)), _put(extra, text)
            yield _Entry(sample.key, uid, *at, form, "", True)
        elif isinstance(sample, tars.ImageFileSample) or sample.image() is not None:
            yield _Entry(sample.key, uid, (0, 0), (0, 0), form, "", False)
        else:
            yield _Entry(sample.key, uid, (0, 0), (0, 0), form, "no image is given", True)


def _put(extra: BinaryIO, data: bytes) -> tuple[int, int]:
    at = extra.tell()
    extra.write(data)
    return at, len(data)
