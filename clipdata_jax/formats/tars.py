"""Webdataset tars: strict reading of samples, deterministic writing. Members never reach the file system."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, TypeVar

from clipdata_jax import storage
from clipdata_jax.errors import InputError

T = TypeVar("T")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MEMBER_BYTES = 1 << 28
"""The most bytes of a member that is read into memory."""
_PIECE = 1 << 20


@dataclasses.dataclass(frozen=True)
class RawSample:
    """One sample of a tar: the members that share a key.

    Attributes:
      key: the members' common name up to the first dot of the last path component.
      members: extension (lower case, without the first dot) -> bytes.
      names: extension -> the member's full name, as stored.
    """

    key: str
    members: dict[str, bytes]
    names: dict[str, str]

    def image(self) -> bytes | None:
        """The bytes of the image, whichever of jpg, jpeg, png, webp it is; None if there is none."""
        return next((self.members[ext] for ext in IMAGE_EXTENSIONS if ext in self.members), None)


@dataclasses.dataclass(frozen=True)
class ImageFileSample(RawSample):
    """A sample whose image is a file of its own, read when it is asked for.

    Attributes:
      path: of the image.
    """

    path: str

    def image(self) -> bytes:
        """The bytes of the image.

        Raises:
          InputError: there is no such file, or it may not be read.
        """
        return storage.read_bytes(self.path)


def split_name(name: str) -> tuple[str, str]:
    """A member's key and extension: webdataset splits at the first dot of the last path component."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def read_tar(path: str) -> Iterator[RawSample]:
    """The samples of a tar, in order, one in memory at a time.

    Raises:
      InputError: the file is no tar or is cut short; a key comes back after another sample began
        (webdataset readers would split such a sample in two); a member is repeated within a sample.
    """
    for key, members, names in grouped(path, read_members(path)):
        yield RawSample(key, members, names)


def grouped(
    path: str, members: Iterable[tuple[str, T]]
) -> Iterator[tuple[str, dict[str, T], dict[str, str]]]:
    """Puts the members of a tar, whatever stands for each, together to samples: (key, ext -> it, ext -> name).

    Raises:
      InputError: a key comes back after another sample began, or a member is repeated within a sample.
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
                raise InputError(
                    f"{path}: the members of key {member_key!r} are not next to each other"
                    f" (found {name!r} after another sample); sort the tar by name"
                )
            seen.add(member_key)
            key, found, names = member_key, {}, {}
        if extension in found:
            raise InputError(f"{path}: key {key!r} has two members .{extension}; rename or remove one")
        found[extension], names[extension] = member, name
    if found:
        yield key, found, names


def read_members(path: str) -> Iterator[tuple[str, bytes]]:
    """The files of a tar in order, as (name, bytes); a link within the tar has the bytes it leads to.

    Files whose own name begins with "." are left out: they are nobody's samples, but notes of a file manager
    (`._0.jpg`, `.DS_Store`), and webdataset has no key for them.

    Raises:
      InputError: the file is no tar, or is cut short, or a link leads out of it.
    """
    with storage.open_read(path) as file:
        for info, data in walk(path, file):
            if data is None:
                check_size(path, info.name, info.size)
                file.seek(info.offset_data)
                data = file.read(info.size)
            yield info.name, data


def check_size(path: str, name: str, size: int) -> None:
    """Makes sure that a member may be held in memory.

    Raises:
      InputError: it is too large.
    """
    if size > MEMBER_BYTES:
        raise InputError(
            f"{path}: member {name!r} has {size:,} bytes, more than the {MEMBER_BYTES:,} that one may have; remove it"
        )


def walk(path: str, file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """The files of an open tar in order; a link within the tar with the bytes it leads to. `read_members` has more."""
    try:
        # Streaming mode ("r|") would take the zeros of a cut-off header for the end of the tar.
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = file.seek(0, io.SEEK_END)
            for info in tar:
                if info.name.rpartition("/")[2].startswith("."):
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
        raise InputError(f"{path}: damaged or not a tar ({error}); download or write it again") from error


def check_rest(path: str, pieces: Iterable[bytes]) -> None:
    """Makes sure that nothing but zeros comes after the end of a tar: a block of zeros ends it, a lost one too.

    Raises:
      InputError: there is more.
    """
    if any(piece.count(0) < len(piece) for piece in pieces):
        raise InputError(
            f"{path}: damaged (there is more after the zeros that end a tar); download or write it again"
        )


def _read_link(
    path: str, tar: tarfile.TarFile, info: tarfile.TarInfo
) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """A link and its bytes; nothing for one to a folder. Only the tar itself is ever looked into."""
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
    """Whether the block of zeros that ends every tar is missing, as it is in one cut between members."""
    file.seek(max(0, offset - tarfile.BLOCKSIZE))
    return not file.read(2 * tarfile.BLOCKSIZE).endswith(bytes(tarfile.BLOCKSIZE))


def write_tar(path: str, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes members in order to a tar that appears whole or not at all; the same members give the same bytes."""
    with storage.open_write(path) as file:
        write_members(file, members)


def write_members(file: BinaryIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes members in order as a tar to an open file, one in memory at a time."""
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
    """The tars that patterns mean, in order: files, `{000..099}.tar`, `*.tar`, and folders (their tars by name).

    Raises:
      InputError: something is missing, or a folder holds no tar.
    """
    found: list[str] = []
    for path in storage.expand(tuple(patterns)):
        at = storage.Folder(path)
        if at.is_folder():
            storage.check_finished(at)
            inside = [one for one in at.files(".tar") if not _is_hidden(one)]
        elif _is_hidden(path) and path not in patterns:
            continue
        else:
            inside = [path]
        if not inside:
            raise InputError(f"{path}: the folder holds no .tar file; expected webdataset tars")
        found += inside
    if not found:
        raise InputError(f"{', '.join(patterns)}: only hidden files match; expected webdataset tars")
    check_repeats(found)
    return found


def _is_hidden(path: str) -> bool:
    # macOS leaves a note `._0.tar` beside each file on foreign disks.
    return path.rpartition("/")[2].startswith(".")


def check_repeats(paths: Sequence[str]) -> None:
    """Raises InputError if a path is named twice."""
    if len(set(paths)) < len(paths):
        twice = Counter(paths).most_common(1)[0][0]
        raise InputError(f"{twice}: named twice; name each input once")


def uid_name(path: str) -> str:
    """What stands for a tar, or what else samples are from, in the uids of those that bring none: its file name.

    For tfds:name/split, all of it: many datasets have a split "train", and nobody can rename one.
    """
    return path if path.startswith("tfds:") else path.rpartition("/")[2]


def shared_names(paths: Sequence[str]) -> frozenset[str]:
    """The file names that several of the tars have: there, a uid made of tar name and key would mean two pairs."""
    count = Counter(map(uid_name, paths))
    return frozenset(name for name, times in count.items() if times > 1)


def unit_names(paths: Sequence[str]) -> list[str]:
    """A plain name for each tar: its own without .tar, after as many folders' names as tell it from the others.

    `a/0.tar` and `b/0.tar` become `a_0` and `b_0`, in whatever order they come.
    """
    parts = [[part for part in path.removesuffix(".tar").split("/") if part] for path in paths]
    names: dict[int, str] = {}
    for depth in range(1, max(map(len, parts), default=0) + 1):
        joined = ["_".join(part[-depth:]) for part in parts]
        count = Counter(joined)
        names = {i: name for i, name in enumerate(joined) if count[name] == 1} | names
    if len(set(names.values())) == len(paths):
        return [names[i] for i in range(len(paths))]
    # Folders themselves can be named so that "a_0" is two tars.
    return [f"{i:05d}_{part[-1]}" for i, part in enumerate(parts)]
