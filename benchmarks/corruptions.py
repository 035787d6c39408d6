"""What the commands do with damaged and hostile files: an error of one sentence, a listed skip, or no harm.

    python benchmarks/corruptions.py [--only WORD] [--start 0] [--every 1] [--verbose]

Damages npz, npy, parquet, tar, JSON and safetensors files in some 500 ways (`tests/support/damage.py`), runs the
real command on each in this process, and compares what it makes with what it makes of the good files. Prints one JSON
line: how many ended in which way, the longest time of one, the most anonymous memory (RssAnon) beyond that before.
Ends with status 1 if one ended in a traceback, took more than 20 seconds, needed more than 2 GB, printed something
other than one sentence, or gave a wrong result.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one case compiles the next ones find.
_CACHE = tempfile.TemporaryDirectory()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.corruptions import cases  # noqa: E402  the folder of tests is found, and the cache set, first
from support.judging import Judge  # noqa: E402

_SECONDS, _BYTES, _ADDRESSES = 20, 2 << 30, 16 << 30
_GOOD = ("error", "skipped", "harmless")


class Limits:
    """Bounds a run's time and address space, and measures its anonymous memory."""

    def __init__(self) -> None:
        self.seconds, self.bytes = 0.0, 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        before, start, done = _anonymous(), time.monotonic(), threading.Event()
        peak = [before]

        def watch() -> None:
            while not done.wait(0.005):
                peak[0] = max(peak[0], _anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        faulthandler.dump_traceback_later(3 * _SECONDS, exit=True)  # what no exception could end
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_addresses() + _ADDRESSES, limit[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)
            faulthandler.cancel_dump_traceback_later()
            done.set()
            watcher.join()
            self.seconds, self.bytes = time.monotonic() - start, peak[0] - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0


def _anonymous() -> int:
    return _status("RssAnon:")


def _addresses() -> int:
    return _status("VmSize:")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    outcomes: collections.Counter[str] = collections.Counter()
    longest, most, limits = 0.0, 0, Limits()
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(Path(folder))
        for case in [case for case in cases(judge.good) if options.only in case.name][options.start :: options.every]:
            judge.reference(case.route)
            outcome, said = judge.judge(case, limits)
            if outcome in _GOOD and limits.seconds > _SECONDS:
                outcome = "too long"
            if outcome in _GOOD and limits.bytes > _BYTES:
                outcome = "too much memory"
            outcomes[outcome if outcome in _GOOD else "bad"] += 1
            longest, most = max(longest, limits.seconds), max(most, limits.bytes)
            if options.verbose or outcome not in _GOOD:
                mark = "" if outcome in _GOOD else "!!! "
                told = f"{limits.seconds:.1f} s, {limits.bytes >> 20} MB"
                print(f"{mark}{case.name}{' (skip)' * case.skip}: {outcome}, {told}: {said[-1500:]}", file=sys.stderr)
    figures = {"cases": outcomes.total(), **outcomes, "longest_s": round(longest, 1), "most_mb": most >> 20}
    print(json.dumps({"benchmark": "corruptions", **figures}))
    return 1 if outcomes["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
