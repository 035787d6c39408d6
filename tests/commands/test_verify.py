"""The real `clipdata verify` on what the real commands wrote: good, unfinished, and damaged in every way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint
from support.images import write_pairs
from support.pools import make_pool
from test_architecture import run_python

from clipdata_jax import storage
from clipdata_jax.cli import main
from clipdata_jax.formats import tars, uids
from clipdata_jax.runtime.console import printable
from clipdata_jax.storage import location

PART = "scores/00000001.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What embed, score, select, uids and reshard write; moved since."""
    folder = tmp_path_factory.mktemp("made") / "there"
    folder.mkdir()
    before = os.getcwd()
    os.chdir(folder)
    try:
        make_pool(folder / "pool", [40, 33, 20], dim=8)
        for name, start in (("0", 0), ("1", 4)):
            write_pairs(folder / "tars" / f"{name}.tar", range(start, start + 4))
        model = make_checkpoint(folder / "model")
        embed = ["embed", "tars", "--model", str(model), "--batch-size", "4"]
        rule = ["--rule", "top(clip_score, 0.5)"]
        tars_uids = [uids.uid_of("0.tar", f"{seed:05}") for seed in range(3)]
        uids.write_subset("first.npy", uids.from_hex(sorted(tars_uids)))
        for command in (
            ["score", "pool", "--out", "scores", "--scores", "clip_score", "--batch-size", "16", "--group", "2"],
            ["select", "scores", *rule, "--out", "subset.npy"],
            ["uids", "union", "subset.npy", "subset.npy", "--multiset", "--out", "twice.npy"],
            [*embed, "--out", "metadata"],
            [*embed, "--images-only", "--out", "target.npz"],
            ["reshard", "tars", "--subset", "first.npy", "--out", "selected"],
        ):
            assert main(command) == 0
    finally:
        os.chdir(before)
    return folder.rename(folder.parent / "here")


@pytest.fixture
def work(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip(path: Path, at: int = 50) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_what_is_whole_is_called_good(work, clipdata):
    outputs = ("scores", "subset.npy", "twice.npy.manifest.json", "metadata", "target.npz", "selected/")
    done = clipdata("verify", *outputs)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) == len(outputs)
    assert all(line.endswith("all good") for line in lines)
    assert lines[0].startswith("scores: score, 2 of 2 units done, 3 parts compared by digest, of its inputs 6 files")
    assert "2 parts compared by digest and 1 part by size alone" in lines[-1]
    assert "100%" in done.stderr


def remove_receipt(work):
    (work / "scores/_receipts/unit-00000.json").unlink()


def name_another(work):
    def add(receipt):
        receipt["files"]["00000009.parquet"] = {"bytes": 1, "digest": "sha256:0"}

    edit(work / "scores/_receipts/unit-00000.json", add)


def escape(work):
    (work / "secret").write_text("x")

    def add(receipt):
        receipt["files"]["../secret"] = {"bytes": 1, "digest": "sha256:0"}
        receipt["files"][str(work / "secret")] = {"bytes": 1, "digest": "sha256:0"}

    edit(work / "scores/_receipts/unit-00000.json", add)


def link_out(work):
    (work / PART).rename(work / "elsewhere")
    (work / PART).symlink_to(work / "elsewhere")


def pipe(work):
    (work / "pool/00000000.npz").unlink()
    os.mkfifo(work / "pool/00000000.npz")


DAMAGE = {
    "a part is gone": (lambda w: (w / PART).unlink(), f"missing: {PART}: a record says it was written"),
    "a byte of a part": (lambda w: flip(w / PART), f"damaged: {PART}: its digest is not"),
    "a part cut short": (lambda w: (w / PART).write_bytes(b"PAR1"), f"damaged: {PART}: 4 bytes, recorded are"),
    "a receipt is gone": (remove_receipt, "missing: scores/_receipts/unit-00000.json: the run is finished"),
    "a receipt no JSON": (lambda w: flip(w / "scores/_receipts/unit-00000.json", 0), "unit-00000.json: not JSON"),
    "a receipt of another": (
        lambda w: edit(w / "scores/_receipts/unit-00000.json", lambda r: r.update(unit="unit-00001")),
        "is the receipt of unit 'unit-00001'",
    ),
    "a part more in a receipt": (name_another, "_manifest.json: its entry of 00000009.parquet is not that"),
    "a way out": (escape, "names '../secret', which is outside; not opened"),
    "a link out": (link_out, f"refused: {PART}: is a link that leads out of the folder"),
    "a pipe": (pipe, "refused: pool/00000000.npz: is not a regular file"),
    "a stranger's file": (lambda w: (w / "scores/\x1b[2J").touch(), "foreign: scores/\\x1b[2J: no receipt knows it"),
    "what a kill left": (lambda w: (w / "scores/.a.parquet.0.tmp").touch(), "left by a process that was killed"),
    "the manifest's entry": (
        lambda w: edit(w / "scores/_manifest.json", lambda m: m["outputs"]["00000001.parquet"].update(bytes=1)),
        "damaged: scores/_manifest.json: its entry of 00000001.parquet is not that of the receipt",
    ),
    "the manifest's options": (
        lambda w: edit(w / "scores/_manifest.json", lambda m: m.update(options={})),
        "damaged: scores/_manifest.json: its 'options' is not that of _plan.json",
    ),
    "a byte of the pool": (lambda w: flip(w / "pool/00000002.npz"), "changed: pool/00000002.npz: its digest"),
    "a shard gone": (lambda w: (w / "pool/00000002.npz").unlink(), "missing: pool/00000002.npz: no such file"),
    "a shard more": (
        lambda w: shutil.copy(w / "pool/00000000.npz", w / "pool/9.npz"),
        "foreign: pool/9.npz: is in the pool, but was not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_a_folder_is_named(name, work, clipdata):
    damage, words = DAMAGE[name]
    damage(work)
    done = clipdata("verify", "scores")
    assert done.returncode == 2, done.stdout
    assert words in done.stdout, done.stdout
    assert "found; " in done.stderr
    assert done.stdout.splitlines()[-1].endswith(("problem", "problems"))


@pytest.mark.parametrize(
    ("output", "damage", "words"),
    [
        ("subset.npy", lambda w: flip(w / "subset.npy", 200), "damaged: subset.npy: its digest"),
        ("subset.npy", lambda w: (w / "subset.npy").unlink(), "missing: subset.npy: its manifest is there"),
        ("subset.npy", lambda w: flip(w / PART), f"changed: {PART}: its digest"),
        ("target.npz", lambda w: flip(w / "tars/0.tar", 600), "changed: tars/0.tar: its digest"),
        ("selected", lambda w: flip(w / "selected/uids/0.npy", 130), "damaged: selected/uids/0.npy: its digest"),
        ("selected", lambda w: (w / "selected/0.tar").write_bytes(b""), "selected/0.tar: 0 bytes, recorded"),
        ("selected", lambda w: tars.write_tar(f"{w}/selected/7.tar", []), "foreign: selected/7.tar"),
    ],
)  # fmt: skip
def test_damage_to_other_outputs_is_named(output, damage, words, work, clipdata):
    damage(work)
    done = clipdata("verify", output)
    assert done.returncode == 2, done.stdout
    assert words in done.stdout, done.stdout


@pytest.mark.parametrize(
    "name", ["memory://pool/a", "memory://subset.npy/../a", "simplecache::memory://pool/a", "file:///etc/hostname"]
)
def test_no_store_is_asked_because_a_record_names_it(name, work, clipdata, monkeypatch):
    entry = {"name": name, "bytes": 1}
    edit(work / "subset.npy.manifest.json", lambda content: content["inputs"].append(entry))
    with monkeypatch.context() as patch:
        patch.setattr(location, "_connect", None)
        done = clipdata("verify", "subset.npy")
        assert done.returncode == 2, done.stdout
        assert f"({name!r} for one); not asked" in done.stdout, done.stdout
        assert clipdata("verify", "subset.npy", "--pool", "no").returncode == 0


def test_a_store_that_the_user_names_is_asked(work, clipdata):
    entry = {"name": "memory://pool/a", "bytes": 1}
    edit(work / "subset.npy.manifest.json", lambda content: content["inputs"].append(entry))
    assert "--stores is 'pool', expected an address" in clipdata("verify", "subset.npy", "--stores", "pool").stderr
    command = ["verify", "subset.npy", "--stores", "memory://pool"]
    assert "missing: memory://pool/a" in clipdata(*command).stdout
    storage.write_bytes("memory://pool/a", b"1")
    done = clipdata(*command)
    assert done.returncode == 0, done.stdout
    edit(work / "scores/_plan.json", lambda plan: plan["options"].update(pool="memory://other"))
    assert "refused: memory://other/" in clipdata("verify", "scores").stdout
    for name in ("/proc/kmsg", "\ud800"):
        edit(work / "subset.npy.manifest.json", lambda content, name=name: content["inputs"].append({"name": name}))
        done = clipdata(*command)
        assert done.returncode == 2
        assert f"refused: {printable(name)}: is not a regular file; not opened" in done.stdout


def test_a_run_that_is_not_finished_is_good_as_far_as_it_went(work, clipdata):
    (work / "scores/_manifest.json").unlink()
    remove_receipt(work)
    (work / "scores/.a.parquet.0.tmp").touch()  # a living process may be writing it
    done = clipdata("verify", "scores", "--pool", "no")
    assert done.returncode == 0
    assert done.stdout == "scores: score, 1 of 2 units done: not finished, 2 parts compared by digest, all good\n"


def test_the_pool_need_not_be_read(work, clipdata, monkeypatch):
    flip(work / "pool/00000002.npz")
    digest = storage.digest
    monkeypatch.setattr(storage, "digest", lambda path: 1 / 0 if path.startswith("pool") else digest(path))
    done = clipdata("verify", "scores", "--pool", "size")
    assert done.returncode == 0
    assert "of its inputs 6 files by size alone" in done.stdout
    (work / "pool/00000002.npz").write_bytes(b"")
    assert clipdata("verify", "scores", "--pool", "size").returncode == 2
    assert clipdata("verify", "scores", "--pool", "no").returncode == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("pool", "pool: holds no _plan.json"),
        ("pool/00000000.npz", "no pool/00000000.npz.manifest.json beside it"),
    ],
)
def test_what_is_no_output_is_refused(path, words, work, clipdata):
    done = clipdata("verify", path)
    assert done.returncode == 2
    assert words in done.stderr


def test_verify_needs_no_jax(made):
    code = f"""
import os, sys
from clipdata_jax.cli import main
os.chdir({str(made)!r})
assert main(["verify", "scores", "metadata", "selected", "subset.npy"]) == 0
assert not {{"jax", "flax", "transformers"}} & set(sys.modules), "heavy imports"
"""
    assert run_python(code).count("all good") == 4


def test_inputs_are_found_from_any_folder_after_outputs_and_inputs_moved_together(work, clipdata, monkeypatch):
    monkeypatch.chdir("/")
    done = clipdata("verify", work / "scores", work / "subset.npy", work / "target.npz")
    assert done.returncode == 0, done.stdout
    first, *others = done.stdout.splitlines()
    assert "of its inputs 6 files compared by digest (6 by the path from the output), all good" in first
    assert all("by the path from the output" in line for line in others)
    told = json.loads((work / "scores/_manifest.json").read_bytes())["pool"][0]
    assert told["name"].endswith("/there/pool/00000000.npz")
    assert told["relative"] == "pool/00000000.npz"


def test_inputs_are_found_in_the_store_to_which_all_was_copied(work, clipdata):
    for path in sorted([*(work / "pool").rglob("*"), *(work / "scores").rglob("*")]):
        if path.is_file():
            storage.write_bytes(f"memory://copied/{path.relative_to(work)}", path.read_bytes())
    done = clipdata("verify", "memory://copied/scores")
    assert done.returncode == 0, done.stdout
    assert "of its inputs 6 files compared by digest (6 by the path from the output)" in done.stdout
    storage.remove("memory://copied/pool/00000002.npz")
    assert (
        "missing: memory://copied/pool/00000002.npz: no such file, nor /"
        in clipdata("verify", "memory://copied/scores").stdout
    )


def test_inputs_that_stayed_or_were_moved_elsewhere_are_found(tmp_path, clipdata):
    make_pool(tmp_path / "pool", [20], dim=8)
    score = ("score", "pool", "--out", "scores", "--scores", "clip_score", "--batch-size", "8")
    assert clipdata(*score).returncode == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "scores").rename(tmp_path / "elsewhere/scores")
    done = clipdata("verify", "elsewhere/scores")
    assert done.returncode == 0, done.stdout
    assert "of its inputs 2 files compared by digest (2 by the absolute path), all good" in done.stdout
    (tmp_path / "pool").rename(tmp_path / "renamed")
    done = clipdata("verify", "elsewhere/scores")
    assert "missing: elsewhere/pool/00000000.npz: no such file, nor pool/00000000.npz\n" in done.stdout
    assert done.stderr.endswith("; where inputs were moved, say so: --moved FROM=TO\n")
    done = clipdata("verify", "elsewhere/scores", "--moved", f"{tmp_path}/pool=renamed/")
    assert done.returncode == 0, done.stdout
    assert "--moved is 'pool', expected FROM=TO" in clipdata("verify", "elsewhere/scores", "--moved", "pool").stderr


def test_the_same_inputs_spelled_otherwise_are_the_same_run_and_so_are_moved_ones(work, clipdata):
    score = ("--out", "scores", "--scores", "clip_score", "--batch-size", "16", "--group", "2")
    for pool in ("pool/", work / "pool", "./scores/../pool"):
        assert clipdata("score", pool, *score).stdout == "Already complete: scores\n"
    select = ("select", work / "scores", "--rule", "top(clip_score, 0.5)", "--out", work / "subset.npy")
    assert clipdata(*select).returncode == 0
    embed = ("embed", work / "tars", "--model", work / "model", "--batch-size", "4", "--decoders", "1")
    assert clipdata(*embed, "--out", "metadata").stdout == "Already complete: metadata\n"
    shutil.copytree(work / "pool", work / "other")
    assert '/there/pool", now "' in clipdata("score", "other", *score).stderr
