"""The real `clipdata reshard` on made tars."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clipdata_jax import config
from clipdata_jax.commands import reshard
from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars, uids


def uid_number(index: int) -> str:
    return f"{index * 7919:032x}"


def samples(start: int, count: int, *, with_uid: bool = True):
    """Members of samples: an image (any bytes will do), a caption, a json with the uid."""
    rng = np.random.default_rng(start)
    for index in range(start, start + count):
        fields = {"uid": uid_number(index)} if with_uid else {"caption": "né"}
        yield f"a/{index:05d}.jpg", rng.bytes(700 + index)
        yield f"a/{index:05d}.TXT", f"caption {index}".encode()
        yield f"a/{index:05d}.json", json.dumps(fields).encode()


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def write_subset(path: Path, texts) -> str:
    uids.write_subset(str(path), uids.from_hex(list(texts)))
    return str(path)


@pytest.fixture
def pool(tmp_path):
    """Three tars of 10, 5 and 8 samples; the subset takes every third sample of the first two."""
    folder = tmp_path / "pool"
    tars.write_tar(f"{folder}/000.tar", samples(0, 10))
    tars.write_tar(f"{folder}/001.tar", samples(10, 5))
    tars.write_tar(f"{folder}/002.tar", samples(100, 8))
    write_subset(tmp_path / "s.npy", [uid_number(index) for index in range(0, 15, 3)])
    return folder


def kept(path: Path, numbers) -> list[tuple[str, bytes]]:
    """The members of a tar whose keys have these numbers."""
    names = {f"a/{index:05d}" for index in numbers}
    return [(name, data) for name, data in members(path) if name.rpartition(".")[0] in names]


def refused(done, *words):
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("clipdata reshard: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in last
    return True


def test_tars_hold_the_selected_samples_byte_for_byte(tmp_path, pool, clipdata):
    done = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["000.tar", "001.tar"]
    assert members(tmp_path / "out/000.tar") == kept(pool / "000.tar", (0, 3, 6, 9))
    assert members(tmp_path / "out/001.tar") == kept(pool / "001.tar", (12,))
    assert [sample.key for sample in tars.read_tar(f"{tmp_path}/out/001.tar")] == ["a/00012"]
    held = np.load(tmp_path / "out/uids/000.npy", allow_pickle=False)
    assert uids.to_hex(held) == [uid_number(index) for index in (0, 3, 6, 9)]
    assert done.stdout == (
        "kept 5 of 23 samples in 3 tars; 2 tars written: out\nfound 5 of 5 selected uids (100.00 %)\n"
    )
    assert json.loads((tmp_path / "out/sizes.json").read_bytes()) == {"000.tar": 4, "001.tar": 1}


def test_hidden_tars_and_members_are_passed_over_and_counted(tmp_path, pool, clipdata):
    (pool / "._000.tar").write_bytes(b"of macOS")
    (pool / "@eaDir").mkdir()
    shutil.copy(pool / "000.tar", pool / "@eaDir/000.tar")
    (pool / "notes.md").write_text("not counted beside tars")
    tars.write_tar(str(pool / "003.tar"), [("__MACOSX/0.jpg", b"x"), ("a/._0.jpg", b"x"), *samples(23, 2)])
    done = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept 5 of 25 samples in 4 tars; 2 tars written: out\n")
    assert done.stdout.endswith("\nPassed over 4 hidden or system files\n")
    assert json.loads((tmp_path / "out/_manifest.json").read_bytes())["passed_over"] == {"hidden or system": 4}


def test_the_manifest_counts_every_tar_and_is_deterministic(tmp_path, pool, clipdata):
    for out in ("one", "two"):
        assert clipdata("reshard", "pool", "--subset", "s.npy", "--out", out).returncode == 0
    text = (tmp_path / "one/_manifest.json").read_bytes()
    assert text == (tmp_path / "two/_manifest.json").read_bytes()
    assert (tmp_path / "one/000.tar").read_bytes() == (tmp_path / "two/000.tar").read_bytes()
    content = json.loads(text)
    assert content["per_tar"] == {
        "000": {"samples": 10, "kept": 4},
        "001": {"samples": 5, "kept": 1},
        "002": {"samples": 8, "kept": 0},
    }
    assert content["command"] == "reshard"
    assert content["inputs"][0]["digest"].startswith("sha256:")
    assert [Path(entry["name"]).name for entry in content["pool"]] == ["000.tar", "001.tar", "002.tar"]
    numbers = ("000", "001")
    expected = {name for i in numbers for name in (f"{i}.tar", f"keys/{i}.npy", f"uids/{i}.npy")}
    assert set(content["outputs"]) == expected


def test_missing_and_repeated_uids_are_counted(tmp_path, capsys):
    tars.write_tar(f"{tmp_path}/pool/0.tar", samples(0, 4))
    tars.write_tar(f"{tmp_path}/pool/1.tar", samples(2, 4))
    subset = write_subset(tmp_path / "s.npy", [uid_number(index) for index in (1, 2, 3, 77, 78)])
    out = tmp_path / "out"
    found = reshard.run(config.Reshard(sources=(f"{tmp_path}/pool",), subset=subset, out=str(out)))
    assert (found.kept, found.repeated, found.selected, found.missing) == (5, 2, 5, 2)
    assert found.missing_examples == (uid_number(77), uid_number(78))
    assert len(members(out / "1.tar")) == 6
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "2 samples repeat the uid of another; all are kept"
    examples = f"{uid_number(77)}, {uid_number(78)}"
    assert lines[2] == "2 samples have the key of another and are written as key-1, key-2 and so on"
    assert lines[3:] == [f"found 3 of 5 selected uids (60.00 %); 2 are in no tar, e.g. {examples}"]
    content = json.loads((out / "_manifest.json").read_bytes())
    assert (content["found"], content["found_share"], content["missing"]) == (3, 0.6, 2)


def test_samples_without_uid_go_by_tar_and_key(tmp_path):
    tars.write_tar(f"{tmp_path}/deep/pool/0.tar", samples(0, 3, with_uid=False))
    tars.write_tar(f"{tmp_path}/deep/pool/1.tar", [("b/7.jpg", b"image"), ("b/8.jpg", b"another")])
    subset = write_subset(tmp_path / "s.npy", [uids.uid_of("0.tar", "a/00001"), uids.uid_of("1.tar", "b/8")])
    found = reshard.run(config.Reshard(sources=(f"{tmp_path}/deep/pool",), subset=subset, out=f"{tmp_path}/out"))
    assert (found.kept, found.missing) == (2, 0)
    assert members(tmp_path / "out/1.tar") == [("b/8.jpg", b"another")]


def test_names_that_are_no_utf8_stay_as_they_are(tmp_path):
    odd = b"a\xff.jpg".decode(errors="surrogateescape")
    tars.write_tar(f"{tmp_path}/0.tar", [(odd, b"image"), ("b.json", b'{"uid": 3}')])
    subset = write_subset(tmp_path / "s.npy", [uids.uid_of("0.tar", odd.removesuffix(".jpg"))])
    options = config.Reshard(sources=(f"{tmp_path}/0.tar",), subset=subset, out=f"{tmp_path}/out", on_bad="skip")
    assert reshard.run(options).kept == 1
    assert members(tmp_path / "out/0.tar") == [(odd, b"image")]


def test_tars_of_one_name_from_two_folders(tmp_path):
    for name, start in (("train", 0), ("test", 5)):
        tars.write_tar(f"{tmp_path}/{name}/000.tar", samples(start, 2))
    subset = write_subset(tmp_path / "s.npy", [uid_number(index) for index in (1, 5, 6)])
    inputs = (f"{tmp_path}/train", f"{tmp_path}/test")
    reshard.run(config.Reshard(sources=inputs, subset=subset, out=f"{tmp_path}/out"))
    assert len(members(tmp_path / "out/train_000.tar")) == 3
    assert len(members(tmp_path / "out/test_000.tar")) == 6


def test_workers_share_the_tars_and_the_last_one_writes_the_manifest(tmp_path, pool, clipdata):
    alone = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "alone")
    first = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out", "--worker", "1/2")
    assert alone.returncode == first.returncode == 0
    assert first.stdout == (
        "out: process 2 of 2 is done with its units; others are missing (000 for one); the last to finish"
        " writes _manifest.json\n"
    )
    assert not (tmp_path / "out/_manifest.json").exists()
    last = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out", "--worker", "0/2")
    assert last.stdout == alone.stdout.replace("alone", "out")
    assert (tmp_path / "out/_manifest.json").read_bytes() == (tmp_path / "alone/_manifest.json").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "out/_run.jsonl").read_text().splitlines()]
    assert {line["process"] for line in lines} == {0, 1}
    assert all({"rows", "rows_per_second", "read_seconds", "write_seconds"} <= line.keys() for line in lines)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, pool, clipdata):
    whole = (pool / "001.tar").read_bytes()
    (pool / "001.tar").write_bytes(whole[:4000])
    done = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out")
    assert refused(done, "001.tar: damaged or not a tar", "--on-bad skip")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"_plan.json", "_run.jsonl", "_receipts", "keys", "uids", "000.tar"}
    first = (tmp_path / "out/000.tar").stat().st_mtime_ns
    done = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out", "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/000.tar").stat().st_mtime_ns == first
    content = json.loads((tmp_path / "out/_manifest.json").read_text())
    assert content["per_tar"]["001"] == {}
    assert len(content["skipped_tars"]) == 1
    assert "001.tar: damaged" in content["skipped_tars"][0]
    told = done.stdout.strip().splitlines()[-1]
    assert told.startswith("Skipped 1 tar, listed in _manifest.json; the first: ")
    assert "001.tar: damaged" in told
    (pool / "001.tar").write_bytes(whole)
    done = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out")
    assert done.returncode == 0
    assert "skipped" not in done.stdout
    assert (tmp_path / "out/001.tar").exists()
    assert (tmp_path / "out/000.tar").stat().st_mtime_ns == first


@pytest.mark.parametrize("cut", [100, 512, 1000, 1536, 4096, -10240, -9000])
def test_a_truncated_tar_is_never_half_read(tmp_path, cut):
    tars.write_tar(f"{tmp_path}/whole.tar", samples(0, 10))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:cut])
    subset = write_subset(tmp_path / "s.npy", [uid_number(0)])
    options = config.Reshard(sources=(f"{tmp_path}/cut.tar",), subset=subset, out=f"{tmp_path}/out")
    with pytest.raises(InputError, match=r"cut\.tar: damaged"):
        reshard.run(options)
    assert not list((tmp_path / "out").glob("**/*.tar*"))


BAD_JSON = [
    (b'{"uid": ""}', "its uid is '', expected text or an integer"),
    (b'{"uid": [17]}', "its uid is [17], expected text or an integer"),
    (b'{"uid": true}', "its uid is True, expected text or an integer"),
    (json.dumps({"uid": "\ud800" + "0" * 31}).encode(), "holds half of a surrogate pair"),
    (b'{"uid": ', "its .json is not JSON"),
    (b"[]", "its .json holds a list"),
]


@pytest.mark.parametrize(("data", "words"), BAD_JSON)
def test_a_wrong_uid_names_tar_key_and_value(tmp_path, data, words):
    with_bad = [*samples(0, 2), ("bad.jpg", b"image"), ("bad.json", data), *samples(2, 2)]
    tars.write_tar(f"{tmp_path}/0.tar", with_bad)
    subset = write_subset(tmp_path / "s.npy", [uid_number(index) for index in range(4)])
    options = {"sources": (f"{tmp_path}/0.tar",), "subset": subset, "out": f"{tmp_path}/out"}
    with pytest.raises(InputError) as error:
        reshard.run(config.Reshard(**options))
    for word in ("0.tar: sample 'bad': ", words, "--on-bad skip"):
        assert word in str(error.value)
    found = reshard.run(config.Reshard(**options, on_bad="skip"))
    assert (found.kept, found.samples) == (4, 5)
    assert [(bad["key"], words in bad["reason"]) for bad in found.skipped_samples] == [("bad", True)]


def test_wrong_inputs_and_outputs(tmp_path, pool, clipdata):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    write_subset(tmp_path / "none.npy", [])
    write_subset(tmp_path / "other.npy", [uid_number(1)])
    np.save(tmp_path / "floats.npy", np.zeros(3))
    tars.write_tar(f"{tmp_path}/hex/0.tar", [("k.json", b'{"uid": 0.5}')])
    tail = ("--subset", "s.npy", "--out", "out")
    assert refused(clipdata("reshard", "missing", *tail), "missing: no such file or folder")
    assert refused(clipdata("reshard", "empty", *tail), "empty: the folder holds neither .tar files nor images")
    assert refused(clipdata("reshard", "s.npy", *tail), "s.npy: is a .npy array, not a tar file")
    assert refused(
        clipdata("reshard", "hex", "--subset", "s.npy", "--out", "out2"), "its uid is 0.5, expected text or an integer"
    )
    assert refused(clipdata("reshard", "pool", "--subset", "no.npy", "--out", "out3"), "no.npy: no such file")
    assert refused(clipdata("reshard", "pool", "--subset", "floats.npy", "--out", "out3"), "dtype u8,u8")
    assert refused(clipdata("reshard", "pool", "--subset", "none.npy", "--out", "out3"), "the subset is empty")
    assert refused(clipdata("reshard", "pool", "--subset", "s.npy", "--out", "full"), "full: is not empty")
    assert clipdata("reshard", "pool", "--subset", "s.npy", "--out", "good").returncode == 0
    done = clipdata("reshard", "pool", "--subset", "other.npy", "--out", "good")
    assert refused(done, "good: already holds the results of another run", "(--subset was")
    write_subset(tmp_path / "s.npy", [uid_number(index) for index in (1, 4, 7, 10, 13)])  # of the same size
    assert refused(clipdata("reshard", "pool", "--subset", "s.npy", "--out", "good"), "s.npy].digest was")
    assert members(tmp_path / "good/000.tar") == kept(pool / "000.tar", (0, 3, 6, 9))


def test_resharding_imports_no_jax(tmp_path, pool):
    arguments = ["reshard", "pool", "--subset", "s.npy", "--out", "out"]
    code = (
        f"import sys\nfrom clipdata_jax import cli\nassert cli.main({arguments!r}) == 0\n"
        "assert not {'jax', 'flax', 'tensorflow', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == 0, done.stderr
