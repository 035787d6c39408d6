"""`clipdata reshard` on subsets with repeats, into tars of another size, counting only; and who reads its tars."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re

import numpy as np
import pytest
import tqdm
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset import tariterators

from clipdata_jax import config, storage
from clipdata_jax.commands import reshard, reshard_units
from clipdata_jax.errors import InputError
from clipdata_jax.formats import sample_uids, tars, uids
from clipdata_jax.formats.sources.source import TarSource
from clipdata_jax.runtime import threads


def uid_number(index: int) -> str:
    return f"{index * 7919:032x}"


def samples(numbers, keys=None):
    for index, key in zip(numbers, keys or numbers, strict=True):
        yield f"{key:05d}.jpg", b"%d" % index * 400
        yield f"{key:05d}.txt", f"caption {index}".encode()
        yield f"{key:05d}.json", json.dumps({"uid": uid_number(index)}).encode()


def write_subset(path, numbers) -> str:
    np.save(path, uids.from_hex([uid_number(index) for index in numbers]))
    return str(path)


@pytest.fixture
def pool(tmp_path):
    """Seven tars of 10 samples; the subset is every second one."""
    for number in range(7):
        tars.write_tar(f"{tmp_path}/pool/{number:03d}.tar", samples(range(10 * number, 10 * number + 10)))
    write_subset(tmp_path / "s.npy", range(0, 70, 2))
    return tmp_path / "pool"


def read_by_webdataset(path) -> list[dict]:
    """As its WebDataset and open_clip's loader read a tar."""
    with open(path, "rb") as stream:
        members = tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        return list(tariterators.group_by_keys(members))


def numbers_in(path) -> list[int]:
    return [int(json.loads(sample["json"])["uid"], 16) // 7919 for sample in read_by_webdataset(path)]


REPACK = ("reshard", "pool", "--subset", "s.npy", "--samples-per-tar", 4, "--tars-per-unit", 3)


def test_tars_of_another_size_keep_the_order(tmp_path, pool, clipdata):
    done = clipdata(*REPACK, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept 35 of 70 samples in 7 tars; 10 tars written: out\n")
    written = sorted((tmp_path / "out").glob("*.tar"))
    held = {path.name: numbers_in(path) for path in written}
    assert list(held)[:4] == [f"00000_0000{i}.tar" for i in range(4)]
    assert [len(one) for one in held.values()] == [4, 4, 4, 3, 4, 4, 4, 3, 4, 1]
    assert [number for one in held.values() for number in one] == list(range(0, 70, 2))
    assert json.loads((tmp_path / "out/sizes.json").read_bytes()) == {name: len(one) for name, one in held.items()}
    for path in written:
        uid = np.load(tmp_path / f"out/uids/{path.stem}.npy")
        assert uids.to_hex(uid) == list(map(uid_number, held[path.name]))
    content = json.loads((tmp_path / "out/_manifest.json").read_bytes())
    assert content["per_tar"]["003"] == {"samples": 10, "kept": 5}
    assert content["kept"] == 35


def test_a_repacking_goes_on_where_it_was_and_workers_share_it(tmp_path, pool, clipdata):
    assert clipdata(*REPACK, "--out", "alone").returncode == 0
    whole = (pool / "004.tar").read_bytes()
    (pool / "004.tar").write_bytes(whole[:3000])
    assert "004.tar: damaged" in clipdata(*REPACK, "--out", "out", "--worker", "1/2").stderr
    assert clipdata(*REPACK, "--out", "out", "--worker", "0/2").returncode == 0
    first = (tmp_path / "out/00000_00000.tar").stat().st_mtime_ns
    (pool / "004.tar").write_bytes(whole)
    assert clipdata(*REPACK, "--out", "out", "--worker", "1/2").returncode == 0
    assert (tmp_path / "out/00000_00000.tar").stat().st_mtime_ns == first
    for path in (tmp_path / "alone").glob("**/*.[tnm]*"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "alone")).read_bytes() == path.read_bytes()


def test_several_processes_write_the_same_bytes(tmp_path, pool, clipdata):
    for number in (3, 5):
        (pool / f"{number:03d}.tar").write_bytes(b"no tar")
    for out, processes in (("one", 1), ("two", 2)):
        arguments = (*REPACK[:4], "--on-bad", "skip", "--processes", processes, "--out", out)
        done = clipdata(*arguments)
        assert done.returncode == 0, done.stderr
        assert "Skipped 2 tars" in done.stdout, done.stderr
    written = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len([path for path in written if path.suffix == ".tar"]) == 5
    for path in written:
        if path.name != "_run.jsonl":
            assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
    done = clipdata(*REPACK[:4], "--processes", 2, "--out", "stopped")
    assert done.returncode == 2
    assert re.search(r"00[35]\.tar: is a text file, not a tar file", done.stderr)  # whichever is reached first


def test_the_other_processes_take_what_this_one_leaves(tmp_path, pool, clipdata, monkeypatch):
    assert clipdata(*REPACK[:4], "--out", "one").returncode == 0
    monkeypatch.chdir(tmp_path)
    options = config.Reshard(sources=("pool",), subset="s.npy", out="two", processes=2)
    monkeypatch.setattr(reshard, "_unclaimed", lambda *_: iter(()))
    told = []
    monkeypatch.setattr(tqdm.tqdm, "update", lambda _, n: told.append(n))
    assert reshard.run(options).kept == 35
    assert sum(told) == 7
    for path in (tmp_path / "one").glob("**/*.[tn][ap][ry]"):
        assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()

    (pool / "003.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"003\.tar: is a text file, not a tar file"):
        reshard.run(dataclasses.replace(options, out="three"))

    def kill(*_):
        for child in multiprocessing.active_children():
            child.kill()
        return iter(())

    monkeypatch.setattr(reshard, "_unclaimed", kill)
    with pytest.raises(InputError, match="a process that wrote tars was killed"):
        reshard.run(dataclasses.replace(options, out="four"))


def test_a_process_is_begun_for_some_tars_at_least(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 8)

    def found(tars, units, processes=None, pool="pool", out="out"):
        options = config.Reshard(sources=(pool,), subset="s.npy", out=out, processes=processes)
        paths = [f"{pool}/{i}.tar" for i in range(tars)]
        sources = {path: TarSource(path) for path in paths}
        groups = [reshard_units.ReshardUnit(str(i), dict(list(sources.items())[i::units])) for i in range(units)]
        return reshard.process_count(groups, options)

    assert [found(n, n) for n in (0, 1, 7, 8, 31, 400)] == [1, 1, 1, 2, 7, 8]
    assert [found(64, units) for units in (1, 2, 3, 9)] == [1, 2, 3, 8]
    assert [found(3, 3, asked) for asked in (1, 2, 5)] == [1, 2, 3]
    assert found(64, 64, out="memory://o") == found(64, 64, pool="memory://pool") == 1
    assert found(64, 64, 4, out="memory://o") == 4


def test_a_tar_that_is_skipped_leaves_its_unit_the_others(tmp_path, pool, clipdata):
    (pool / "001.tar").write_bytes(b"x" * 700)
    done = clipdata(*REPACK, "--out", "out", "--on-bad", "skip")
    assert numbers_in(tmp_path / "out/00000_00001.tar") == [8, 20, 22, 24]
    found, skipped = done.stdout.splitlines()[-2:]
    assert found.startswith("found 30 of 35 selected uids (85.71 %); 5 are in no tar, e.g. ")
    assert done.returncode == 0
    assert skipped.startswith("Skipped 1 tar, listed in _manifest.json; the first: ")


def test_uids_that_a_subset_repeats_are_written_as_often(tmp_path, pool, clipdata):
    write_subset(tmp_path / "m.npy", [5, 3, 5, 11, 5, 3, 99])
    done = clipdata("reshard", "pool", "--subset", "m.npy", "--out", "out")
    assert done.stdout.splitlines() == [
        "kept 6 of 70 samples in 7 tars; 2 tars written: out",
        "3 of these are copies: the subset holds their uids more than once",
        f"found 3 of 4 selected uids (75.00 %); 1 is in no tar, e.g. {uid_number(99)}",
    ]
    got = read_by_webdataset(tmp_path / "out/000.tar")
    assert [sample["__key__"] for sample in got] == ["00003", "00003-1", "00005", "00005-1", "00005-2"]
    assert numbers_in(tmp_path / "out/000.tar") == [3, 3, 5, 5, 5]
    assert got[1]["txt"] == b"caption 3"
    assert got[4]["jpg"] == b"5" * 400


def test_keys_of_several_tars_stay_apart(tmp_path):
    for number in range(2):
        tars.write_tar(f"{tmp_path}/p/{number}.tar", samples(range(10 * number, 10 * number + 3), range(3)))
    subset = write_subset(tmp_path / "s.npy", [0, 2, 10, 12])
    options = config.Reshard(sources=(f"{tmp_path}/p",), subset=subset, out=f"{tmp_path}/out", samples_per_tar=9)
    reshard.run(options)
    got = read_by_webdataset(tmp_path / "out/00000_00000.tar")
    assert [sample["__key__"] for sample in got] == ["00000", "00002", "00000-1", "00002-1"]
    assert numbers_in(tmp_path / "out/00000_00000.tar") == [0, 2, 10, 12]


def test_a_dry_run_counts_and_writes_nothing(tmp_path, pool, clipdata):
    before = sorted(tmp_path.rglob("*"))
    done = clipdata(*REPACK, "--out", "out", "--dry-run")
    assert done.returncode == 0
    assert sorted(tmp_path.rglob("*")) == before
    wet = clipdata(*REPACK, "--out", "out").stdout
    assert done.stdout == wet.replace("10 tars written: out", "nothing written (--dry-run)")
    options = {"sources": ("pool",), "subset": "s.npy", "out": "out", "samples_per_tar": 4, "tars_per_unit": 3}
    assert reshard.run(config.Reshard(**options, dry_run=True)) == reshard.run(config.Reshard(**options))


def test_object_stores(tmp_path, pool):
    for path in sorted(pool.iterdir()):
        storage.write_bytes(f"memory://reshard/pool/{path.name}", path.read_bytes())
    storage.write_bytes("memory://reshard/s.npy", (tmp_path / "s.npy").read_bytes())
    for subset, folder, out in (
        ("s.npy", "pool", "out"),
        ("memory://reshard/s.npy", "memory://reshard/pool", "memory://reshard/out"),
    ):
        base = "" if "://" in folder else f"{tmp_path}/"
        reshard.run(config.Reshard(sources=(base + folder,), subset=base + subset, out=base + out))
    for path in sorted((tmp_path / "out").rglob("*.tar")):
        assert storage.read_bytes(f"memory://reshard/out/{path.name}") == path.read_bytes()


def test_digests_of_the_tars_are_taken_when_asked_for(tmp_path, pool, clipdata):
    for out, flags in (("without", ()), ("with", ("--digests",))):
        assert clipdata("reshard", "pool", "--subset", "s.npy", "--out", out, *flags).returncode == 0
    without, held = (json.loads((tmp_path / out / "_manifest.json").read_bytes()) for out in ("without", "with"))
    assert set(held["outputs"]["000.tar"]) == set(held["pool"][0]) - {"name", "relative"} == {"bytes", "digest"}
    assert held["outputs"]["000.tar"]["digest"] == storage.digest(str(tmp_path / "with/000.tar"))
    assert set(without["outputs"]["000.tar"]) == {"bytes"}
    assert set(without["pool"][0]) == {"name", "relative", "bytes"}
    assert "digest" in without["outputs"]["uids/000.npy"]


keys = st.sampled_from(["uid", 'x"uid', "a", "{", "\\", 'uid":"'])
json_values = st.recursive(
    st.text('{}"\\uid:, ', max_size=9) | st.just("0a" * 16) | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, json_values, max_size=4), st.booleans())
def test_a_uid_that_stands_plainly_is_the_one_that_parsing_gives(fields, spaced):
    text = json.dumps(fields, indent=2 if spaced else None).encode()
    found = sample_uids.plain_uid(text)
    assert found is None or found == fields["uid"]
    plain = {"key": "0001", "uid": "0A" * 16, **{key: value for key, value in fields.items() if key == "a"}}
    assert sample_uids.plain_uid(json.dumps(plain).encode()) in ("0a" * 16, None)
    assert sample_uids.plain_uid(b'{"key": "0001", "uid": "' + b"0A" * 16 + b'"}') == "0a" * 16


@pytest.mark.parametrize("name", ["samples_per_tar", "tars_per_unit"])
def test_wrong_numbers_are_refused(clipdata, name):
    flag = f"--{name.replace('_', '-')}"
    done = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out", flag, 0)
    assert done.returncode == 2
    assert f"{flag} is 0, expected a whole number of at least 1" in done.stderr


def test_notes_of_a_file_manager_are_no_tars(tmp_path, pool):
    (pool / "._000.tar").write_bytes(b"note")
    assert sorted(tars.find_tars([str(pool)])) == sorted(map(str, pool.glob("[0-9]*.tar")))
    assert len(tars.find_tars([f"{pool}/*.tar"])) == 7
    assert tars.find_tars([f"{pool}/._000.tar"]) == [f"{pool}/._000.tar"]
