"""The commands on a pool in an object store, outputs there too: the bytes of a local run, with and without faults."""

from __future__ import annotations

import errno
import json
import os
import re

import fsspec
import pytest
from support import stores
from support.checkpoints import make_checkpoint
from support.images import write_pairs
from support.pools import make_pool

from clipdata_jax import storage
from clipdata_jax.runs import telemetry
from clipdata_jax.runs.output import Output
from clipdata_jax.storage import local, retries

KINDS = ("500", "503", "reset", "cut", "short", "slow")
OUTPUTS = ("metadata", "scores", "selected", "subset.npy", "union.npy", "union.parquet")
POOL = "s3://bucket/pool"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with tars and a checkpoint, its copy in a store, and what breaks requests to that."""
    local = tmp_path_factory.mktemp("world")
    (local / "pool").mkdir()
    for tar in range(2):
        write_pairs(local / "pool" / f"{tar:05}.tar", range(8 * tar, 8 * tar + 8))
    make_pool(local / "metadata", sizes=(8, 8), dim=16)
    with pytest.MonkeyPatch.context() as patch:
        faults = stores.Faults(stores.s3_app())
        with stores.serving(faults) as address:
            stores.use_s3(patch, address)
            storage.Folder("s3://bucket").fs.mkdir("bucket")
            for path in [*local.glob("pool/*"), *local.glob("metadata/*")]:
                storage.write_bytes(f"s3://bucket/{path.relative_to(local)}", path.read_bytes())
            yield local, make_checkpoint(local / "checkpoint"), faults


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch, world):
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    world[2].reset()


@pytest.fixture(scope="module")
def expected(world):
    """What the commands make of the local pool."""
    from clipdata_jax.cli import main

    local, checkpoint, _ = world
    for arguments in commands(f"{local}/pool", f"{local}/out", checkpoint):
        assert main(list(map(str, arguments))) == 0
    return contents(f"{local}/out")


def commands(pool, out, checkpoint):
    yield "embed", pool, "--model", f"tiny={checkpoint}", "--batch-size", 8, "--out", f"{out}/metadata"
    yield "score", f"{out}/metadata", "--batch-size", 4, "--group", 2, "--out", f"{out}/scores"
    yield "select", f"{out}/scores", "--rule", "top(neg_clip_loss, 0.5)", "--out", f"{out}/subset.npy"
    for form in ("npy", "parquet"):
        yield "uids", "union", f"{out}/subset.npy", "--out", f"{out}/union.{form}"
    yield "reshard", pool, "--subset", f"{out}/subset.npy", "--out", f"{out}/selected"
    yield "verify", f"{out}/metadata", f"{out}/scores", f"{out}/selected"


def contents(out):
    """The results' bytes; not what names paths and times."""
    return {
        name: storage.read_bytes(f"{out}/{name}")
        for name in storage.Folder(out).sizes()
        if not re.search(r"\.jsonl?$", name) and name.startswith(OUTPUTS)
    }


@pytest.mark.parametrize("kinds", [(), KINDS], ids=["whole", "broken"])
def test_the_commands_make_the_same_bytes_in_a_store(world, expected, clipdata, kinds):
    _, checkpoint, faults = world
    faults.kinds = kinds
    out = f"s3://bucket/{'broken' if kinds else 'whole'}"
    for arguments in commands(POOL, out, checkpoint):
        done = clipdata(*arguments)
        assert done.returncode == 0, done.stderr
    assert bool(faults.broken.total()) == bool(kinds)
    if not kinds:  # by embed, verify, and reshard, in which the subset may have nothing of it
        assert 2 <= faults.read["/bucket/pool/00000.tar"] <= 3
    faults.reset()
    assert contents(out) == expected
    assert len(expected) > 10
    for folder in ("metadata", "scores", "selected"):  # a line a unit, as on a disk
        lines = storage.read_bytes(f"{out}/{folder}/_run.jsonl").splitlines()
        units = [json.loads(line)["unit"] for line in lines]
        assert units == json.loads(storage.read_bytes(f"{out}/{folder}/_plan.json"))["units"]
    assert len(telemetry.read(f"{out}/scores/_run.jsonl")) == len(units)


@pytest.mark.parametrize(
    ("broken", "flags"),
    [
        ("GET /bucket/metadata/00000001.npz", ("--on-bad", "skip")),
        ("PUT .*/00000001.parquet", ()),
        ("PUT .*_receipts/unit-00001", ()),
        ("GET /bucket$", ("--on-bad", "skip")),
    ],
)
def test_what_stays_broken_stops_a_command_which_goes_on_later(world, clipdata, broken, flags):
    _, _, faults = world
    out = f"s3://bucket/stopped-{len(broken)}"
    score = ("score", "s3://bucket/metadata", "--batch-size", 4, "--group", 2, *flags, "--out", out)
    faults.always = re.compile(broken)
    done = clipdata(*score)
    assert done.returncode == 2
    assert re.search(r"clipdata score: s3://bucket/\S+: the store failed 6 times, last with: HTTP 503", done.stderr)
    faults.reset()
    assert not storage.exists(f"{out}/_manifest.json")
    assert clipdata(*score).returncode == 0
    assert clipdata("verify", out).returncode == 0


def test_a_pool_is_planned_and_resumed_in_few_requests(world, tmp_path, clipdata):
    _, _, faults = world
    make_pool(tmp_path / "many", sizes=[8] * 12, dim=16)
    for path in (tmp_path / "many").iterdir():
        storage.write_bytes(f"s3://bucket/many/{path.name}", path.read_bytes())
    score = ("score", "s3://bucket/many", "--batch-size", 4, "--group", 2, "--out", "s3://bucket/few")
    faults.reset()
    assert clipdata(*score).returncode == 0
    assert faults.seen.total() < 7 * 12 + 66
    faults.reset()
    assert clipdata(*score).returncode == 0
    assert faults.seen.total() < 4 * 12 + 60
    (tmp_path / "few").mkdir()
    for path in storage.Folder("s3://bucket/few").files():
        (tmp_path / "few" / os.path.basename(path)).write_bytes(storage.read_bytes(path))
    for folder in ("few", "s3://bucket/few"):  # the second in threads that read ahead
        out = f"{folder.rpartition('/')[2]}-{len(folder)}.npy"
        rule = "top(neg_clip_loss, 0.5) & top(clip_score, 0.7) >> top(rank(clip_score), 0.2)"
        faults.reset()
        assert clipdata("select", folder, "--rule", rule, "--out", out).returncode == 0
    # Footer, uids, two columns and the errors of one, digest; for the stability of so small a pool all scores again.
    assert faults.seen.total() <= 9 * 12 + 20
    assert (tmp_path / "few-3.npy").read_bytes() == (tmp_path / "few-15.npy").read_bytes()


def test_a_store_that_is_not_there_is_told(clipdata, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()
    done = clipdata("select", "s3://bucket/scores", "--rule", "top(x, 1)", "--out", "s3://bucket/s.npy")
    kind.clear_instance_cache()
    assert done.returncode == 2
    assert "s3://bucket/scores" in done.stderr
    assert "failed 6 times" in done.stderr
    assert os.linesep not in done.stderr.strip()


def test_a_lost_mount_or_no_right_to_write_is_told(tmp_path, clipdata, monkeypatch):
    make_pool(tmp_path / "pool", sizes=(8, 8), dim=16)
    score = ("score", "pool", "--batch-size", 4, "--group", 2, "--out", "out")
    complete = Output.complete

    def unmounted(output, unit, *arguments, **named):
        if unit == "unit-00001":
            (tmp_path / "out").rename(tmp_path / "elsewhere")
            (tmp_path / "out").mkdir()
        complete(output, unit, *arguments, **named)

    monkeypatch.setattr(Output, "complete", unmounted)
    done = clipdata(*score)
    assert done.returncode == 2
    assert "out: its _plan.json is gone; was the disk unmounted?" in done.stderr
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr(Output, "complete", complete)
    (tmp_path / "out").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "out")

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(local, "make_folder", refused)
    done = clipdata(*score)
    assert done.returncode == 2
    assert "can't be written (permission denied)" in done.stderr
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert clipdata(*score).returncode == 0
