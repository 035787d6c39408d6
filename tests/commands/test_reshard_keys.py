"""The keys that `clipdata reshard` writes: no two samples of an output share one, whatever the sources hold."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from webdataset import tariterators

from clipdata_jax import config
from clipdata_jax.commands import reshard
from clipdata_jax.formats import tars, uids
from clipdata_jax.runs.output import Output


def uid_of(number: int) -> str:
    return f"{number:032x}"


def write_pool(folder: Path, tars_of_keys: list[list[str]]) -> None:
    """Tars of samples with these keys, numbered through."""
    number = 0
    for i, keys in enumerate(tars_of_keys):
        members = []
        for key in keys:
            members += [
                (f"{key}.jpg", b"%d" % number * 300),
                (f"{key}.json", json.dumps({"uid": uid_of(number)}).encode()),
            ]
            number += 1
        tars.write_tar(f"{folder}/{i}.tar", members)


def read(folder: Path) -> dict[str, int]:
    """Key -> number, as webdataset reads all tars in one go; it raises at a key that follows itself."""
    with contextlib.ExitStack() as files:
        paths = sorted(folder.glob("*.tar"))
        urls = [{"url": path.name, "stream": files.enter_context(path.open("rb"))} for path in paths]
        found = list(tariterators.group_by_keys(tariterators.tar_file_expander(urls)))
    numbers = {sample["__key__"]: int(json.loads(sample["json"])["uid"], 16) for sample in found}
    assert len(numbers) == len(found)
    assert all(sample["jpg"] == b"%d" % numbers[sample["__key__"]] * 300 for sample in found)
    return numbers


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("_run.jsonl", "_plan.json", "_manifest.json")
    }


@pytest.fixture
def pool(tmp_path):
    """Four tars that repeat keys of each other, one as if it had been numbered; the subset repeats some uids."""
    write_pool(tmp_path / "pool", [["a", "b", "c"], ["b", "c", "d"], ["x", "b-1", "a"], ["e", "f"]])
    numbers = [0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 10]
    np.save(tmp_path / "s.npy", uids.from_hex(map(uid_of, numbers)))
    return numbers


def test_copies_that_the_end_of_a_tar_parts_are_numbered_on(tmp_path, clipdata):
    write_pool(tmp_path / "pool", [["k0", "k1", "k2"]])
    np.save(tmp_path / "s.npy", uids.from_hex(map(uid_of, [0, 1, 1, 1, 2])))
    done = clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out", "--samples-per-tar", 2)
    assert done.stdout.splitlines()[:2] == [
        "kept 5 of 3 samples in 1 tar; 3 tars written: out",
        "2 of these are copies: the subset holds their uids more than once",
    ]
    assert read(tmp_path / "out") == {"k0": 0, "k1": 1, "k1-1": 1, "k1-2": 1, "k2": 2}


@pytest.mark.parametrize(
    ("flags", "renamed"),
    [
        # "b" and "c" are in two tars, "b-1" is another's own key, and "c" and "e" have copies.
        ((), {"a-1": 8, "b-3": 3, "c-1": 2, "c-3": 4, "e-1": 9, "e-2": 9}),
        # The first two tars are one unit, whose second "b" becomes "b-1" before that is known to be another's key.
        (
            ("--samples-per-tar", 3, "--tars-per-unit", 2),
            {"a-1": 8, "b-1": 3, "b-1-1": 7, "c-1": 2, "c-2": 4, "e-1": 9, "e-2": 9},
        ),
    ],
)
def test_keys_that_several_tars_hold_are_numbered(tmp_path, pool, clipdata, flags, renamed):
    arguments = ("reshard", "pool", "--subset", "s.npy", *flags)
    done = clipdata(*arguments, "--out", "out", "--processes", 1)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "out")
    assert sorted(found.values()) == pool
    own = {"a": 0, "b": 1, "c": 2, "d": 5, "x": 6, "b-1": 7, "e": 9, "f": 10}
    assert found == own | renamed
    content = json.loads((tmp_path / "out/_manifest.json").read_bytes())
    assert content["renamed"] == len(renamed)
    assert f"{len(renamed)} samples have the key of another and are written as key-1, key-2 and so on" in done.stdout
    dry = clipdata(*arguments, "--out", "none", "--dry-run").stdout
    assert dry.splitlines()[1:] == done.stdout.splitlines()[1:]
    assert clipdata(*arguments, "--out", "two", "--processes", 2).returncode == 0
    assert clipdata(*arguments, "--out", "shared", "--worker", "1/2").returncode == 0
    assert clipdata(*arguments, "--out", "shared", "--worker", "0/2").returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "two") == contents(tmp_path / "shared")
    written = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert clipdata(*arguments, "--out", "out").stdout == "Already complete: out\n"
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.tar"))] == written


class KilledError(BaseException):
    """Nothing catches it, so that what a kill leaves is left."""


@pytest.mark.parametrize("place", ["before", "amid", "after"])
def test_a_kill_while_keys_are_numbered_changes_nothing(tmp_path, pool, clipdata, monkeypatch, place):
    options = config.Reshard(sources=("pool",), subset="s.npy", out="whole", processes=1)
    reshard.run(options)
    want = contents(tmp_path / "whole")
    complete = Output.complete

    def dies(output, unit, parts, facts, **named):
        """Ends at the first unit that is written again; `amid` its tar is there, and its receipt is not."""
        if "all_keys" not in facts:
            complete(output, unit, parts, facts, **named)
            return
        if place == "amid":
            (name,) = (name for name in parts if name.endswith(".tar"))
            output.folder.write(name, parts[name])
        if place == "after":
            complete(output, unit, parts, facts, **named)
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Output, "complete", dies)
        reshard.run(dataclasses.replace(options, out="killed"))
    assert not (tmp_path / "killed/_manifest.json").exists()
    assert contents(tmp_path / "killed") != want
    assert clipdata("reshard", "pool", "--subset", "s.npy", "--out", "killed").returncode == 0
    assert contents(tmp_path / "killed") == want


def test_keys_are_numbered_anew_when_a_tar_has_changed(tmp_path, pool, clipdata):
    arguments = ("reshard", "pool", "--subset", "s.npy", "--out", "out")
    assert clipdata(*arguments).returncode == 0
    write_pool(tmp_path / "other", [["a", "b", "c"], ["g", "h", "d"]])
    os.replace(tmp_path / "other/1.tar", tmp_path / "pool/1.tar")
    assert clipdata(*arguments).returncode == 0
    found = read(tmp_path / "out")
    assert {"b", "c", "c-1", "g", "h", "b-1"} <= set(found)
    assert "b-3" not in found
    assert clipdata("reshard", "pool", "--subset", "s.npy", "--out", "anew").returncode == 0
    assert contents(tmp_path / "anew") == contents(tmp_path / "out")


def test_one_pass_is_enough_where_no_key_repeats(tmp_path, clipdata, monkeypatch):
    write_pool(tmp_path / "pool", [["a", "b"], ["c"]])
    np.save(tmp_path / "s.npy", uids.from_hex(map(uid_of, range(3))))
    written = []
    complete = Output.complete
    monkeypatch.setattr(Output, "complete", lambda *args, **named: (written.append(args[1]), complete(*args, **named)))
    assert clipdata("reshard", "pool", "--subset", "s.npy", "--out", "out").returncode == 0
    assert sorted(written) == ["0", "1"]
    assert (tmp_path / "out/0.tar").read_bytes() == (tmp_path / "pool/0.tar").read_bytes()
