"""Real processes that are stopped: their status, what they leave, and that the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.images import write_pairs
from support.processes import started

from clipdata_jax import __main__, cli
from clipdata_jax.formats import tars, uids
from clipdata_jax.formats.sample_uids import json_fields, sample_uid
from clipdata_jax.runtime import stopping

ROOT = Path(__file__).parents[2]
# Runs the command with something in it replaced; `pause()` prints a line and sleeps.
PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs, which the tests may be, ignore it
def pause(*_):
    print("there", flush=True)
    time.sleep(1000)
def stop():
    os.kill(os.getpid(), signal.SIGTERM)
{change}
from clipdata_jax.__main__ import main
main()
"""
IN_A_THREAD = """
from clipdata_jax.formats.copying import tar_copy
def write(file, *_, **__):
    file.write(b"half")
    pause()
tar_copy.write_samples = write
"""
IN_ITS_LAST_FILE = """
link = os.link
os.link = lambda *paths: (stop(), link(*paths))
"""
AS_IT_IMPORTS = """
class Finder:
    def find_spec(self, name, *_):
        if name == "pyarrow":
            stop()
sys.meta_path.insert(0, Finder())
"""
IN_VAIN = """
from clipdata_jax.formats.sources import discovery
def swallow(*_, **__):
    try:
        stop()
    except KeyboardInterrupt:
        raise ImportError("what a package makes of it")
discovery.find_sources = swallow
"""

IN_JAX = """
from clipdata_jax.formats.sources import discovery
program = '''
def inside():
    try:
        stop()
    except BaseException:  # as where C++ has called
        os._exit(3)
'''
space = {"stop": stop, "os": os}
exec(compile(program, "/site-packages/jax/_src/lib.py", "exec"), space)
discovery.find_sources = lambda *_, **__: (space["inside"](), time.sleep(1000))
"""


@pytest.fixture
def flags(tmp_path):
    (tmp_path / "pool").mkdir()
    for tar in range(3):
        write_pairs(tmp_path / "pool" / f"{tar}.tar", range(4 * tar, 4 * tar + 4))
    paths = sorted(map(str, (tmp_path / "pool").iterdir()))
    found = [
        sample_uid(Path(path).name, sample.key, json_fields(sample.members))
        for path in paths
        for sample in tars.read_tar(path)
    ]
    np.save(tmp_path / "s.npy", uids.sort_unique(uids.from_hex(found)))
    return ["reshard", "pool", "--subset", "s.npy", "--out", "out"]


def start(folder, change, flags):
    return started(
        [sys.executable, "-c", PROGRAM.format(change=change), *flags],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def check_stopped_and_goes_on(process, folder, flags, clipdata):
    out, err = process.communicate()
    assert process.returncode == 75, (out, err)
    assert b"Traceback" not in err
    assert not list(folder.rglob(".*.tmp"))
    done = clipdata(*flags)
    assert done.returncode == 0, done.stderr
    assert "kept 12 of 12 samples" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "change", [IN_ITS_LAST_FILE, AS_IT_IMPORTS, IN_VAIN, IN_JAX], ids=["last file", "import", "swallowed", "jax"]
)
def test_sigterm_at_any_moment_ends_with_75(tmp_path, flags, clipdata, change):
    with start(tmp_path, change, flags) as process:
        check_stopped_and_goes_on(process, tmp_path, flags, clipdata)


def test_a_long_unit_is_abandoned_after_seconds_or_at_a_second_signal(tmp_path, flags, clipdata):
    short = IN_A_THREAD + "from clipdata_jax.runtime import stopping\nstopping._SECONDS = 0.1\n"
    patient = IN_A_THREAD + "from clipdata_jax.runtime import stopping\nstopping._SECONDS = 1000.0\n"
    for change, signals in ((short, [signal.SIGINT]), (patient, [signal.SIGTERM, signal.SIGINT])):
        flags[-1] = f"out{len(signals)}"
        with start(tmp_path, change, flags) as process:
            assert process.stdout.readline().startswith(b"there")
            assert list(tmp_path.rglob(".*.tmp"))
            for number in signals:
                process.send_signal(number)
                time.sleep(0.2)  # or two at one time may count as one
            check_stopped_and_goes_on(process, tmp_path, flags, clipdata)


POOL = """
import multiprocessing, time
import numpy as np
from clipdata_jax.filters import languages
if __name__ == "__main__":
    languages._MANY, languages._CHUNK = 1, 1
    found = languages.Languages(processes=2)
    found.are_english(np.array(["a red house", "ein rotes Haus"], object))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(1000)
"""


def test_pool_processes_end_with_a_killed_parent(tmp_path):
    pytest.importorskip("fasttext")
    (tmp_path / "program.py").write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "program.py"]
    with started(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as process:
        children = list(map(int, process.stdout.readline().split()))
        # One that no caption came to may still be starting.
        wait_until(lambda: all(map(ignores_sigterm, children)))
        for child in children:
            os.kill(child, signal.SIGTERM)  # as a terminal's Ctrl-C: to all of them; theirs to ignore
        assert children
        assert all(map(runs, children))
        process.kill()
        wait_until(lambda: not any(map(runs, children)))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ignores_sigterm(pid: int) -> bool:
    ignored = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return ignored is not None and bool(int(ignored[1], 16) >> (signal.SIGTERM - 1) & 1)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


DIES = """
from clipdata_jax.runs import output
complete, left = output.Output.complete, {lives}
def complete_or_die(self, *arguments, **named):
    global left
    left -= 1
    if left < 0:
        from clipdata_jax import storage
        with storage.open_write(self.path("uids/half.npy")) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    complete(self, *arguments, **named)
output.Output.complete = complete_or_die
"""


def test_any_number_of_processes_finishes_what_killed_ones_began(tmp_path, flags, clipdata):
    assert clipdata(*flags[:-1], "whole").returncode == 0
    for lives, worker in ((1, "0/2"), (0, "1/2"), (0, "0/1")):
        with start(tmp_path, DIES.format(lives=lives), [*flags, "--worker", worker]) as process:
            printed = process.communicate()
        assert process.returncode == -signal.SIGKILL, printed
    assert list(tmp_path.rglob(".half.npy.*.tmp"))
    printed = [clipdata(*flags, "--worker", f"{index}/3").stdout for index in (2, 1, 0)]
    assert [len(text.splitlines()) for text in printed].count(1) == 2
    assert not list(tmp_path.rglob(".*.tmp"))
    assert sum("kept 12 of 12 samples" in text for text in printed) == 1, printed
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*")]
    assert files
    assert sorted(files) == sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*"))
    for name in files:
        if name.name != "_run.jsonl":
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


@pytest.mark.parametrize(("ends", "status"), [(0, 0), (2, 2), (RuntimeError("ours"), 1)])
def test_a_failed_process_does_not_wait_long_for_its_peers(monkeypatch, capsys, ends, status):
    def command():
        if isinstance(ends, Exception):
            raise ends
        return ends

    def leave(status):
        raise SystemExit(status)

    waited = []
    for name, function in (("watch", lambda: None), ("finish", lambda: None), ("exit_now", leave)):
        monkeypatch.setattr(stopping, name, function)
    monkeypatch.setattr(cli, "main", command)
    monkeypatch.setattr(__main__, "_leave_run", waited.append)
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert (end.value.code, waited) == (status, [5.0 if status else None])
    assert ("RuntimeError: ours" in capsys.readouterr().err) == (status == 1)
