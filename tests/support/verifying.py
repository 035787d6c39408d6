"""What `clipdata verify` says of an output, whole and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def check_verify(clipdata: Any, output: Path, file: Path) -> None:
    """An output is called good, and a file of it is named when one bit is another."""
    done = clipdata("verify", output)
    assert done.returncode == 0, done.stdout
    assert "all good" in done.stdout, done.stdout
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    file.write_bytes(damaged)
    done = clipdata("verify", output)
    assert done.returncode == 2
    assert f"damaged: {file}: its digest is not the recorded one" in done.stdout
    file.write_bytes(whole)
