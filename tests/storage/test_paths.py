"""Paths, patterns, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource

import numpy as np
import pytest

from clipdata_jax import storage
from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.models import checkpoint_files
from clipdata_jax.storage import local, patterns
from clipdata_jax.training import Checkpoints


@pytest.fixture
def folder(tmp_path):
    for name in ("a/2.tar", "a/10.tar", "a/1.txt", "a/sub/3.tar"):
        storage.write_bytes(str(tmp_path / name), name.encode())
    return str(tmp_path)


def names(paths, folder):
    return [os.path.relpath(path, folder) for path in paths]


def test_folders_are_listed_by_name(folder):
    assert names(storage.Folder(f"{folder}/a").files(".tar"), folder) == ["a/10.tar", "a/2.tar"]
    assert storage.Folder(f"{folder}/missing").files() == []
    assert storage.is_folder(f"{folder}/a")
    assert not storage.is_folder(f"{folder}/a/2.tar")


def test_symlinks_are_followed(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links/0.tar").symlink_to(tmp_path / "a/2.tar")
    (tmp_path / "links/1.tar").symlink_to(tmp_path / "a")
    (tmp_path / "links/2.txt").symlink_to("gone")
    assert names(storage.Folder(f"{folder}/links").files(".tar"), folder) == ["links/0.tar"]
    with pytest.raises(InputError, match=r"links/2\.txt: is a broken link"):
        storage.Folder(f"{folder}/links").files()


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a/{2..2}.tar", ["a/2.tar"]),
        ("a/{10,2}.tar", ["a/10.tar", "a/2.tar"]),
        ("a/*.t*", ["a/1.txt", "a/10.tar", "a/2.tar"]),
        ("a/{sub/3,2}.tar", ["a/sub/3.tar", "a/2.tar"]),
        ("a", ["a"]),
        ("a/[0-9].tar", ["a/2.tar"]),
    ],
)
def test_patterns(folder, pattern, found):
    assert names(storage.expand(f"{folder}/{pattern}"), folder) == found


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("b", "no such file or folder"),
        ("a/{2..3}.tar", "3.tar: no such file"),
        ("a/{3..2}.tar", "is empty"),
        ("a/*.zip", "matches no file"),
        ("a/2.tar::", "nothing stands before or after a '::'"),
    ],
)
def test_patterns_that_match_nothing(folder, pattern, words):
    with pytest.raises(InputError, match=words):
        storage.expand(f"{folder}/{pattern}")


def test_joined_patterns_are_several(folder):
    joined = f"{folder}/a/2.tar::{folder}/a/{{sub/3,2}}.tar::simplecache::memory://x"
    assert names(storage.expand(joined.rpartition("::simplecache")[0]), folder) == ["a/2.tar", "a/sub/3.tar", "a/2.tar"]
    assert patterns.split_joined([joined])[2:] == ["simplecache::memory://x"]
    chained = "zip://0.tar::simplecache::s3://a.zip"
    assert patterns.split_joined([f"data::{chained}::b"]) == ["data", chained, "b"]


def test_ranges_keep_their_zeros():
    assert patterns.expand_braces("p/{008..010}/{a,b}.tar")[:3] == ["p/008/a.tar", "p/008/b.tar", "p/009/a.tar"]


def test_the_stat_cache_ends_with_its_last_block():
    """Blocks of two threads end in any order."""
    one, other = storage.stat_cache(), storage.stat_cache()
    one.__enter__()
    other.__enter__()
    assert not storage.exists("memory://remembered/f")
    storage.Folder("memory://remembered").fs.pipe_file("/remembered/f", b"1")  # as another process does
    one.__exit__(None, None, None)
    assert not storage.exists("memory://remembered/f")
    other.__exit__(None, None, None)
    assert storage.exists("memory://remembered/f")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new/file.bin"
    with pytest.raises(RuntimeError), storage.open_write(str(path)) as file:
        file.write(b"half")
        raise RuntimeError
    assert list((tmp_path / "new").iterdir()) == []
    storage.write_bytes(str(path), b"old")
    with pytest.raises(RuntimeError), storage.open_write(str(path)) as file:
        file.write(b"half")
        raise RuntimeError
    assert storage.read_bytes(str(path)) == b"old"
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["file.bin"]


@pytest.mark.parametrize(
    "replace", [lambda path: storage.open_write(str(path)), lambda path: checkpoint_files.replace_file(path)]
)
def test_two_writers_with_one_process_id_do_not_collide(tmp_path, replace):
    with replace(tmp_path / "f"), replace(tmp_path / "f"):
        temporary = [path.name for path in tmp_path.iterdir()]
        assert len(temporary) == 2
        assert all(name.startswith(".f.") and name.endswith(".tmp") for name in temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_replaced_file_obeys_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with checkpoint_files.replace_file(tmp_path / "f") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("form", ["~/checkpoints", "file://{home}/checkpoints", "{home}/checkpoints"])
def test_checkpoints_take_the_same_paths(tmp_path, monkeypatch, form):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = form.format(home=tmp_path)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest == 0
    assert (tmp_path / "checkpoints").is_dir()
    assert storage.is_folder(folder)


def test_sizes_and_digests(tmp_path):
    path = str(tmp_path / "f")
    storage.write_bytes(path, b"x" * (3 << 20))
    assert storage.size(path) == 3 << 20
    assert storage.digest(path) == "sha256:" + hashlib.sha256(b"x" * (3 << 20)).hexdigest()


def test_unreadable_and_unwritable_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        storage.read_bytes(str(tmp_path / "none"))
    with pytest.raises(InputError, match="is a folder"):
        storage.read_bytes(str(tmp_path))
    storage.write_bytes(str(tmp_path / "f"), b"")
    with pytest.raises(InputError, match="can't be written"):
        storage.write_bytes(str(tmp_path / "f/below"), b"")
    with pytest.raises(InputError, match="can't be opened here"):
        storage.Folder("nosuch://bucket/x")


def test_an_object_store_behaves_like_a_disk():
    storage.write_bytes("memory://alike/a/1.tar", b"one")
    assert storage.read_bytes("memory://alike/a/1.tar") == b"one"
    assert [storage.read_bytes(path) for path in storage.expand("memory://alike/a/*.tar")] == [b"one"]
    assert storage.Folder("memory://alike/a").files(".tar") == ["memory://alike/a/1.tar"]
    with pytest.raises(RuntimeError), storage.open_write("memory://alike/a/2.tar") as file:
        file.write(b"half")
        raise RuntimeError
    assert not storage.exists("memory://alike/a/2.tar")


@contextlib.contextmanager
def small_files(limit=1 << 14):
    """No file may grow beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(tmp_path):
    path = str(tmp_path / "f.npy")
    storage.write_bytes(path, b"before")
    for write in (lambda file: np.save(file, np.zeros(1 << 14)), lambda file: file.write(bytes(1 << 17))):
        with (
            pytest.raises(InputError, match=r"f\.npy: can't be written \(.+\); what it held before is kept"),
            small_files(),
        ):
            storage.Folder(path).write("", write)
        assert storage.read_bytes(path) == b"before"
        assert len(list(tmp_path.iterdir())) == 1


def test_a_new_name_is_synced_with_its_folder(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(local.os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    entry = storage.Folder(str(tmp_path / "new/f")).write("", b"12345", digests=True)
    assert entry == (5, storage.digest(str(tmp_path / "new/f")))
    assert synced[0] == str(tmp_path)
    assert synced[1].endswith(".tmp")
    assert synced[2] == str(tmp_path / "new")


@pytest.mark.parametrize(("number", "kind"), [(errno.ESTALE, StorageError), (errno.EIO, InputError)])
def test_a_lost_mount_is_a_storage_error(tmp_path, number, kind):
    storage.write_bytes(str(tmp_path / "f"), b"1")
    with pytest.raises(kind, match="can't be read"), storage.open_read(str(tmp_path / "f")):
        raise OSError(number, os.strerror(number))


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "part").write_bytes(b"123")
    assert storage.Folder(str(tmp_path)).sizes() == {"a/b/part": 3}
    assert storage.Folder(str(tmp_path / "none")).sizes() == {}

    def scan(path):
        if str(path).endswith("b"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(OSError, match="Stale"):
        storage.Folder(str(tmp_path)).sizes()
