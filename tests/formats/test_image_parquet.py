"""Parquet files with the images inside: their columns, rows, parts and damage."""

import itertools
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.found_sources import find, png, read

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def of_type(kind, images):
    if pa.types.is_struct(kind):
        images = [{"bytes": image, "path": "a.png"} for image in images]
    return pa.array(images, kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("image", STRUCT),
        ("photo", STRUCT),
        ("Image", pa.binary()),
        ("jpg", pa.large_binary()),
        ("bytes", pa.binary_view()),
        ("image", pa.binary(len(png(0)))),
    ],
)
def test_rows_are_samples_whatever_the_columns_type(tmp_path, name, kind):
    images = [png(shade) for shade in range(5)]
    table = {"file_name": ["x.png"] * 5, name: of_type(kind, images), "TEXT": list("abcde"), "url": ["u"] * 5}
    pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=2)
    samples = read(find(tmp_path / "t.parquet"))
    assert [sample.key for sample in samples] == [f"{row:07}" for row in range(5)]
    assert [sample.image() for sample in samples] == images
    assert [sample.members["txt"] for sample in samples] == [b"a", b"b", b"c", b"d", b"e"]
    assert [sorted(sample.members) for sample in samples] == [["json", "png", "txt"]] * 5
    assert json.loads(samples[0].members["json"]) == {"url": "u"}
    assert not any("txt" in sample.members for sample in read(find(tmp_path / "t.parquet", images_only=True)))


def test_a_named_column_is_taken(tmp_path):
    columns = {"image": of_type(STRUCT, [png(0)]), "mask": of_type(STRUCT, [png(9)]), "caption": ["a"], "alt": ["b"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (sample,) = read(find(tmp_path / "t.parquet", image_column="mask", caption_column="ALT"))
    assert (sample.image(), sample.members["txt"]) == (png(9), b"b")
    with pytest.raises(InputError, match=r"t\.parquet: has no columns 'none'"):
        find(tmp_path / "t.parquet", image_column="none")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([7, None]), [7, None]),
        (["x/1", ""], ["x/1", None]),
        (pa.array([b"0123456789abcdef", None], pa.binary(16)), [b"0123456789abcdef".hex(), None]),
    ],
)
def test_ids_arrive_in_the_json(tmp_path, values, expected):
    table = {"image": [png(0), png(1)], "caption": ["a", "b"], "ID": values}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = [json.loads(sample.members["json"]).get("uid") for sample in read(find(tmp_path, uid_column="id"))]
    assert found == expected
    with pytest.raises(InputError, match="has no columns 'key'"):
        find(tmp_path, uid_column="key")
    with pytest.raises(InputError, match=r"column 'image' holds binary, expected ids"):
        find(tmp_path, uid_column="image")


def test_lists_of_captions_are_pairs_in_tables_too(tmp_path):
    captions = pa.array([["a", "b"], [], None, ["c", None]])
    ids = ["one", "two", "three", None]
    table = {"image": [png(0)] * 4, "caption": captions, "uid": ids}
    pq.write_table(pa.table(table), tmp_path / "inside.parquet")
    pq.write_table(pa.table({**table, "image": ["a.png", "b.png", "c.png", "a.png"]}), tmp_path / "paths.parquet")
    expected = [("a", "one"), ("b", "one#2"), (None, "two"), (None, "three"), ("c", None), (None, None)]
    keys = {
        "inside": ["0000000", "0000000#2", "0000001", "0000002", "0000003", "0000003#2"],
        "paths": ["a.png", "a.png#2", "b.png", "c.png", "a.png#3", "a.png#4"],
    }
    for name in ("inside", "paths"):
        samples = read(find(tmp_path / f"{name}.parquet"))
        texts = [sample.members["txt"].decode() if "txt" in sample.members else None for sample in samples]
        uids = [json.loads(sample.members["json"]).get("uid") for sample in samples]
        assert list(zip(texts, uids, strict=True)) == expected
        assert [sample.key for sample in samples] == keys[name]


def test_records_without_bytes_name_files_beside(tmp_path):
    images = [{"bytes": None, "path": "in/a.png"}, {"bytes": None, "path": None}, None, {"bytes": b"", "path": "b"}]
    table = {"image": pa.array(images, STRUCT), "caption": list("abcd")}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(3))
    samples = read(find(tmp_path / "t.parquet"))
    assert [sample.image() for sample in samples] == [png(3), None, None, b""]


def test_a_file_is_cut_at_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("clipdata_jax.formats.sources.source.ROWS", 50)
    table = pa.table({"image": [png(shade) for shade in range(130)], "caption": list(map(str, range(130)))})
    for rows, expected in ((20, [40, 40, 50]), (60, [50, 10, 50, 20]), (130, [50, 50, 30])):
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=rows)
        found = find(tmp_path / "t.parquet")
        assert [len(list(source.samples())) for source in found.units.values()] == expected
        assert [sample.members["txt"] for sample in read(found)] == [str(row).encode() for row in range(130)]
        assert [int(sample.key) for sample in read(found)] == list(range(130))
        assert {source.inputs for source in found.units.values()} == {(str(tmp_path / "t.parquet"),)}


def test_a_folder_of_parquet_is_one_pool(tmp_path):
    (tmp_path / "p" / "data").mkdir(parents=True)
    for part in range(2):
        table = {"image": of_type(STRUCT, [png(part)]), "caption": [f"part {part}"]}
        pq.write_table(pa.table(table), tmp_path / "p" / "data" / f"train-0000{part}-of-00002.parquet")
    pq.write_table(pa.table({"url": ["u"]}), tmp_path / "p" / "log.parquet")
    (tmp_path / "p" / "README.md").write_text("about")
    (tmp_path / "p" / "data" / ".hidden.parquet").write_text("x")
    found = find(tmp_path / "p")
    assert list(found.units) == ["train-00000-of-00002", "train-00001-of-00002"]
    assert found.passed_over == {".parquet": 1, ".md": 1, "hidden or system": 1}
    by_glob = find(tmp_path / "p" / "data" / "*.parquet")
    assert [s.members["txt"] for s in read(found)] == [s.members["txt"] for s in read(by_glob)]
    (tmp_path / "p" / "data" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 cut short")
    broken = list(find(tmp_path / "p").units.values())[1]  # an error where it is read, that may be skipped
    with pytest.raises(InputError, match=r"train-00001-of-00002\.parquet: damaged"):
        broken.samples()
    with pytest.raises(InputError, match=r"train-00001-of-00002\.parquet: damaged"):
        find(tmp_path / "p" / "data" / "train-00001-of-00002.parquet")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"image": [png(0)], "label": [1]}, "no column is called caption, text or title; name one with"),
        ({"image": [png(0)], "caption": [1]}, "column 'caption' holds int64, expected text or lists of text"),
        ({"image": [png(0)], "Text": ["a"], "TEXT": ["b"]}, "has 2 columns 'Text' and 'TEXT'; rename all but one"),
        ({"pixels": [png(0)], "caption": ["a"]}, "no column is called file_name, .*; name one with --image-column"),
        ({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}, "the table is empty"),
    ],
)
def test_files_that_lack_something_are_refused(tmp_path, table, words):
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=words):
        find(tmp_path / "t.parquet")


def test_damage_is_an_error_after_the_rows_before_it(tmp_path):
    rows = 64
    random = np.random.default_rng(0)
    table = {"image": [random.bytes(5000) for _ in range(rows)], "caption": ["a"] * rows}
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(table), path, row_group_size=16, compression="none", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 20_000] ^= 1
    path.write_bytes(data)
    (source,) = find(path).units.values()
    samples, keys = source.samples(), []
    with pytest.raises(InputError, match=r"t\.parquet: damaged"):
        keys.extend(sample.key for sample in samples)
    assert all(isinstance(s, tars.RawSample) for s in itertools.islice(source.samples(), 32))


def test_memory_holds_a_few_rows_not_a_row_group(tmp_path):
    random = np.random.default_rng(0)
    path, rows = tmp_path / "t.parquet", 400
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema, write_batch_size=8) as writer:
        writer.write_table(pa.table({"image": [random.bytes(100_000) for _ in range(rows)], "caption": ["a"] * rows}))
    assert pq.ParquetFile(path).metadata.num_row_groups == 1
    (source,) = find(path).units.values()
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for _ in source.samples():
        most = max(most, pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert most < 12 << 20  # of 40 MB
