"""Arrays on disk: .npy files and members of .npz files; mapped where they lie plainly in a local file, else streamed.

A mapped array takes no memory of its own, a streamed one is the only copy; the other members of a .npz are not read.
Either way the header is held against the size first and a member's bytes against its checksum, so that no flipped bit
becomes a number: one more read at some 5 GB/s, from the memory that the mapping shares. Who cuts a file short in place
while it is mapped ends the process (SIGBUS); one that is replaced by renaming, as all here are, stays what it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError

_PIECE = 1 << 20
_HEADER_BYTES = 10_000
# float16 embeddings hardly shrink; what grows more than that, beyond the first bytes, is a bomb.
_TIMES, _UNSUSPECTED = 64, 1 << 28
_LOCAL_HEADER = struct.Struct(
    "<4s22xHH"
)  # of a zip member: signature, lengths of its name and of the extra field
_DAMAGE = (
    *(ValueError, TypeError, EOFError, OSError, MemoryError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    RuntimeError,  # encrypted; a compression that Python doesn't know; a header nested too deeply
)


@dataclasses.dataclass(frozen=True)
class RowChunks:
    """Rows to write, float16, in pieces that together have the shape."""

    shape: tuple[int, int]
    pieces: Iterable[np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def shaped(self, flat: np.ndarray) -> np.ndarray:
        return flat.reshape(self.shape[::-1]).T if self.fortran else flat.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class _Member:
    """A .npy file: by itself, or in a .npz.

    Attributes:
      file: read from its beginning.
      size: in bytes, decompressed.
      start: where it lies in the file on disk; None where it is compressed there.
      checked: whether its checksum is compared when it was read to its end.
    """

    file: IO[bytes]
    size: int
    start: int | None
    checked: bool


def array_shape(path: str, name: str) -> tuple[int, int]:
    """The shape of an array in a npz or npy file, from its header.

    Raises:
      InputError: the file is damaged, lacks the array, or the array is not two-dimensional.
    """
    with storage.open_read(path) as file, _damage_told(path), _open_member(file, path, name) as member:
        shape = _read_header(member).shape
    if len(shape) != 2:
        raise InputError(f"{path}: {name} has shape {shape}, expected (rows, dim)")
    return shape


def read_array(path: str, name: str, *, rows: int | None = None) -> np.ndarray:
    """The array of a .npy, or the named one of a .npz; no pickle is ever loaded.

    Args:
      path: the file; one whose name doesn't end in .npz is a .npy.
      name: of the array in a .npz.
      rows: how many it must have, where that is known; an array that claims others is not read.

    Returns:
      The array. One that is mapped may be written to: that changes its own pages, not the file.

    Raises:
      InputError: the file is damaged, lacks the array, or the array has other rows.
    """
    with storage.open_read(path) as file, _damage_told(path), _open_member(file, path, name) as member:
        found = _read(file, path, member, rows)
        # jax takes the machine's own order of bytes only.
        return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def _read(file: IO[bytes], path: str, member: _Member, rows: int | None = None) -> np.ndarray:
    header = _read_header(member)
    if rows is not None and header.shape[:1] != (rows,):
        found = f"{header.dtype}{list(header.shape)}"[:200]
        raise InputError(f"{path}: holds {found}, but its metadata has {rows} rows; write both again")
    begin = member.file.tell()
    if member.size - begin != header.nbytes:
        raise ValueError(f"{member.size - begin:,} bytes of data where its header says {header.nbytes:,}")
    if member.start is None or not storage.Folder(path).is_local or not header.nbytes:
        return _read_data(member, header)
    while member.checked and member.file.read(_PIECE):
        pass
    count = math.prod(header.shape)
    return header.shaped(np.asarray(np.memmap(file, header.dtype, "c", member.start + begin, (count,))))


def read_npy(path: str, what: str, *, named: str | None = None) -> np.ndarray:
    """The array of a .npy file, whatever it is called, mapped where that is possible.

    Args:
      path: the file.
      what: "of uids": what it should be, for the message.
      named: the path to name in a message, if another.

    Raises:
      InputError: it is no .npy file, or damaged.
    """
    with storage.open_read(path) as file, _damage_told(named or path, f"not a .npy file {what}"):
        return _read(file, path, _Member(file, storage.size(path), 0, checked=False))


@contextlib.contextmanager
def _damage_told(path: str, what: str = "damaged or not a NumPy file") -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's fault
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: {what} ({reason}); write it again") from error


@contextlib.contextmanager
def _open_member(file: IO[bytes], path: str, name: str) -> Iterator[_Member]:
    if not path.endswith(".npz"):
        yield _Member(file, storage.size(path), 0, checked=False)
        return
    with zipfile.ZipFile(file) as members:
        if f"{name}.npy" not in members.namelist():
            held = ", ".join(one.removesuffix(".npy") for one in members.namelist()) or "nothing"
            raise InputError(f"{path}: has no {name!r}; it has {held}")
        if members.namelist().count(f"{name}.npy") > 1:
            raise ValueError(f"holds {name!r} twice")
        info = members.getinfo(f"{name}.npy")
        if info.file_size > max(_UNSUSPECTED, _TIMES * info.compress_size):
            raise ValueError(f"{info.compress_size:,} bytes that say they become {info.file_size:,}")
        start = None
        if info.compress_type == zipfile.ZIP_STORED:
            file.seek(info.header_offset)
            _, named, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            start = info.header_offset + _LOCAL_HEADER.size + named + extra
        with members.open(info) as member:  # compares the local header's signature and name
            yield _Member(member, info.file_size, start, checked=True)


def _read_header(member: _Member) -> _Header:
    version = np.lib.format.read_magic(member.file)
    # NumPy would first read whatever length a header claims.
    length = member.file.read(2 if version == (1, 0) else 4)
    if (claimed := int.from_bytes(length, "little")) > _HEADER_BYTES:
        raise ValueError(f"its header says that it is {claimed:,} bytes long")
    member.file.seek(-len(length), io.SEEK_CUR)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = _Header(*read(member.file))
    if header.dtype.hasobject:
        raise ValueError("holds Python objects, which are never loaded")
    if min(header.shape, default=0) < 0:
        raise ValueError(f"its header says shape {header.shape}")
    return header


def _read_data(member: _Member, header: _Header) -> np.ndarray:
    """Reads to the end, where zipfile compares the checksum."""
    data = np.empty(math.prod(header.shape), header.dtype)
    view, at = memoryview(data.view(np.uint8)), 0
    while at < len(view):
        piece = member.file.read(min(_PIECE, len(view) - at))
        if not piece:
            raise EOFError(f"ends after {at:,} of {len(view):,} bytes")
        view[at : at + len(piece)] = piece
        at += len(piece)
    if member.file.read(1):
        raise ValueError("more data than its header says")
    return header.shaped(data)


def write_npz(file: IO[bytes], arrays: Mapping[str, RowChunks]) -> None:
    """Writes named arrays as `np.savez` does, piece by piece; the same arrays give the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as members:
        for name, rows in arrays.items():
            # The time of a member made by name alone is the zip format's first, 1980.
            with members.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                write_npy(member, rows)


def write_npy(file: IO[bytes], rows: RowChunks) -> None:
    """Writes an array as `np.save` does, piece by piece."""
    header = {"descr": "<f2", "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for piece in rows.pieces:
        file.write(np.ascontiguousarray(piece, "<f2").data)
