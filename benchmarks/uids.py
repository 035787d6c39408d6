"""`clipdata uids union` of two large subset files, against reading them and writing as many bytes as the union has.

    python benchmarks/uids.py [--rounds 5] [--rows 30000000] [--folder FOLDER]

One JSON line a figure, medians of turns taken in one run, the files in the page cache; last the memory that the union
takes. The peer reads both files whole and writes the union, made beforehand, as the command writes: aside,
flushed to the disk (fsync), renamed. The command also sees that the files are in order, and takes digests of both
and of the result for its manifest; those alone are a line of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
from pathlib import Path

import numpy as np
from _timing import alternate, anonymous_memory, median_ratio, peak_memory, report

from clipdata_jax import config, storage
from clipdata_jax.commands.uids import run
from clipdata_jax.formats import uids


def make_files(folder: Path, rows: int) -> tuple[str, str, str]:
    """Two sorted files of that many uids each, a third of these common, and their union."""
    rng = np.random.default_rng(0)
    drawn = uids.sort_unique(uids.join_halves(*rng.integers(0, 2**64, (2, rows * 5 // 3), dtype=np.uint64)))
    where = rng.permutation(len(drawn))
    for name, chosen in (("a", where[:rows]), ("b", where[-rows:])):
        np.save(folder / f"{name}.npy", drawn[np.sort(chosen)])
    np.save(folder / "union.npy", drawn)
    a, b, union = (str(folder / f"{name}.npy") for name in ("a", "b", "union"))
    return a, b, union


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=30_000_000)
    parser.add_argument("--folder", help="where to make the files; default: the folder for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        a, b, union = make_files(Path(name), options.rows)
        result = np.load(union)

        def read_and_write() -> None:
            for path in (a, b):
                np.load(path)
            with storage.open_write(f"{name}/copied.npy") as file:
                np.save(file, result)

        def ours() -> None:
            chosen = config.Uids(operation="union", files=(a, b), out=f"{name}/made.npy")
            with contextlib.redirect_stdout(io.StringIO()):
                run(chosen)

        def digests() -> list[str]:
            return [storage.digest(path) for path in (a, b, union)]

        seconds = alternate({"read and write": read_and_write, "union": ours, "digests": digests}, options.rounds)
        if not np.array_equal(np.load(f"{name}/made.npy"), result):
            raise SystemExit("the union differs from what the files were drawn from")
        for figure, times in seconds.items():
            report(figure, rows=2 * options.rows, seconds=statistics.median(times))
        report("time of union to reading and writing", ratio=median_ratio(seconds, "union", "read and write"))
        del result
        before = anonymous_memory()
        report("memory of union", megabytes_beyond_start=(peak_memory(ours) - before) / 1e6)


if __name__ == "__main__":
    main()
