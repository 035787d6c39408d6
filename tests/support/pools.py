"""Made pools for the tests of commands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def unit_rows(random: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    emb = random.normal(size=(rows, dim))
    return emb / np.linalg.norm(emb, axis=1, keepdims=True)


def make_pool(
    folder: Path, sizes: Sequence[int], *, dim: int = 32, tags: Sequence[str] = ("b32",), seed: int = 0
) -> dict[str, np.ndarray]:
    """Writes metadata shards; returns uid (hex), and img and txt of the first tag, all shards after one another."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    made: dict[str, list] = {"uid": [], "img": [], "txt": []}
    for index, rows in enumerate(sizes):
        uid = [hashlib.sha256(f"{seed}/{index}/{row}".encode()).hexdigest()[:32] for row in range(rows)]
        pq.write_table(pa.table({"uid": uid, "text": ["a caption"] * rows}), folder / f"{index:08d}.parquet")
        arrays = {}
        for tag in tags:
            img = unit_rows(random, rows, dim)
            txt = img + unit_rows(random, rows, dim)
            txt /= np.linalg.norm(txt, axis=1, keepdims=True)
            arrays |= {f"{tag}_img": img.astype(np.float16), f"{tag}_txt": txt.astype(np.float16)}
        np.savez(folder / f"{index:08d}.npz", **arrays)
        made["uid"] += uid
        made["img"].append(arrays[f"{tags[0]}_img"])
        made["txt"].append(arrays[f"{tags[0]}_txt"])
    return {"uid": np.array(made["uid"]), "img": np.concatenate(made["img"]), "txt": np.concatenate(made["txt"])}


def edit_npz(path: Path, **changes: np.ndarray) -> None:
    """Replaces arrays of a npz."""
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **arrays)


def cut_short(pool: Path) -> None:
    """Cuts the end off the second shard's npz."""
    path = pool / "00000001.npz"
    path.write_bytes(path.read_bytes()[:-500])
