"""Broken and hostile tars, images and weights."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib

from support.damage import Made


def tar_bytes(members: list[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _special(name: str, kind: bytes, target: str = "", **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, target, pax
    return info


def patched_header(data: bytes, start: int, value: bytes, at: int = 0, *, mend: bool = True) -> bytes:
    """A tar with bytes of one header changed, its checksum mended so that they are believed."""
    head = bytearray(data[at : at + 512])
    head[start : start + len(value)] = value
    if mend:
        head[148:156] = b" " * 8
        head[148:156] = f"{sum(head):06o}\0 ".encode()
    return data[:at] + bytes(head) + data[at + 512 :]


def tar_damages(members: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """Tars that stand for some samples and are something else, or hold something else besides."""
    good = tar_bytes(members)
    first = members[0][0]
    stem = first.rpartition(".")[0]

    def also(*extra: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
        return tar_bytes([*members, *extra])

    return {
        "checksum": patched_header(good, 0, b"Z", mend=False),
        "size-huge": patched_header(good, 124, b"77777777777\0"),
        "size-binary": patched_header(good, 124, b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7),
        "size-negative": patched_header(good, 124, b"\xff" * 12),
        "size-text": patched_header(good, 124, b"many bytes!!"),
        "size-one-more": patched_header(good, 124, f"{len(members[0][1]) + 600:011o}\0".encode()),
        "name-empty": patched_header(good, 0, bytes(100)),
        "name-bytes": patched_header(good, 0, b"\xff\xfe\x80.png\0"),
        "device": also((_special("z.png", tarfile.CHRTYPE), b"")),
        "pipe": also((_special("z.png", tarfile.FIFOTYPE), b"")),
        "link-out": also((_special("z.png", tarfile.SYMTYPE, "/etc/passwd"), b"")),
        "link-up": also((_special("z.txt", tarfile.SYMTYPE, "../../secret"), b"")),
        "link-itself": also((_special("z.png", tarfile.SYMTYPE, "z.png"), b"")),
        "link-ring": also(
            (_special("y.png", tarfile.SYMTYPE, "z.png"), b""),
            (_special("z.png", tarfile.SYMTYPE, "y.png"), b""),
        ),
        "hard-link-out": also((_special("z.png", tarfile.LNKTYPE, "/etc/passwd"), b"")),
        "many-links": also(*((_special(f"z{i}.png", tarfile.LNKTYPE, first), b"") for i in range(300))),
        "pax-size": also((_special("z.png", tarfile.REGTYPE, size="99999999999999"), b"x")),
        "pax-size-negative": also((_special("z.png", tarfile.REGTYPE, size="-512"), b"x")),
        "pax-size-text": also((_special("z.png", tarfile.REGTYPE, size="much"), b"x")),
        "pax-path": also((_special("z.png", tarfile.REGTYPE, path="../../escaped.png"), b"x")),
        "pax-sparse": also(
            (_special("z.png", tarfile.REGTYPE, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), b"9\n")
        ),
        "pax-sparse-map": also((_special("z.png", tarfile.REGTYPE, **{"GNU.sparse.map": "0,x"}), b"x")),
        "pax-nothing": patched_header(also(("z.png", b"x")), 156, b"x"),
        "gnu-long-name": patched_header(good, 156, b"L"),
        "gnu-sparse": patched_header(good, 156, b"S"),
        "unknown-type": patched_header(good, 156, b"?"),
        "volume": patched_header(good, 156, b"V"),
        "key-again": also((f"{stem}.png", b"x")),
        "member-twice": tar_bytes([members[0], members[0], *members[1:]]),
        "escape-codes": also(("z\x1b[2J\x1b]0;owned\x07.txt", b"\x1b[31mred")),
        "up": also(("../../../escaped.png", b"x"), ("/root/escaped.txt", b"x")),
        "json-nested": also(("z.json", b"[" * 200_000)),
        "json-infinite": also(("z.json", b'{"uid": Infinity, "caption": NaN}')),
        "json-number": also(("z.json", b'{"uid": ' + b"9" * 9_999 + b"}")),
        "json-list": also(("z.json", b"[1, 2]")),
        "json-bytes": also(("z.json", b'{"uid": "\xff\xfe"}')),
        "json-large": also(("z.json", b'{"a": [' + b"{}," * (6 << 20) + b"{}]}")),
        "txt-bytes": also(("z.txt", b"\xff\xfe\x80"), ("z.png", members[0][1])),
        "nested": tar_bytes([("inner.tar", good)]),
        "gzipped": zlib.compress(good),
        "no-members": tar_bytes([]),
    }


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def image_bombs(png: bytes) -> dict[str, Made]:
    """Images that are small as stored and huge as decoded, or no images."""

    def sized(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        pixels = zlib.compress(bytes(1 << 20))
        start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
        return start + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")

    def with_zeros(kind: bytes) -> bytes:
        return png[:33] + png_chunk(kind, b"a\0\0" + zlib.compress(bytes(1 << 28))) + png[33:]

    return {
        "wide": sized(2**31 - 1, 1),
        "large": sized(60_000, 60_000),
        "none": sized(0, 0),
        "short": sized(900, 900),
        "text-chunk": lambda: with_zeros(b"zTXt"),
        "profile-chunk": lambda: with_zeros(b"iCCP"),
        "chunk-length": png[:33] + struct.pack(">I", 2**31 - 1) + png[37:],
        "crc": png[:45] + bytes([png[45] ^ 255]) + png[46:],
        "gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08\x01\x00;",
        "tiff": b"II*\0\x08\0\0\0\xff\xff" + bytes(64),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }


def safetensors_damages(good: bytes) -> dict[str, bytes]:
    """Weights whose header says something else."""
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")

    def said(**changes: object) -> bytes:
        text = json.dumps({**header, name: {**header[name], **changes}}).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + length :]

    return {
        "header-huge": struct.pack("<Q", 2**63) + good[8:],
        "header-gb": struct.pack("<Q", 2**30) + good[8:],
        "header-nested": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "shape-huge": said(shape=[2**40, 2**40]),
        "offsets-out": said(data_offsets=[0, 2**50]),
        "offsets-back": said(data_offsets=[100, 0]),
        "dtype-unknown": said(dtype="X99"),
        "tensor-missing": struct.pack("<Q", 2) + b"{}",
        "half": good[: len(good) // 2],
        "pickle": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
    }
