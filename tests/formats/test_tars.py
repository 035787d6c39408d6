"""Webdataset tars: strict reading, deterministic writing, names."""

from __future__ import annotations

import io
import tarfile

import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars

MEMBERS = [("a/0.jpg", b"image"), ("a/0.txt", b"caption"), ("a/1.seg.png", b""), ("a/1.JSON", b"{}" * 999)]


def test_members_come_back_as_samples(tmp_path):
    path = str(tmp_path / "t.tar")
    tars.write_tar(path, MEMBERS)
    assert list(tars.read_members(path)) == MEMBERS
    first, second = tars.read_tar(path)
    assert (first.key, first.image()) == ("a/0", b"image")
    assert second.members == {"seg.png": b"", "json": b"{}" * 999}
    assert second.names == {"seg.png": "a/1.seg.png", "json": "a/1.JSON"}
    assert second.image() is None


def test_the_same_members_give_the_same_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        tars.write_tar(str(tmp_path / name), MEMBERS)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_long_names_and_folders_are_read(tmp_path, form):
    path, name = str(tmp_path / "t.tar"), "d/" * 40 + "k" * 90 + ".jpg"
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert list(tars.read_members(path)) == [(name, b"abc")]


def write_link(tar, kind, name, target):
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, target
    tar.addfile(link)


def test_links_within_a_tar_are_read(tmp_path):
    path = str(tmp_path / "t.tar")
    with tarfile.open(path, "w") as tar:
        write_link(tar, tarfile.SYMTYPE, "a/0.jpg", "1.jpg")
        info = tarfile.TarInfo("a/1.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
        write_link(tar, tarfile.LNKTYPE, "a/2.jpg", "a/1.jpg")
        write_link(tar, tarfile.SYMTYPE, "a/3.jpg", "../a/2.jpg")
    assert list(tars.read_members(path)) == [(f"a/{i}.jpg", b"abc") for i in range(4)]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "passwd.txt"])
def test_outside_and_cyclic_links_are_refused(tmp_path, target):
    path = str(tmp_path / "t.tar")
    with tarfile.open(path, "w") as tar:
        write_link(tar, tarfile.SYMTYPE, "d/passwd.txt", target)
    with pytest.raises(InputError, match=r"'d/passwd\.txt' is a link to .*, which is not in the tar"):
        list(tars.read_members(path))


def test_hidden_files_are_skipped(tmp_path):
    hidden = [("a/._0.jpg", b"notes"), (".DS_Store", b"notes")]
    tars.write_tar(str(tmp_path / "t.tar"), [hidden[0], *MEMBERS, hidden[1]])
    assert list(tars.read_members(str(tmp_path / "t.tar"))) == MEMBERS


def test_an_empty_tar_has_no_samples(tmp_path):
    tars.write_tar(str(tmp_path / "t.tar"), [])
    assert list(tars.read_tar(str(tmp_path / "t.tar"))) == []


def test_truncation_is_refused(tmp_path):
    path = tmp_path / "t.tar"
    tars.write_tar(str(path), MEMBERS)
    data = path.read_bytes()
    for end in range(0, len(data.rstrip(b"\0")), 61):
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match=r"t\.tar: (damaged or|is an empty file,) not a tar file"):
            list(tars.read_tar(str(path)))


@pytest.mark.parametrize("at", [0, 3, 148, 512 * 2, 512 * 2 + 124])
def test_damaged_headers_are_refused(tmp_path, at):
    path = tmp_path / "t.tar"
    tars.write_tar(str(path), MEMBERS)
    data = bytearray(path.read_bytes())
    data[at : at + 4] = b"\xff?\xff?"
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged or not a tar file"):
        list(tars.read_tar(str(path)))


def test_ambiguous_samples_are_refused(tmp_path):
    path = str(tmp_path / "t.tar")
    tars.write_tar(path, [("0.jpg", b""), ("1.jpg", b""), ("0.txt", b"")])
    with pytest.raises(InputError, match="members of sample '0' lie apart"):
        list(tars.read_tar(path))
    tars.write_tar(path, [("0.jpg", b""), ("0.JPG", b"")])
    with pytest.raises(InputError, match=r"key '0' has two members \.jpg"):
        list(tars.read_tar(path))


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken():
        yield MEMBERS[0]
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        tars.write_tar(str(tmp_path / "t.tar"), broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("0.jpg", ("0", "jpg")),
        ("a.b/0.seg.PNG", ("a.b/0", "seg.png")),
        ("README", ("README", "")),
        ("a/.json", ("a/", "json")),
    ],
)
def test_names_split_as_webdataset_does(name, parts):
    assert tars.split_name(name) == parts


def test_tars_are_found_in_folders_and_patterns(tmp_path):
    for name in ("b/1.tar", "b/0.tar", "b/notes.txt", "2.tar"):
        tars.write_tar(str(tmp_path / name), [])
    found = tars.find_tars([str(tmp_path / "b"), str(tmp_path / "{2..2}.tar")])
    assert [path.rpartition("/")[2] for path in found] == ["0.tar", "1.tar", "2.tar"]
    with pytest.raises(InputError, match="named twice"):
        tars.find_tars([str(tmp_path / "b"), str(tmp_path / "b/*.tar")])
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"holds no \.tar file"):
        tars.find_tars([str(tmp_path / "none")])
