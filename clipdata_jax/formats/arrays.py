"""Arrays in .npy and .npz files: memory-mapped if they are stored uncompressed in a local file, else streamed.

A mapped array takes no memory of its own, a streamed one is copied once; other members of a .npz are not read. The
header is checked against the size, and a .npz member against its checksum, so that no flipped bit becomes a number:
one more read, at about 5 GB/s, of pages that the mapping shares. Truncating a mapped file in place kills the process
(SIGBUS); replacing it by renaming, as this package does, leaves the mapping intact.
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
from clipdata_jax.formats import file_kinds

_PIECE = 1 << 20
_BFLOAT16_ON_DISK = np.dtype("V2")  # NumPy's files don't name the type; nothing else has two bytes of no type
_HEADER_BYTES = 10_000
# float16 embeddings hardly compress; members that grow more, beyond a harmless size, are decompression bombs.
_TIMES, _UNSUSPECTED = 64, 1 << 28
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of its name and of the extra field
_DAMAGE = (
    *(ValueError, TypeError, EOFError, OSError, MemoryError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    RuntimeError,  # encrypted; a compression that Python doesn't know; a header nested too deeply
)


@dataclasses.dataclass(frozen=True)
class RowChunks:
    """Float16 rows to write, in pieces that together have the shape."""

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
    """A .npy file, by itself or in a .npz.

    Attributes:
      file: the open file, at its beginning.
      size: its size in bytes, decompressed.
      start: its offset in the file on disk; None if it is compressed.
      checked: whether reading it to its end verifies a checksum.
    """

    file: IO[bytes]
    size: int
    start: int | None
    checked: bool


def array_names(path: str) -> set[str]:
    """Lists the arrays in a .npz.

    Raises:
      InputError: it is damaged or not a .npz file.
    """
    with storage.open_read(path) as file, _wrap_errors(path, "damaged or not a .npz file"):
        return {name.removesuffix(".npy") for name in zipfile.ZipFile(file).namelist()}


def array_shape(path: str, name: str) -> tuple[int, int]:
    """Reads the shape of a two-dimensional array in a .npz or .npy file from its header.

    Raises:
      InputError: the file is damaged, lacks the array, or the array isn't two-dimensional.
    """
    with storage.open_read(path) as file, _wrap_errors(path), _open_member(file, path, name) as member:
        shape = _read_header(member).shape
    if len(shape) != 2:
        raise InputError(f"{path}: {name} has shape {shape}, expected (rows, dim)")
    return shape


def read_array(path: str, name: str, *, rows: int | None = None) -> np.ndarray:
    """Reads the array of a .npy file, or the named one of a .npz; never loads pickles.

    Args:
      path: the file; a .npy unless its name ends in .npz.
      name: the array's name in a .npz.
      rows: the expected number of rows, if known; an array of another is not read.

    Returns:
      The array; bfloat16 where NumPy stored it as two bytes of no type (`|V2`). Writing to a mapped one changes
      private pages, not the file.

    Raises:
      InputError: the file is damaged, lacks the array, or the array has another number of rows.
    """
    with storage.open_read(path) as file, _wrap_errors(path), _open_member(file, path, name) as member:
        found = _read(file, path, member, rows)
        if found.dtype == _BFLOAT16_ON_DISK:
            import ml_dtypes

            return found.view(ml_dtypes.bfloat16)
        # jax takes native byte order only.
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
    """Reads the array of a .npy file, whatever its name, mapped where possible.

    Args:
      path: the file.
      what: its expected content for messages, such as "of uids".
      named: the path to name in messages, if another.

    Raises:
      InputError: the file is damaged or not a .npy file.
    """
    with storage.open_read(path) as file, _wrap_errors(named or path, f"not a .npy file {what}"):
        return _read(file, path, _Member(file, storage.size(path), 0, checked=False))


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is floating, bfloat16 included, which NumPy doesn't count as such."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


@contextlib.contextmanager
def _wrap_errors(path: str, what: str = "damaged or not a NumPy file") -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's fault
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        kind = "a .npz file" if path.endswith(".npz") else "a .npy array"
        raise InputError(
            file_kinds.mistaken(path, kind, "write it again") or f"{path}: {what} ({reason}); write it again"
        ) from error


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
            raise ValueError(f"{info.compress_size:,} bytes that claim to decompress to {info.file_size:,}")
        start = None
        if info.compress_type == zipfile.ZIP_STORED:
            file.seek(info.header_offset)
            _, named, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            start = info.header_offset + _LOCAL_HEADER.size + named + extra
        with members.open(info) as member:  # compares the local header's signature and name
            yield _Member(member, info.file_size, start, checked=True)


def _read_header(member: _Member) -> _Header:
    version = np.lib.format.read_magic(member.file)
    # NumPy would read a header of any claimed length.
    length = member.file.read(2 if version == (1, 0) else 4)
    if (claimed := int.from_bytes(length, "little")) > _HEADER_BYTES:
        raise ValueError(f"its header claims to be {claimed:,} bytes long")
    member.file.seek(-len(length), io.SEEK_CUR)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = _Header(*read(member.file))
    if header.dtype.hasobject:
        raise ValueError("holds Python objects, which are never loaded")
    if min(header.shape, default=0) < 0:
        raise ValueError(f"its header says shape {header.shape}")
    return header


def _read_data(member: _Member, header: _Header) -> np.ndarray:
    """Reads to the end, where zipfile verifies the checksum."""
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
            # A ZipInfo made from a name alone has a constant time, 1980.
            with members.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                write_npy(member, rows)


def write_npy(file: IO[bytes], rows: RowChunks) -> None:
    """Writes an array as `np.save` does, piece by piece."""
    header = {"descr": "<f2", "fortran_order": False, "shape": rows.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for piece in rows.pieces:
        file.write(np.ascontiguousarray(piece, "<f2").data)
