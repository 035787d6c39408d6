"""Indexes of tars of every form, and tars copied from them block by block."""

from __future__ import annotations

import io
import tarfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import tar_index, tars
from clipdata_jax.formats.copying import sample_keys, tar_copy
from clipdata_jax.formats.copying.source_samples import SampleReader
from clipdata_jax.formats.tar_index import open_tar

MEMBERS = [("a/0.jpg", b"image" * 99), ("a/0.txt", b""), ("a/1.b.png", b"x" * 512), ("a/1.JSON", b"{}")]


def write(path, members, kind=tarfile.PAX_FORMAT, **fields):
    """A tar by tarfile; members are (name, bytes), or TarInfo for what has no bytes."""
    with tarfile.open(path, "w", format=kind) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            for name, value in fields.items():
                setattr(info, name, value)
            tar.addfile(info, io.BytesIO(member[1]))
    return str(path)


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def timed(name, mtime, **headers):
    info = tarfile.TarInfo(name)
    info.mtime, info.pax_headers = mtime, headers
    return info


def pairs(size, count):
    return [(f"{i}.{kind}", b"x" * size(i)) for i in range(count) for kind in ("jpg", "json")]


LINKS = [special("z.jpg", tarfile.SYMTYPE, "a/0.jpg"), special("z.txt", tarfile.LNKTYPE, "a/0.txt")]
FORMS = {
    "POSIX": ({}, MEMBERS, True),
    "times of fractions": ({"mtime": 1.5}, MEMBERS, True),  # webdataset writes these, in extended headers
    "old GNU": ({"kind": tarfile.GNU_FORMAT, "mtime": 3}, MEMBERS, True),
    "ustar": ({"kind": tarfile.USTAR_FORMAT, "uname": "me"}, MEMBERS, True),
    "times of fractions, in part": ({}, [timed("a/0.jpg", 1.5), *MEMBERS[1:], timed("b.jpg", 2.25)], True),
    "two extended headers": ({}, [timed("a/0.jpg", 1.5, comment="x")], True),
    "many samples": ({"mtime": 1.5}, pairs(lambda i: i * 97 % 9000, 700), True),
    "upper and lower": ({}, [("A.JPG", b"x"), ("A.Json", b"{}"), ("a.jpg", b"y"), ("b", b"z")], True),
    "large members": ({"mtime": 2.5}, pairs(lambda i: (3 - i) << 20, 3), True),
    "a folder": ({}, [special("a", tarfile.DIRTYPE), *MEMBERS], True),
    "hidden files": ({}, [("a/._0.jpg", b"note"), *MEMBERS, (".DS_Store", b"note")], True),
    "hidden folders": ({}, [("__MacOSX/0.jpg", b"x"), *MEMBERS, ("a/@eaDir/b/0.jpg", b"x"), (".c/0.jpg", b"x")], True),
    "hidden long names": ({}, [(f".c/{'d' * 150}/0.jpg", b"x"), *MEMBERS], False),
    "all hidden": ({}, [("__MACOSX/0.jpg", b"x"), ("Thumbs.db", b"x")], True),
    "names like hidden": ({}, [(f"{i}.jpg", b"x") for i in ("./0", "../1", "./__MACOSX", "lost+foundry/2")], True),
    "long names, GNU": ({"kind": tarfile.GNU_FORMAT}, [(f"{'d' * 150}/0.jpg", b"x"), *MEMBERS], False),
    "long names, POSIX": ({}, [(f"{'d' * 150}/0.jpg", b"x"), *MEMBERS], False),
    "prefixed names": ({"kind": tarfile.USTAR_FORMAT}, [(f"{'d' * 99}/{'e' * 50}.jpg", b"x")], False),
    "other letters": ({"mtime": 1.5}, [("é/0.jpg", b"x"), *MEMBERS], False),
    "links": ({}, [*MEMBERS, *LINKS], False),
}  # fmt: skip


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request, tmp_path):
    fields, members, plain = request.param
    return write(tmp_path / "t.tar", members, **fields), plain


def found(path) -> list[tar_index.IndexedSample]:
    with open_tar(path) as tar:
        index = tar_index.index_tar(tar)
    return [index.sample(i) for i in range(len(index.keys))]


def test_index_equals_reading(form):
    path, plain = form
    with open_tar(path) as tar:
        assert (tar_index.read_headers(tar) is not None) == plain
        index = tar_index.index_tar(tar)
        samples = [index.sample(i) for i in range(len(index.keys))]
        got = [[index.read(number, tar) for number in sample.members] for sample in samples]
        jsons = [index.read(number, tar) if number >= 0 else None for number in index.jsons]
    passed_over = Counter()
    read = list(tars.read_tar(path, passed_over))
    assert index.hidden == passed_over.total()
    assert [sample.key for sample in samples] == [sample.key for sample in read]
    assert got == [list(sample.members.values()) for sample in read]
    assert jsons == [sample.members.get("json") for sample in read]


def copy(file, samples):
    keys = sample_keys.number_repeats([sample.key for sample in samples])
    tar_copy.write_samples(file, samples, keys, SampleReader())


def test_copies_read_the_same(form, tmp_path):
    path, _ = form
    storage.write_bytes(f"memory://{tmp_path}/t.tar", storage.read_bytes(path))
    for source in (path, f"memory://{tmp_path}/t.tar"):
        with open(tmp_path / "out.tar", "wb") as out:
            copy(out, found(source))
        assert list(tars.read_members(str(tmp_path / "out.tar"))) == list(tars.read_members(path))
        assert (tmp_path / "out.tar").stat().st_size % tarfile.RECORDSIZE == 0


def test_headers_are_copied(tmp_path):
    path = write(tmp_path / "t.tar", MEMBERS, mtime=1.5, mode=0o600, uname="me")
    with open(tmp_path / "out.tar", "wb") as out:
        copy(out, found(path)[1:])
    with tarfile.open(tmp_path / "out.tar") as got, tarfile.open(path) as was:
        assert [(info.name, info.mtime, info.mode, info.uname) for info in got] == [
            (info.name, 1.5, 0o600, "me") for info in was.getmembers()[2:]
        ]


def test_repeated_keys_are_numbered(tmp_path):
    first = found(write(tmp_path / "1.tar", [("a/0.jpg", b"1"), ("a/0.seg.png", b"2"), ("a/0-1.jpg", b"3")]))
    second = found(write(tmp_path / "2.tar", [("a/0.jpg", b"4"), ("b.jpg", b"5")]))
    with open(tmp_path / "out.tar", "wb") as out:
        copy(out, [first[0], first[0], *first, *second])
    assert list(tars.read_members(str(tmp_path / "out.tar"))) == [
        *[("a/0.jpg", b"1"), ("a/0.seg.png", b"2"), ("a/0-5.jpg", b"1"), ("a/0-5.seg.png", b"2")],
        *[("a/0-2.jpg", b"1"), ("a/0-2.seg.png", b"2"), ("a/0-1.jpg", b"3")],
        *[("a/0-3.jpg", b"4"), ("b.jpg", b"5")],
    ]


def outcome(path) -> object:
    with open_tar(path) as tar:
        try:
            return tar_index.index_tar(tar)
        except InputError as error:
            return str(error)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "t.tar"
    write(path, [("0.jpg", b"x"), special("d", tarfile.DIRTYPE), ("0.txt", b"y")], mtime=2.5)
    return path


@settings(max_examples=250, deadline=None)
@given(place=st.integers(0, 4607), value=st.sampled_from(b"\0 019x\x80LS"), cut=st.integers(0, 10240) | st.none())
@example(place=524, value=0, cut=None)  # the end of a pax record, and what is behind it: newer Pythons refuse these
@example(place=525, value=ord(" "), cut=None)
def test_damage_reads_as_in_tarfile(small, place, value, cut):
    damaged = bytearray(small.read_bytes())
    damaged[place] = value
    path = small.with_name("damaged.tar")
    path.write_bytes(damaged[:cut])
    with pytest.MonkeyPatch.context() as patch:
        got = outcome(str(path))
        patch.setattr(tar_index, "read_headers", lambda tar: None)
        want = outcome(str(path))
    assert got == want


def test_truncation_while_copying_is_refused(tmp_path):
    path = write(tmp_path / "t.tar", MEMBERS)
    chosen = found(path)
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:2000])
    with open(tmp_path / "out.tar", "wb") as out, pytest.raises(InputError, match=r"t\.tar: became shorter"):
        copy(out, chosen)


def test_a_sparse_member_is_refused(tmp_path):
    path = write(tmp_path / "t.tar", [special("0.jpg", tarfile.GNUTYPE_SPARSE)], tarfile.GNU_FORMAT)
    with pytest.raises(InputError, match=r"t\.tar: damaged or not a tar file \('0\.jpg' is stored as a sparse file"):
        found(path)


names = st.text("aA.j/é", min_size=1, max_size=5) | st.sampled_from(["a.json", "a.JSON", "a/a.json", "a.a.json"])


@settings(max_examples=200, deadline=None)
@example(["a", "a."], tarfile.PAX_FORMAT)
@example([f"a.{i}" for i in range(99)], tarfile.PAX_FORMAT)
@given(st.lists(names, min_size=1, max_size=5), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_any_names_group_as_in_reading(tmp_path_factory, members, kind):
    path = tmp_path_factory.getbasetemp() / "names.tar"
    write(path, [(name, b"x") for name in members], kind)
    with pytest.MonkeyPatch.context() as patch:
        got = outcome(str(path))
        patch.setattr(tar_index, "read_headers", lambda tar: None)
        assert got == outcome(str(path))
    try:
        read = [(sample.key, len(sample.members)) for sample in tars.read_tar(str(path))]
    except InputError as error:
        assert got == str(error)
    else:
        assert isinstance(got, tar_index.TarIndex)
        assert list(zip(got.keys, np.diff(got.first).tolist(), strict=True)) == read
