"""Input files of a long run: the same, or refused by name."""

import os

import pytest

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.runs.input_files import NAME, check_unchanged


@pytest.fixture
def files(tmp_path):
    """The run's folder, a small and a large file, and a folder of files."""
    (tmp_path / "small.tar").write_bytes(b"small")
    (tmp_path / "large.tar").write_bytes(bytes(range(256)) * 4_000)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(b"image")
    paths = [str(tmp_path / name) for name in ("small.tar", "large.tar", "images")]
    return storage.Folder(str(tmp_path / "out")), paths, tmp_path


def test_the_same_files_pass_wherever_they_were_copied_to(files):
    folder, paths, _ = files
    found = check_unchanged(folder, paths)
    assert [(entry.name, entry.bytes) for entry in found] == list(zip(paths, [5, 1_024_000, None], strict=True))
    recorded = folder.read_bytes(NAME)
    assert check_unchanged(folder, paths) == found
    for path in paths[:2]:
        os.utime(path, (1, 1))  # as a copy has another time
    assert check_unchanged(folder, paths) == found
    assert folder.read_bytes(NAME) == recorded


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("small.tar", b"smell", "small.tar: has changed since the run in .*out began; put it back as it was, or"),
        ("large.tar", bytes(range(255, -1, -1)) * 4_000, "large.tar: has changed since"),
        ("large.tar", b"cut", "large.tar: has changed from 1,024,000 to 3 bytes since"),
        ("images/1.jpg", b"more", "images: has changed since"),
        ("small.tar", None, "small.tar: was removed since"),
    ],
)
def test_changed_files_are_named(files, name, content, words):
    folder, paths, tmp_path = files
    check_unchanged(folder, paths)
    path = tmp_path / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
        os.utime(path, (1, 1))
    with pytest.raises(InputError, match=words):
        check_unchanged(folder, paths)


def test_a_damaged_record_is_named(files):
    folder, paths, _ = files
    folder.write(NAME, b'["?"]')
    with pytest.raises(InputError, match=r"inputs.json: damaged"):
        check_unchanged(folder, paths)
