"""Temporary files and folders: those of killed processes are removed, those of living ones are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.storage import temporary

WRITER = """
import os, signal, sys
from clipdata_jax import storage
with storage.open_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def hidden(folder):
    return sorted(path.name for path in folder.rglob(".*"))


def test_only_a_killed_writers_file_is_removed(tmp_path):
    out = tmp_path / "out" / "parts" / "1.npz"
    killed = subprocess.run([sys.executable, "-c", WRITER, str(out)], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(hidden(tmp_path)) == 1
    assert not out.exists()
    with storage.open_write(str(out)) as file:
        file.write(b"whole")
        storage.Folder(str(tmp_path / "out")).sweep()
        (mine,) = hidden(tmp_path)
    assert mine.startswith(".1.npz.")
    assert out.read_bytes() == b"whole"
    assert not hidden(tmp_path)


def test_another_machines_file_is_removed_after_a_silent_hour(tmp_path):
    name = f".a.npy.{'0' * 8}-{'1' * 32}.tmp"  # the mark of no kernel here
    (tmp_path / name).write_bytes(b"half")
    storage.Folder(str(tmp_path)).sweep()
    assert hidden(tmp_path) == [name]
    os.utime(tmp_path / name, (0, time.time() - 2 * temporary._SILENT_SECONDS))
    storage.sweep_beside(str(tmp_path / "b.npy"))  # another's
    assert hidden(tmp_path) == [name]
    storage.sweep_beside(str(tmp_path / "a.npy"))
    assert not hidden(tmp_path)


def test_files_with_similar_names_stay(tmp_path):
    names = [".a.npy.tmp", ".a.npy.0123.tmp", "a.npy.tmp"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    storage.Folder(str(tmp_path)).sweep()
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_one_of_several_writers_of_a_new_file_succeeds(tmp_path, monkeypatch):
    path = str(tmp_path / "out" / "_manifest.json")
    assert storage.Folder(path).write_new("", b"first")
    assert not storage.Folder(path).write_new("", b"second")
    monkeypatch.setattr(storage.Folder, "exists", lambda self: False)  # it appears while the second is written
    assert not storage.Folder(path).write_new("", b"second")
    assert storage.read_bytes(path) == b"first"

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # a file system where a file has one name
    assert not storage.Folder(path).write_new("", b"second")
    assert storage.Folder(f"{path}2").write_new("", b"third")
    assert storage.read_bytes(path) == b"first"
    assert not hidden(tmp_path)


def test_a_file_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    lock, swept = temporary.fcntl.flock, []

    def first_swept(number, how):
        if not swept:
            swept.append(os.unlink(os.readlink(f"/proc/self/fd/{number}")))
        lock(number, how)

    monkeypatch.setattr(temporary.fcntl, "flock", first_swept)
    storage.write_bytes(str(tmp_path / "a"), b"whole")
    assert swept
    assert (tmp_path / "a").read_bytes() == b"whole"
    with pytest.raises(ValueError, match="stop"), storage.open_write(str(tmp_path / "b")):
        raise ValueError("stop")
    assert os.listdir(tmp_path) == ["a"]


SCRATCH = """
import os, signal
from clipdata_jax import storage
with storage.scratch("clipdata-select-") as folder:
    open(os.path.join(folder, "run"), "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_scratch_folders_of_killed_processes_are_removed_at_the_next_start(tmp_path, monkeypatch):
    others = ["clipdata-pool", f"clipdata-{'0' * 8}-mine", "else"]
    for name in others:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with storage.scratch("clipdata-") as alive:
        subprocess.run(
            [sys.executable, "-c", SCRATCH], env={**os.environ, "TMPDIR": str(tmp_path)}, timeout=60, check=False
        )
        assert len(os.listdir(tmp_path)) == len(others) + 2
        temporary._sweep_scratch.cache_clear()  # the next start
        with storage.scratch("clipdata-uids-") as next_one:
            assert {*os.listdir(tmp_path)} == {*others, *map(os.path.basename, (alive, next_one))}
    assert sorted(os.listdir(tmp_path)) == sorted(others)


@pytest.mark.parametrize(("module", "name"), [(os, "open"), (temporary.fcntl, "flock")])
def test_a_scratch_folder_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch, module, name):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    whole, swept = getattr(module, name), []

    def first_swept(*arguments, **named):
        if not swept and os.listdir(tmp_path):
            swept.extend(os.listdir(tmp_path))
            os.rmdir(tmp_path / swept[0])
        return whole(*arguments, **named)

    monkeypatch.setattr(module, name, first_swept)
    with storage.scratch("clipdata-") as folder:
        assert swept
        assert os.listdir(tmp_path) == [os.path.basename(folder)] != swept


def test_a_full_disk_is_blamed_on_the_output_that_fills_it(tmp_path, monkeypatch):
    (tmp_path / "in.tar").write_bytes(b"1" * 9)
    monkeypatch.setattr(temporary, "_create", lambda path: os.symlink("/dev/full", path))
    words = rf"{tmp_path}/out.tar: can't be written \(no space left on device\)$"
    write, read = storage.open_write(str(tmp_path / "out.tar")), storage.open_read(str(tmp_path / "in.tar"))
    with pytest.raises(InputError, match=words), write as out, read as file:  # reading fills no disk, nor TMPDIR
        out.write(file.read() * 100_000)
    assert not hidden(tmp_path)
