"""Pools that are no tars, all the way: embed, score, select, reshard into tars, look at the report, train."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.checkpoints import CAPTIONS, make_checkpoint
from support.images import jpeg, write_pairs
from support.tfds_images import prepare
from webdataset import tariterators

from clipdata_jax import config
from clipdata_jax.commands import reshard
from clipdata_jax.errors import InputError
from clipdata_jax.formats import sample_uids, uids
from clipdata_jax.formats.sources import discovery


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("small"))


def gif(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (seed, 9, 9)).save(buffer, "GIF")
    return buffer.getvalue()


def write_pool(folder: Path) -> list[str]:
    """A tar, a csv of two images with two captions each (one of them a GIF), a parquet with images inside."""
    write_pairs(folder / "t.tar", range(3))
    (folder / "images").mkdir()
    (folder / "images/a.b.jpg").write_bytes(jpeg(5))
    (folder / "images/c.jpg").write_bytes(gif(6))
    rows = [f"images/{name},{CAPTIONS[i % 3]}" for i, name in enumerate(["a.b.jpg", "c.jpg", "a.b.jpg", "c.jpg"])]
    (folder / "p.q.csv").write_text("\n".join(["image,caption", *rows]))
    record = pa.array([{"bytes": jpeg(7 + i), "path": None} for i in range(3)])
    columns = {
        "image": record,
        "caption": list(CAPTIONS[:3]),
        "url": ["u", None, "w"],
        "uid": ["0A" * 16, "0b" * 16, "0c" * 16],
    }
    pq.write_table(pa.table(columns), folder / "inside.parquet", row_group_size=2)
    return ["t.tar", "p.q.csv", "inside.parquet"]


def write_subset(path: Path, texts) -> str:
    np.save(path, uids.from_hex(list(texts)))
    return str(path)


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key -> members, as webdataset reads all tars in one go."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            members = list(tariterators.tar_file_expander([{"url": path.name, "stream": stream}]))
        for sample in tariterators.group_by_keys(members):
            assert sample["__key__"] not in found
            found[sample["__key__"]] = {name: data for name, data in sample.items() if not name.startswith("__")}
    return found


def test_a_pool_of_a_tar_a_table_and_a_parquet_goes_the_whole_way(tmp_path, small, clipdata):
    pool = write_pool(tmp_path)
    done = clipdata("embed", *pool, "--model", small, "--batch-size", 4, "--out", "m")
    assert done.returncode == 0, done.stderr
    parts = [pq.read_table(path, columns=["uid", "text"]) for path in sorted((tmp_path / "m").glob("*.parquet"))]
    embedded = {row["uid"]: row["text"] for row in pa.concat_tables(parts).to_pylist()}
    assert len(embedded) == 3 + 4 + 3
    assert done.stdout.endswith("\nComputed on 8 CPU devices\n")
    done = clipdata("score", "m", "--out", "s")
    assert done.stdout.endswith("\nComputed on 8 CPU devices\n"), done.stderr
    subset = write_subset(tmp_path / "s.npy", uids.to_hex(uids.sort(uids.from_hex(list(embedded)))))

    done = clipdata("reshard", *pool, "--subset", subset, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept 10 of 10 samples in 3 sources; 3 tars written: out\n")
    found = read(tmp_path / "out")
    assert list(found) == [
        *(f"inside_{i:05d}" for i in range(3)),
        *(f"p_q_{i:05d}" for i in range(4)),
        *(f"{i:05d}" for i in range(3)),
    ]
    assert (tmp_path / "out/t.tar").read_bytes() == (tmp_path / "t.tar").read_bytes()
    written = found["p_q_00003"]
    assert list(written) == ["gif", "txt", "json"]
    assert written["gif"] == gif(6)
    assert json.loads(written["json"]) == {"uid": uids.uid_of("p.q.csv", "images/c.jpg#2"), "key": "images/c.jpg#2"}
    assert found["inside_00000"]["jpg"] == jpeg(7)
    assert json.loads(found["inside_00000"]["json"]) == {"uid": "0a" * 16, "key": "0000000", "url": "u"}
    manifest = json.loads((tmp_path / "out/_manifest.json").read_bytes())
    assert manifest["per_tar"]["p.q"] == {"samples": 4, "kept": 4}
    assert [Path(entry["name"]).name for entry in manifest["pool"]] == ["t.tar", "inside.parquet"]
    assert [Path(entry["name"]).name for entry in manifest["sources"]] == ["p.q.csv"]

    # What was written has the uids and captions of what was embedded.
    again = discovery.find_sources([str(tmp_path / "out")], images_only=False)
    for source in again.units.values():
        for sample in source.samples():
            if "json" in sample.members:
                uid = sample_uids.sample_uid("", sample.key, sample_uids.json_fields(sample.members))
                assert embedded[uid] == sample.members["txt"].decode()

    # Repacked, across sources of all kinds, with copies.
    few = write_subset(tmp_path / "few.npy", sorted([*embedded, *list(embedded)[3:5]]))
    flags = ("--samples-per-tar", 5, "--tars-per-unit", 9)
    done = clipdata("reshard", *pool, "--subset", few, *flags, "--out", "packed")
    assert done.returncode == 0, done.stderr
    packed = read(tmp_path / "packed")
    assert json.loads((tmp_path / "packed/sizes.json").read_bytes()) == {
        f"00000_{i:05d}.tar": size for i, size in enumerate([5, 5, 2])
    }
    copies = {key: members for key, members in packed.items() if key.endswith("-1")}
    assert len(copies) == 2
    assert all(members == packed[key.removesuffix("-1")] for key, members in copies.items())
    assert {key: members for key, members in packed.items() if key not in copies} == found

    flags = ("--pool", *pool, "--images", 3, "--out", "page.html")
    done = clipdata("report", "s", "--subset", few, *flags)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "page.html").read_text("utf-8")
    assert ">images/a.b.jpg<" in html
    assert set(re.findall(r'title="(\w{32})"', html)) <= set(embedded)
    assert "not in the pool" not in html
    assert "image unreadable" not in html

    flags = ("--tokenizer", small, "--steps", 1, "--batch-size", 8, "--warmup", 0, "--image-size", 16, "--width", 32)
    flags = (*flags, "--layers", 1, "--heads", 1, "--embed-dim", 8, "--context-length", 16, "--out", "run")
    done = clipdata("train", *pool, *flags)
    assert done.returncode == 0, done.stderr
    assert "Trained on 10 pairs" in done.stdout
    assert done.stdout.endswith("\nComputed on 8 CPU devices\n")
    assert clipdata("plan", "--", "reshard", *pool, "--subset", few, "--out", "none").returncode == 0


def test_bad_rows_stop_or_are_listed(tmp_path, clipdata):
    write_pool(tmp_path)
    (tmp_path / "images/c.jpg").unlink()
    names = ["images/a.b.jpg", "images/c.jpg", "images/a.b.jpg#2"]
    write_subset(tmp_path / "s.npy", sorted(uids.uid_of("p.q.csv", name) for name in names))
    done = clipdata("reshard", "p.q.csv", "--subset", "s.npy", "--out", "out")
    assert done.returncode == 2
    assert "p.q.csv: sample 'images/c.jpg': " in done.stderr.splitlines()[-1]
    assert "no such file" in done.stderr.splitlines()[-1]
    done = clipdata("reshard", "p.q.csv", "--subset", "s.npy", "--out", "out", "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert list(read(tmp_path / "out")) == ["p_q_00000", "p_q_00002"]
    assert "Skipped 1 sample, listed in _manifest.json; the first: " in done.stdout
    pq.write_table(pa.table({"image": [b"x"], "caption": ["y"], "uid": ["0a" * 16]}), tmp_path / "one.parquet")
    write_subset(tmp_path / "s.npy", ["0b" * 16])
    done = clipdata("reshard", "one.parquet", "--subset", "s.npy", "--out", "none")
    assert "none of the 1 selected uids is in the sources" in done.stderr


def test_columns_are_named_as_for_embed(tmp_path, clipdata):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "x.csv").write_text(f"where,words,caption,number\na.jpg,said,other,{'0d' * 16}\n")
    write_subset(tmp_path / "s.npy", ["0d" * 16])
    flags = ("--image-column", "where", "--caption-column", "words", "--uid-column", "number")
    done = clipdata("reshard", "x.csv", "--subset", "s.npy", *flags, "--out", "out")
    assert done.returncode == 0, done.stderr
    (members,) = read(tmp_path / "out").values()
    assert members["txt"] == b"said"


def test_img2datasets_files_become_tars(tmp_path, clipdata):
    for number, folder in enumerate(("00000", "00000", "00001", "00001")):
        (tmp_path / "p" / folder).mkdir(parents=True, exist_ok=True)
        stem = tmp_path / "p" / folder / f"{number:09}"
        stem.with_suffix(".jpg").write_bytes(jpeg(number))
        stem.with_suffix(".txt").write_text(CAPTIONS[number % 3])
        stem.with_suffix(".json").write_text(json.dumps({"uid": f"{number:032x}", "url": "u", "key": "k"}))
    pq.write_table(pa.table({"url": ["u"] * 2, "status": ["success"] * 2}), tmp_path / "p/00000.parquet")
    (tmp_path / "p/00000_stats.json").write_text("{}")
    write_subset(tmp_path / "s.npy", [f"{number:032x}" for number in (0, 2, 3)])
    done = clipdata("reshard", "p", "--subset", "s.npy", "--processes", 2, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept 3 of 4 samples in 1 source; 1 tar written: out\n")
    assert done.stdout.endswith("\nPassed over 2 files that are not images: .json 1, .parquet 1\n")
    found = list(read(tmp_path / "out").values())
    assert [members["jpg"] for members in found] == [jpeg(number) for number in (0, 2, 3)]
    assert [json.loads(members["json"])["uid"] for members in found] == [f"{number:032x}" for number in (0, 2, 3)]
    assert [members["txt"].decode() for members in found] == [CAPTIONS[0], CAPTIONS[2], CAPTIONS[0]]


def test_a_tfds_split_becomes_tars(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")
    prepare(tmp_path / "tfds", [(buffer.getvalue(), f"caption {i}", i % 2) for i in range(3)])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    source = "tfds:tiny_images/train"
    subset = write_subset(tmp_path / "s.npy", sorted(uids.uid_of(source, f"{row:07}") for row in (0, 2)))
    reshard.run(config.Reshard(sources=(source,), subset=subset, out=str(tmp_path / "out")))
    first, last = read(tmp_path / "out").values()
    assert (first["png"], first["txt"], first["cls"]) == (buffer.getvalue(), b"caption 0", b"0")
    assert json.loads(last["json"]) == {"uid": uids.uid_of(source, "0000002"), "key": "0000002"}


def test_a_source_that_shrinks_meanwhile_is_refused(tmp_path, monkeypatch):
    write_pool(tmp_path)
    subset = write_subset(tmp_path / "s.npy", [uids.uid_of("p.q.csv", "images/c.jpg#2")])
    found = discovery.find_sources([f"{tmp_path}/p.q.csv"], images_only=False)
    (source,) = found.units.values()
    whole = type(source).samples
    monkeypatch.setattr(type(source), "samples", lambda self: iter(list(whole(self))[:4]))
    calls = []

    def samples(self):
        calls.append(1)
        yield from list(whole(self))[: 4 if len(calls) == 1 else 3]

    monkeypatch.setattr(type(source), "samples", samples)
    with pytest.raises(InputError, match=r"p\.q\.csv: changed while it was read; run the command again"):
        reshard.run(config.Reshard(sources=(f"{tmp_path}/p.q.csv",), subset=subset, out=f"{tmp_path}/out"))
