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
    hashed = "The uids of 12 pairs are made of the ids in column 'uid'" in done.stdout
    told = json.loads((tmp_path / "s/_manifest.json").read_bytes()).get("hashed_uids")
    assert (hashed, told) == ((False, None) if kind == "dashed" else (True, 12))
    assert clipdata("select", "s", "--rule", "top(clip_score, 1.0)", "--out", "u.npy").returncode == 0
    assert uids.to_hex(np.load(tmp_path / "u.npy")) == sorted(wanted)
    done = clipdata("filter", "m", "--preset", "basic_filter", "--out", "f.npy")
    assert done.returncode == 0, done.stderr
    assert ("The uids of 12 pairs are made of their ids" in done.stdout) == (kind != "dashed")
    assert uids.to_hex(np.load(tmp_path / "f.npy")) == sorted(wanted)


def test_a_subset_is_written_in_the_owners_ids_and_read_back(tmp_path, embedded, clipdata):
    clipdata("select", embedded / "scores", "--rule", "top(clip_score, 1.0)", "--out", "all.npy")
    metadata = embedded / "metadata"
    for form in ("txt", "csv", "parquet"):
        done = clipdata("uids", "convert", "all.npy", "--ids", metadata, "--out", f"ids.{form}")
        assert f"convert: 4 ids: ids.{form}" in done.stdout, done.stderr
        done = clipdata("uids", "convert", f"ids.{form}", "--out", f"{form}.npy")
        assert f"ids.{form}: 4 uids, 2 made of other ids" in done.stdout, done.stderr
        assert (tmp_path / f"{form}.npy").read_bytes() == (tmp_path / "all.npy").read_bytes()
    assert (tmp_path / "ids.txt").read_text().split("\n") == [*map(str, OWN[:3]), uids.uid_of("0.tar", "00003"), ""]
    assert json.loads((tmp_path / "ids.txt.manifest.json").read_bytes())["ids"]["written"] == 4
    assert clipdata("reshard", embedded / "pool", "--subset", "ids.csv", "--out", "out").returncode == 0
    done = clipdata("embed", "out", "--model", f"m={embedded}/model", "--out", "again")
    assert done.returncode == 0, done.stderr
    again, before = (
        pq.read_table(folder / "0.parquet", columns=["uid", "id"]) for folder in (tmp_path / "again", metadata)
    )
    assert again == before

    (tmp_path / "two.txt").write_text(f"17\n17\n{'0' * 32}\n")
    done = clipdata("uids", "convert", "two.txt", "--ids", metadata, "--out", "two.csv", "--multiset")
    assert "convert: 2 ids: two.csv" in done.stdout, done.stderr
    assert f"1 uid not in {metadata}, e.g. {'0' * 32}" in done.stdout
    assert (tmp_path / "two.csv").read_text() == '"id"\n"17"\n"17"\n'
    (tmp_path / "other.txt").write_text("18\n")
    done = clipdata("uids", "convert", "other.txt", "--ids", metadata, "--out", "other.csv")
    assert (done.returncode, "none of its 1 uids is in" in done.stderr) == (2, True)
    assert not (tmp_path / "other.csv").exists()


def test_show_finds_the_pair_of_a_uid_or_id(tmp_path, embedded, clipdata):
    metadata = embedded / "metadata"
    for given in (OWN[1], OWN[1].replace("-", "").lower()):
        done = clipdata("uids", "show", given, "--metadata", metadata)
        rows = dict(line.split(maxsplit=1) for line in done.stdout.strip().splitlines())
        assert rows["uid"] == OWN[1].replace("-", "").lower()
        assert (rows["tar"], rows["key"], rows["row"]) == ("0.tar", "00001", "1")
        assert rows["file"] == f"{metadata}/0.parquet"
        assert "text" in rows
        assert "id" not in rows
    done = clipdata("uids", "show", "17", "18", "--metadata", metadata)
    assert ["id", "17"] in [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"{metadata}: has no row of 18 (1 of 2)")


def test_ids_that_uids_are_not_made_of(tmp_path, clipdata):
    def convert(name, **columns):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        return clipdata("uids", "convert", f"{name}.parquet", "--ids", f"{name}.parquet", "--out", f"{name}.txt")

    done = convert("other", uid=["0" * 32, "1" * 32, "1" * 32], id=[5, 6, 6])
    assert "convert: 2 ids: other.txt" in done.stdout, done.stderr
    assert "other.parquet repeats uids in 1 row; each counts once" in done.stdout
    assert (
        "3 rows of other.parquet: the uid is not made of the id beside it, so that other.txt can't be given"
        in done.stdout
    )
    done = convert("clash", uid=["1" * 32, "1" * 32], id=["a", "b"])
    assert (done.returncode, f"clash.parquet: the id 'b' has the uid {'1' * 32}, as another" in done.stderr) == (
        2,
        True,
    )
    done = convert("lines", uid=["a\nb"])
    assert (done.returncode, r"the id 'a\nb' doesn't fit on a line; write a .csv" in done.stderr) == (2, True)
    done = convert("lists", uid=["a"], id=[[1]])
    assert (done.returncode, "lists.parquet: column 'id' holds list<" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("convert", "s.npy", "--ids", "m", "--out", "o.npy"), "--out is 'o.npy', but ids are text: name a .txt"),
        (("union", "s.npy", "--ids", "m", "--out", "o.txt"), "--ids is 'm', expected no value except with convert"),
        (("show", "17"), "show looks uids up in a pool's metadata; name it with --metadata"),
        (("show", "17", "--metadata", "s"), "s/0.parquet: column 'uid' is missing; it has uid_hi, uid_lo"),
        (("show", "17", "--metadata", "m", "--out", "o.txt"), "--out is 'o.txt', expected no value with show"),
    ],
)
def test_wrong_options_are_refused(tmp_path, clipdata, arguments, words):
    (tmp_path / "s").mkdir()
    pq.write_table(pa.table({name: pa.array([1], pa.uint64()) for name in uids.HALVES}), tmp_path / "s/0.parquet")
    done = clipdata("uids", *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_another_column_of_ids_is_named(tmp_path, clipdata):
    (tmp_path / "m").mkdir()
    np.savez(tmp_path / "m/0.npz", b32_img=np.eye(4, 8, dtype=np.float16), b32_txt=np.eye(4, 8, dtype=np.float16))
    columns = {"image_id": [7, 8, 9, 9], "text": ["one"] * 4, "url": ["http://a/b"] * 4}
    pq.write_table(pa.table(columns), tmp_path / "m/0.parquet")
    named = ("--uid-column", "image_id")
    done = clipdata("score", "m", "--scores", "clip_score", "--out", "s")
    assert done.returncode == 2
    assert (
        "m/0.parquet: column 'uid' is missing; it has image_id, text, url; --uid-column names another one with ids"
        in done.stderr
    )
    done = clipdata("score", "m", *named, "--scores", "clip_score", "--out", "s")
    assert "The uids of 4 pairs are made of the ids in column 'image_id'" in done.stdout, done.stderr
    assert "1 rows repeat a uid of their unit" in done.stdout
    clipdata("select", "s", "--rule", "top(clip_score, 1.0)", "--out", "u.npy")
    assert uids.to_hex(np.load(tmp_path / "u.npy")) == sorted(map(ids.uid_of_id, (7, 8, 9)))
    done = clipdata("filter", "m", *named, "--preset", "no_filter", "--out", "f.npy")
    assert (tmp_path / "f.npy").read_bytes() == (tmp_path / "u.npy").read_bytes(), done.stderr
    done = clipdata("uids", "convert", "u.npy", "--ids", "m", *named, "--out", "ids.txt")
    assert (tmp_path / "ids.txt").read_text() == "7\n8\n9\n", done.stderr
    assert "m repeats uids in 1 row; each counts once" in done.stdout
    done = clipdata("uids", "show", "8", "--metadata", "m", *named)
    assert ["url", "http://a/b"] in [line.split() for line in done.stdout.splitlines()], done.stderr
    pq.write_table(pa.table({**columns, "uid": list("abcd")}), tmp_path / "m/0.parquet")
    done = clipdata("filter", "m", *named, "--preset", "no_filter", "--out", "g.npy")
    assert (done.returncode, "--uid-column is 'image_id', but there is a column uid" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["a", None, "b"], "m/0.parquet: row 1: the uid is missing, expected text or an integer"),
        (["a", "", "b"], "m/0.parquet: row 1: the uid is empty, expected an id"),
        (
            [1.0, None, 2.0],
            "column 'uid' holds double, expected text, integers or UUIDs; pandas makes floats of integers",
        ),
        ([[1], [2], [3]], "column 'uid' holds list<"),
        (
            ["a", ids.uid_of_id("a"), "b"],
            "m/0.parquet: the ids 'a' and 'ca978112ca1bbdcafac231b39a23dc4d' have the same",
        ),
    ],
)
def test_bad_ids_are_refused(tmp_path, clipdata, column, words):
    (tmp_path / "m").mkdir()
    np.savez(tmp_path / "m/0.npz", b32_img=np.eye(3, 8, dtype=np.float16), b32_txt=np.eye(3, 8, dtype=np.float16))
    pq.write_table(pa.table({"uid": column}), tmp_path / "m/0.parquet")
    for command in (("score", "m", "--out", "s"), ("filter", "m", "--preset", "no_filter", "--out", "f.npy")):
        done = clipdata(*command)
        assert done.returncode == 2
        assert words in done.stderr
