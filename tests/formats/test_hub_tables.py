"""Tables of the hub: parquet, arrow as `datasets` caches it, csv and json beside zips or folders of images."""

import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.eval_suites import image

from clipdata_jax.errors import InputError
from clipdata_jax.formats.sources.hub_tables import find_table, texts_of

IMAGES = [image(i) for i in range(20)]


def rows(folder, column="image", *others):
    table = find_table(str(folder))
    with table.images() as read:
        return [(read(row[column]), *(row[name] for name in others)) for row in table.rows([column, *others])]


def test_arrow_files_of_the_cache_find_their_images_where_it_was_moved(tmp_path):
    held = tmp_path / "hf_cache" / "downloads" / "extracted" / "0a1b" / "images"
    held.mkdir(parents=True)
    (held / "0.jpg").write_bytes(IMAGES[0])
    folder = tmp_path / "hf_cache" / "nlphuji___flickr" / "TEST" / "1.0.0" / "0a"
    folder.mkdir(parents=True)
    paths = [{"bytes": None, "path": "/gone/hf_cache/downloads/extracted/0a1b/images/0.jpg"}]
    paths += [{"bytes": one, "path": None} for one in IMAGES[1:]]
    table = pa.table({"image": paths, "caption": [[f"{i}"] for i in range(20)]})
    for name, new in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with new(folder / "flickr-test.arrow", table.schema) as writer:
            writer.write_table(table)
        found = rows(tmp_path / "hf_cache" / "nlphuji___flickr", "image", "caption")
        assert found == [(one, [f"{i}"]) for i, one in enumerate(IMAGES)], name


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_of_the_split_test_count_and_images_lie_in_a_zip(tmp_path, kind):
    held = [("0.jpg", "train", ["a"]), ("1.jpg", "test", ["b, c", "d"]), ("2", "test", ["e"])]
    if kind == "csv":
        lines = [f'{name},{split},"{texts!r}"' for name, split, texts in held]  # as Python writes lists
        (tmp_path / "flickr.csv").write_text("\n".join(["filename,split,raw", *lines]) + "\n")
    else:
        objects = [{"filename": name, "split": split, "raw": texts} for name, split, texts in held]
        (tmp_path / "flickr.jsonl").write_text("\n".join(map(json.dumps, objects)))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i in range(3):
            archive.writestr(f"images/{i}.jpg", IMAGES[i])
    found = rows(tmp_path, "filename", "raw")
    assert [(one, texts_of(raw, "x")) for one, raw in found] == [(IMAGES[1], ["b, c", "d"]), (IMAGES[2], ["e"])]


def test_of_several_parquet_files_those_of_test_count_before_any_csv(tmp_path):
    for name, several in (("train", IMAGES[:2]), ("test", IMAGES[2:])):
        pq.write_table(pa.table({"image": several}), tmp_path / f"{name}-0.parquet")
    (tmp_path / "a.csv").write_text("x\n1\n")
    assert [one for (one,) in rows(tmp_path)] == IMAGES[2:]
    assert find_table(str(tmp_path)).columns == ("image",)


def test_images_may_be_files_beside_the_table(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.webp").write_bytes(IMAGES[0])
    (tmp_path / "t.csv").write_text("file_name\na.webp\n")
    assert rows(tmp_path, "file_name") == [(IMAGES[0],)]


def test_bad_tables_are_named(tmp_path):
    assert find_table(str(tmp_path)) is None
    (tmp_path / "a.csv").write_text("file_name\nmissing.jpg\n")
    with pytest.raises(InputError, match=r"its image 'missing\.jpg' is neither in a zip beside the table nor a file"):
        rows(tmp_path, "file_name")
    with pytest.raises(InputError, match="has no column of captions, called caption or raw; it has file_name"):
        find_table(str(tmp_path)).column(("caption", "raw"), "captions")
    (tmp_path / "images.zip").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"images\.zip: damaged or not a zip file"):
        rows(tmp_path, "file_name")
    (tmp_path / "b.csv").write_text("file_name\n")
    with pytest.raises(InputError, match="holds 2 tables"):
        find_table(str(tmp_path))
    (tmp_path / "t-test.arrow").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"t-test\.arrow: damaged or not an arrow file"):
        rows(tmp_path)


@pytest.mark.parametrize("value", [None, "", [], ["a", 1], 3, "[1, 2]", "[broken"])
def test_captions_are_texts(value):
    if value == "[broken":  # a caption may begin so
        assert texts_of(value, "x") == ["[broken"]
        return
    with pytest.raises(InputError, match="expected a text or a list of texts"):
        texts_of(value, "t.csv: row 0")
