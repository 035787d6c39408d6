"""Ids of people's own, integers, UUIDs and names, on the whole way: embed, score, select, uids, reshard."""

from __future__ import annotations

import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.checkpoints import make_checkpoint
from support.images import write_pairs

from clipdata_jax.formats import ids, uids

OWN = [17, "6F9619FF-8B86-D011-B42D-00C04FC964FF", "flickr/a, b.jpg", None]
"""An id of each kind, in the json of a sample; the last has none."""


def write_pool(folder):
    members = {f"{i:05}__json": json.dumps({} if one is None else {"uid": one}).encode() for i, one in enumerate(OWN)}
    write_pairs(folder / "0.tar", range(4))
    from clipdata_jax.formats import tars

    found = [*tars.read_members(str(folder / "0.tar")), *((n.replace("__", "."), d) for n, d in members.items())]
    tars.write_tar(str(folder / "0.tar"), sorted(found))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A pool of four pairs, its metadata and its score table, made by the real commands."""
    from clipdata_jax.cli import main

    folder = tmp_path_factory.mktemp("own")
    (folder / "pool").mkdir()
    write_pool(folder / "pool")
    model = make_checkpoint(folder / "model")
    run = ["embed", f"{folder}/pool", "--model", f"m={model}", "--out", f"{folder}/metadata"]
    assert main(run) == 0
    assert main(["score", f"{folder}/metadata", "--scores", "clip_score", "--out", f"{folder}/scores"]) == 0
    return folder


def test_embed_keeps_the_ids_beside_the_uids(embedded):
    rows = pq.read_table(embedded / "metadata/0.parquet").to_pydict()
    assert rows["uid"] == [*map(ids.uid_of_id, OWN[:3]), uids.uid_of("0.tar", "00003")]
    assert rows["id"] == ["17", *OWN[1:]]
    assert json.loads((embedded / "metadata/_manifest.json").read_bytes())["own_ids"] == 3


def test_a_list_of_ids_is_a_subset(tmp_path, embedded, clipdata):
    (tmp_path / "ids.txt").write_text("17\nflickr/a, b.jpg\nmissing\n")
    (tmp_path / "ids.csv").write_text('id,note\n17,x\n"flickr/a, b.jpg",y\nmissing,z\n')
    pq.write_table(pa.table({"id": ["17", OWN[2], "missing"]}), tmp_path / "ids.parquet")
    for form in ("txt", "csv", "parquet"):
        done = clipdata("reshard", embedded / "pool", "--subset", f"ids.{form}", "--out", f"out-{form}")
        assert "kept 2 of 4 samples" in done.stdout, done.stderr
        assert f"found 2 of 3 selected uids (66.67 %); 1 is in no tar, e.g. {ids.uid_of_id('missing')}" in done.stdout
    done = clipdata("uids", "union", "ids.txt", "ids.csv", "--out", "both.npy")
    assert "ids.txt: 3 uids, 3 made of other ids" in done.stdout, done.stderr
    assert sorted(uids.to_hex(np.load(tmp_path / "both.npy"))) == sorted(map(ids.uid_of_id, (17, OWN[2], "missing")))


NUMBERS = np.random.default_rng(0).integers(1, 2**60, 12).tolist()
KINDS = {
    "dashed": pa.array([str(uuid.UUID(int=n)) for n in NUMBERS]),
    "numbers": pa.array(NUMBERS),
    "names": pa.array([f"flickr/{n}.jpg" for n in NUMBERS]),
    "categories": pa.array([f"flickr/{n}.jpg" for n in NUMBERS]).dictionary_encode(),
    "views": pa.array([f"flickr/{n}.jpg" for n in NUMBERS], pa.string_view()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_with_other_ids_is_scored_and_filtered(tmp_path, clipdata, kind):
    (tmp_path / "m").mkdir()
    emb = np.eye(12, 16, dtype=np.float16)
    np.savez(tmp_path / "m/0.npz", b32_img=emb, b32_txt=np.roll(emb, 1, axis=1))
    (tmp_path / "m/._0.parquet").write_bytes(b"macOS")
    sizes = {name: [300] * 12 for name in ("original_width", "original_height")}
    columns = {"uid": KINDS[kind], "text": ["The red circle lies on a wooden table"] * 12, **sizes}
    pq.write_table(pa.table(columns), tmp_path / "m/0.parquet")
    wanted = [
        f"{n:032x}" if kind == "dashed" else ids.uid_of_id(str(one))
        for n, one in zip(NUMBERS, KINDS[kind].to_pylist(), strict=True)
    ]
    done = clipdata("score", "m", "--scores", "clip_score", "--out", "s")
    assert done.returncode == 0, done.stderr
    assert clipdata("select", "s", "--rule", "top(clip_score, 1.0)", "--out", "u.npy").returncode == 0
    assert uids.to_hex(np.load(tmp_path / "u.npy")) == sorted(wanted)
    done = clipdata("filter", "m", "--preset", "basic_filter", "--out", "f.npy")
    assert done.returncode == 0, done.stderr
    assert uids.to_hex(np.load(tmp_path / "f.npy")) == sorted(wanted)
