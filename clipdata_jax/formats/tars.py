"""Webdataset tars: strict reading of samples, deterministic writing. Members are never extracted to disk."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import BinaryIO, TypeVar

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import file_kinds
from clipdata_jax.runtime import console

T = TypeVar("T")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jfif", "jpe")
"""Extensions of images; of a sample's several images the first in this order counts."""
MEMBER_BYTES = 1 << 28
"""The largest member that is read into memory."""
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PIECE = 1 << 20
_NOT_TAR = "expected webdataset tars; tables of images and captions are named .csv, .tsv or .parquet"


class NotAdjacentError(InputError):
    """The members of a sample lie apart in its tar: webdataset would split it in two."""


@dataclasses.dataclass(frozen=True)
class RawSample:
    """One sample as stored: the members of a tar that share a key.

    Attributes:
      key: the members' common name up to the first dot of the last path component.
      members: extension (lower case, without the first dot) -> bytes.
      names: extension -> the member's full name, as stored.
      repeats: the key of an earlier sample of the same source with the same image; "" if there is none.
    """

    key: str
    members: dict[str, bytes]
    names: dict[str, str]
    repeats: str = dataclasses.field(default="", kw_only=True)

    def image(self) -> bytes | None:
        """The encoded image, the first of `IMAGE_EXTENSIONS` that there is; None if there is none."""
        return next((self.members[ext] for ext in IMAGE_EXTENSIONS if ext in self.members), None)


@dataclasses.dataclass(frozen=True)
class ImageFileSample(RawSample):
    """A sample whose image is a separate file, read on demand.

    Attributes:
      path: the image.
    """

    path: str

    def image(self) -> bytes:
        """The encoded image.

        Raises:
          InputError: the file is missing or can't be read.
        """
        return storage.read_bytes(self.path)


def split_name(name: str) -> tuple[str, str]:
    """Splits a member's name into key and extension, as webdataset does: at the first dot of the last component."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def read_tar(path: str, passed_over: Counter[str] | None = None) -> Iterator[RawSample]:
    """Yields the samples of a tar, in order, one in memory at a time.

    Args:
      path: the tar.
      passed_over: takes the number of hidden members that have been left out.

    Raises:
      InputError: the file is damaged or not a tar, a sample's members are not adjacent (webdataset would split it in
        two), or a sample has two members of the same extension.
    """
    for key, members, names in group_members(path, read_members(path, passed_over)):
        yield RawSample(key, members, names)


def check_adjacent(path: str) -> None:
    """Checks from a tar's headers that the members of each sample are adjacent, as far as it can be read.

    Raises:
      NotAdjacentError: those of one aren't.
    """
    try:
        with storage.open_read(path) as file:
            for _ in group_members(path, ((info.name, None) for info, _ in walk(path, file))):
                pass
    except NotAdjacentError:
        raise
    except InputError:
        return


def group_members(path: str, members: Iterable[tuple[str, T]]) -> Iterator[tuple[str, dict[str, T], dict[str, str]]]:
    """Groups (name, member) pairs to samples: (key, extension -> member, extension -> name).

    Raises:
      NotAdjacentError: a sample's members are not adjacent.
      InputError: a sample has two members of the same extension.
    """
    seen: set[str] = set()
    key = ""
    found: dict[str, T] = {}
    names: dict[str, str] = {}
    for name, member in members:
        member_key, extension = key, name[len(key) + 1 :]
        if not name.startswith(f"{key}.") or "/" in extension:
            member_key, extension = split_name(name)
        extension = extension.lower()
        if member_key != key:
            if found:
                yield key, found, names
            if member_key in seen:
                raise NotAdjacentError(
                    f"{path}: the members of sample {member_key!r} lie apart (found {name!r} after other samples), as"
                    " in a tar sorted by type; unpack it, and re-pack it from within its folder with: find * -type f |"
                    " LC_ALL=C sort | tar -cf ../sorted.tar -T -"
                )
            seen.add(member_key)
            key, found, names = member_key, {}, {}
        if extension in found:
            raise InputError(f"{path}: key {key!r} has two members .{extension}; rename or remove one")
        found[extension], names[extension] = member, name
    if found:
        yield key, found, names


def read_members(path: str, passed_over: Counter[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yields the files of a tar in order, as (name, bytes); links within the tar are followed.

    Hidden files and those in hidden folders are left out: file managers leave them behind (`._0.jpg`, `.DS_Store`,
    `__MACOSX/0.jpg`).

    Raises:
      InputError: the file is damaged or not a tar, or a link's target is not in it.
    """
    with storage.open_read(path) as file:
        for info, data in walk(path, file, passed_over):
            if data is None:
                check_size(path, info.name, info.size)
                file.seek(info.offset_data)
                data = file.read(info.size)
            yield info.name, data


def check_size(path: str, name: str, size: int) -> None:
    """Checks that a member is small enough to hold in memory.

    Raises:
      InputError: it is larger.
    """
    if size > MEMBER_BYTES:
        raise InputError(
            f"{path}: member {name!r} has {size:,} bytes, more than the limit of {MEMBER_BYTES:,}; remove it"
        )


def walk(
    path: str, file: BinaryIO, passed_over: Counter[str] | None = None
) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Yields the files of an open tar, as `read_members`; the bytes of links, None for those of other files."""
    try:
        # Streaming mode ("r|") would take a truncated header's zeros for the end of the tar.
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = file.seek(0, io.SEEK_END)
            for info in tar:
                if storage.is_hidden(info.name):
                    if passed_over is not None and not info.isdir():
                        passed_over[console.HIDDEN] += 1
                    continue
                if info.issym() or info.islnk():
                    yield from _read_link(path, tar, info)
                elif info.issparse():
                    raise tarfile.ReadError(f"{info.name!r} is stored as a sparse file")
                elif info.isfile():
                    if info.size < 0:
                        raise tarfile.ReadError(f"{info.name!r} has {info.size} bytes")
                    if info.offset_data + info.size > end:
                        raise tarfile.ReadError("unexpected end of data")
                    yield info, None
            if file.seek(0, io.SEEK_END) < tar.offset or _lacks_end(file, tar.offset):
                raise tarfile.ReadError("unexpected end of data")
            file.seek(tar.offset)
            check_rest(path, iter(lambda: file.read(_PIECE), b""))
    except InputError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(
            file_kinds.mistaken(path, "a tar file", _NOT_TAR)
            or f"{path}: damaged or not a tar file ({error}); download or write it again"
        ) from error


def check_rest(path: str, pieces: Iterable[bytes]) -> None:
    """Checks that only zeros follow the end of a tar: a block lost in the middle reads as an end, too.

    Raises:
      InputError: data follow it.
    """
    if any(piece.count(0) < len(piece) for piece in pieces):
        raise InputError(f"{path}: damaged (data follow the zeros that end a tar); download or write it again")


def _read_link(path: str, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yields a link and its target's bytes, unless it is a folder. Only targets in the tar itself are read."""
    try:
        target = tar.extractfile(info)
    except (KeyError, RecursionError) as error:
        raise InputError(
            f"{path}: member {info.name!r} is a link to {info.linkname!r}, which is not in the tar; store the file"
            " itself (tar --dereference --hard-dereference)"
        ) from error
    if target is not None:
        check_size(path, info.name, target.seek(0, io.SEEK_END))
        target.seek(0)
        yield info, target.read()


def _lacks_end(file: BinaryIO, offset: int) -> bool:
    """Whether the zeros that end every tar are missing, as in one cut off between members."""
    file.seek(max(0, offset - tarfile.BLOCKSIZE))
    return not file.read(2 * tarfile.BLOCKSIZE).endswith(bytes(tarfile.BLOCKSIZE))


def write_tar(path: str, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes members in order to a tar, atomically; the same members give the same bytes."""
    with storage.open_write(path) as file:
        write_members(file, members)


def write_members(file: BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes members in order to an open file, as a tar."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            tar.addfile(_info(name, len(data)), io.BytesIO(data))


def header(name: str, size: int) -> bytes:
    """The header that `write_members` gives a member."""
    return _info(name, size).tobuf(tarfile.PAX_FORMAT, tarfile.ENCODING, "surrogateescape")


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


@storage.stat_cache()
def find_tars(patterns: Sequence[str]) -> list[str]:
    """Finds the tars that patterns match: files, `{000..099}.tar`, `*.tar`, and the tars in folders (`in_folder`).

    Raises:
      InputError: a file is missing or named twice, or a folder holds no tar.
    """
    found: list[tuple[str, str]] = []
    for pattern in storage.split_joined(patterns):
        for path in storage.expand(pattern):
            at = storage.Folder(path)
            inside = in_folder(at) if at.is_folder() else [path]
            _check_uncompressed(inside)
            if not inside:
                raise InputError(f"{path}: the folder holds no .tar file; expected webdataset tars")
            found += [(one, pattern) for one in inside]
    check_repeats(found)
    return [path for path, _ in found]


def in_folder(at: storage.Folder, names: Collection[str] | None = None) -> list[str]:
    """The tars in a folder and the folders below it, sorted; none that are hidden or in a hidden folder.

    Args:
      at: the folder.
      names: of all files in it and below that are not hidden, in order, where they have been listed already.

    Raises:
      InputError: one is part of an unfinished run.
    """
    if names is None:
        inner = [path[len(at.path.rstrip("/")) + 1 :] for path in at.tree()]
        names = [name for name in inner if not storage.is_hidden(name)]
    _check_uncompressed([at.join(name) for name in names if name.endswith(_COMPRESSED)])
    found = [name for name in names if name.endswith(".tar")]
    plans = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == storage.PLAN}
    for folder in sorted(plans & {name.rpartition("/")[0] for name in found}):
        storage.check_finished(at.at(folder))
    return [at.join(name) for name in found]


def _check_uncompressed(paths: Sequence[str]) -> None:
    for path in paths:
        if path.endswith(_COMPRESSED):
            raise InputError(
                f"{path}: is a compressed tar, in which no sample can be found without reading all before it; unpack it"
                " first (gunzip, unzstd, unxz or bunzip2), images are compressed already"
            )


def check_repeats(found: Sequence[tuple[str, str]]) -> None:
    """Checks that each source was found once, by whatever way.

    Args:
      found: the path of each, and the pattern that matched it.

    Raises:
      InputError: two are the same, or one lies in another, a folder.
    """
    real = functools.cache(os.path.realpath)  # of folders: a pool has few
    seen: dict[str, tuple[str, str]] = {}
    for path, pattern in found:
        folder, slash, name = path.rstrip("/").rpartition("/")
        is_local = not path.startswith("tfds:") and "://" not in path
        same = path
        if is_local:
            same = real(path) if os.path.isdir(path) else f"{real((folder + slash) or '.')}/{name}"
        if same in seen:
            other, by = seen[same]
            ways = f"by {by!r} and {pattern!r}" if by != pattern else f"by {pattern!r}"
            also = f", as {other}" if other != path else ""
            raise InputError(f"{path}: named twice, {ways}{also}; name each input once")
        seen[same] = path, pattern
    for same, (path, _) in seen.items():
        for end in (at for at, char in enumerate(same) if char == "/"):
            if outer := seen.get(same[:end]):
                raise InputError(f"{path}: lies in {outer[0]}, which is named too; name one of the two")
