"""Pools of several folders whose tars share names: every command finds the same uids, however they are given."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.checkpoints import make_checkpoint
from support.images import write_pairs

from clipdata_jax.formats import uids

SHARED_LINE = "2 sources share a file name, and are named with their folders: cc12m/00000.tar, cc3m/00000.tar"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pool(tmp_path):
    """Two folders, as two downloads leave them: the same names, the same keys, no uids; and one tar of its own name."""
    write_pairs(tmp_path / "pool/cc3m/00000.tar", range(4))
    write_pairs(tmp_path / "pool/cc12m/00000.tar", range(4))
    write_pairs(tmp_path / "pool/cc12m/00001.tar", range(1))
    return tmp_path / "pool"


def rows_of(folder):
    found = [pq.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))]
    return {(row["tar"], row["key"]): row["uid"] for part in found for row in part}


def test_names_that_repeat_are_told_apart_by_folders(tmp_path, pool, checkpoint, clipdata):
    model = ("--model", f"m={checkpoint}")
    done = clipdata("embed", "pool/cc3m", "pool/cc12m", *model, "--out", "metadata")
    assert done.returncode == 0, done.stderr
    assert SHARED_LINE in done.stdout
    assert json.loads((tmp_path / "metadata/_manifest.json").read_bytes())["repeated_names"]["sources"] == 2
    rows = rows_of(tmp_path / "metadata")
    assert rows == {
        **{
            (f"{part}/00000.tar", f"{i:05}"): uids.uid_of(f"{part}/00000.tar", f"{i:05}")
            for part in ("cc3m", "cc12m")
            for i in range(4)
        },
        ("00001.tar", "00000"): uids.uid_of("00001.tar", "00000"),
    }
    assert len(set(rows.values())) == 9

    done = clipdata("score", "metadata", "--scores", "clip_score", "--out", "scores")
    assert done.returncode == 0, done.stderr
    assert clipdata("select", "scores", "--rule", "top(clip_score, 1.0)", "--out", "all.npy").returncode == 0
    # The pool moves, and is given in another order and form.
    os.makedirs(tmp_path / "far/away")
    shutil.move(pool, tmp_path / "far/away/now")
    moved = [f"{tmp_path}/far/away/now/cc12m/*.tar", "far/away/now/cc3m"]
    done = clipdata("embed", *moved, *model, "--out", "again", "--images-only")
    assert rows_of(tmp_path / "again") == rows, done.stderr
    for roots in (moved, ["far/away/now"], ["far/**/*.tar"]):
        done = clipdata("reshard", *roots, "--subset", "all.npy", "--out", "out", "--dry-run")
        assert "found 9 of 9 selected uids" in done.stdout, done.stderr
    done = clipdata("reshard", *moved, "--subset", "all.npy", "--out", "out")
    assert "kept 9 of 9 samples" in done.stdout, done.stderr
    assert SHARED_LINE in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [
        "00001.tar", "cc12m_00000.tar", "cc3m_00000.tar"
    ]  # fmt: skip
    assert json.loads((tmp_path / "out/_manifest.json").read_bytes())["repeated_names"] == {
        "sources": 2, "first": ["cc12m/00000.tar", "cc3m/00000.tar"]
    }  # fmt: skip
    chosen = np.load(tmp_path / "out/uids/cc3m_00000.npy")
    assert uids.to_hex(chosen) == [rows["cc3m/00000.tar", f"{i:05}"] for i in range(4)]
    done = clipdata("report", "scores", "--subset", "all.npy", "--pool", *moved, "--out", "page.html")
    assert "9 of 9 shown pairs found in the pool" in done.stdout, done.stderr


def test_tars_are_found_in_folders_of_folders(tmp_path, checkpoint, clipdata):
    for name in ("a/a.tar", "b/c/c.tar", "b/.cache/c.tar", "@eaDir/d.tar", "b/._c.tar"):
        write_pairs(tmp_path / "nested" / name, range(2))
    os.symlink(tmp_path / "nested", tmp_path / "nested/b/loop")
    done = clipdata("embed", "nested", "--model", f"m={checkpoint}", "--out", "metadata")
    assert done.returncode == 0, done.stderr
    assert list(rows_of(tmp_path / "metadata")) == [(f"{name}.tar", f"{i:05}") for name in "ac" for i in range(2)]
    np.save(tmp_path / "s.npy", uids.from_hex(list(rows_of(tmp_path / "metadata").values())))
    done = clipdata("reshard", "nested/**", "--subset", "s.npy", "--out", "out")
    assert "kept 4 of 4 samples in 2 tars" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("roots", "sentence"),
    [
        (("pool", "pool/cc3m"), "pool/cc3m/00000.tar: named twice, by 'pool' and 'pool/cc3m'; name each input once"),
        (("pool/cc3m", "./pool/cc3m"), "./pool/cc3m/00000.tar: named twice, by 'pool/cc3m' and './pool/cc3m', as"),
        (("pool/cc3m", "link"), "link/00000.tar: named twice, by 'pool/cc3m' and 'link', as pool/cc3m/00000.tar"),
        (("pool/cc3m/*.tar", "pool/cc3m/00000.tar"), "pool/cc3m/00000.tar: named twice, by 'pool/cc3m/*.tar' and"),
    ],
)
def test_each_tar_is_read_once(tmp_path, pool, clipdata, roots, sentence):
    os.symlink(pool / "cc3m", tmp_path / "link")
    np.save(tmp_path / "s.npy", np.zeros(1, uids.DTYPE))
    for command in (("embed", *roots, "--model", "m=none"), ("reshard", *roots, "--subset", "s.npy")):
        done = clipdata(*command, "--out", "out")
        assert done.returncode == 2
        assert sentence in done.stderr


def test_folders_of_images_don_t_overlap(tmp_path, clipdata):
    (tmp_path / "images/some").mkdir(parents=True)
    for name in ("0.jpg", "some/1.jpg"):
        (tmp_path / "images" / name).write_bytes(b"\xff\xd8\xff")
    done = clipdata("embed", "images/some", "images", "--model", "m=none", "--out", "out", "--images-only")
    assert done.returncode == 2
    assert "images/some: lies in images, which is named too; name one of the two" in done.stderr
