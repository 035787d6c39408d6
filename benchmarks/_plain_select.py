"""Selecting the plain way: whole columns, full sorts, a loop over uids. Run alone, it imports nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def plain_select(folder: str, out: str) -> None:
    """The 20 % with the highest b among the 30 % with the highest a, of a folder of parquet files; as a `.npy`."""
    parts = [pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))]
    uid, a, b = (np.concatenate([part[name].to_numpy() for part in parts]) for name in ("uid", "a", "b"))
    first = np.argsort(a)[::-1][: int(0.3 * len(a))]
    second = first[np.argsort(b[first])[::-1][: int(0.2 * len(a))]]
    pairs = [(int(one[:16], 16), int(one[16:32], 16)) for one in uid[second]]
    np.save(out, np.sort(np.array(pairs, np.dtype("u8,u8"))))


if __name__ == "__main__":
    plain_select(*sys.argv[1:])
