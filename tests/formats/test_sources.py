"""Sources found by patterns, and samples of tables, folders and TFDS splits."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.found_sources import find, png, read
from support.tfds_images import prepare

from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars
from clipdata_jax.formats.sources import source


def text(sample):
    return sample.members["txt"].decode()


CSV = 'file_name,caption\na.png,"one, with a comma"\nin/b.png,"two\nlines"\nhttps://x/c.png,007\n,lost\n'
TSV = 'file_name\tcaption\na.png\tone, with a comma\nin/b.png\t"two\nlines"\nhttps://x/c.png\t007\n\tlost\n'


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_rows_of_a_table_are_samples(tmp_path, suffix):
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "parquet":
        table = {
            "file_name": ["a.png", "in/b.png", "https://x/c.png", None],
            "caption": ["one, with a comma", "two\nlines", "007", "lost"],
            "pixels": [b"\xff"] * 4,
        }
        pq.write_table(pa.table(table), path)
    else:
        path.write_text({"csv": CSV, "tsv": TSV}[suffix])
    (tmp_path / "a.png").write_bytes(png())
    found = find(tmp_path)  # the folder's only table
    assert list(found.units) == ["pairs"]
    assert found.facts[0]["images"] == 4
    samples = read(found)
    assert [text(sample) for sample in samples] == ["one, with a comma", "two\nlines", "007", "lost"]
    assert [sample.key for sample in samples] == ["a.png", "in/b.png", "https://x/c.png", "row 3"]
    assert samples[0].image() == png()
    assert samples[2].path == "https://x/c.png"
    assert samples[3].image() is None
    with pytest.raises(InputError, match=r"in/b\.png: no such file"):
        samples[1].image()
    assert read(find(path)) == samples


def test_columns_have_usual_or_given_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("filepath,title,uid,alt\na.png,one,AB,first\nb.png,two,,second\n")
    samples = read(find(path))
    assert [text(sample) for sample in samples] == ["one", "two"]
    assert [json.loads(sample.members["json"])["uid"] for sample in samples] == ["AB", None]
    assert [text(s) for s in read(find(path, caption_column="alt"))] == ["first", "second"]
    assert all("txt" not in sample.members for sample in read(find(path, images_only=True)))


@pytest.mark.parametrize(
    ("content", "columns", "words"),
    [
        ("a,b\n1,2\n", {}, "no column is called file_name, .* or file; name one with --image-column: a, b"),
        ("path,b\n1,2\n", {}, "no column is called caption, text or title; name one with --caption-column"),
        ("path,text\n1,2\n", {"caption_column": "c"}, "has no columns 'c'; it has path, text"),
        ("path,text\n", {}, "the table is empty"),
        ("path,text\n1,2,3\n", {}, "can't be read as a table"),
        ("", {}, "can't be read as a table"),
    ],
)
def test_bad_tables_are_refused(tmp_path, content, columns, words):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=words):
        find(tmp_path / "t.csv", **columns)


def write_rows(path, header=True, delimiter=",", blank="", extra=""):
    rows = [["filepath", "title"]] * header + [[f"img/{i}.jpg", f"caption {i}"] for i in range(3)]
    path.write_text(extra + "".join(f"{delimiter}{blank}".join(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("semicolon.csv", {"delimiter": ";"}),
        ("blank.csv", {"blank": " "}),
        ("captions.txt", {}),
        ("captions", {"delimiter": "\t"}),
        ("mark.txt", {"extra": "\ufeff"}),
    ],
)
def test_a_table_is_told_by_its_content(tmp_path, name, form):
    write_rows(tmp_path / name, **form)
    samples = read(find(tmp_path / name))
    assert [(sample.key, text(sample)) for sample in samples] == [(f"img/{i}.jpg", f"caption {i}") for i in range(3)]
    assert samples[0].path == f"{tmp_path}/img/0.jpg"
    (tmp_path / "elsewhere").mkdir()
    root = str(tmp_path / "elsewhere")
    assert read(find(tmp_path / name, image_root=root))[0].path == f"{root}/img/0.jpg"
    with pytest.raises(InputError, match="--image-root is '/nowhere', expected a folder"):
        find(tmp_path / name, image_root="/nowhere")


COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
    "annotations": [
        {"id": 12, "image_id": 3, "caption": "an a"},
        {"id": 10, "image_id": 7, "caption": "a b"},
        {"id": 11, "image_id": 3, "caption": "again"},
    ],
}
ROWS = [{"file_name": f"{i}.jpg", "text": f"caption {i}", "more": {"a": i}} for i in range(2)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("captions_val2017.json", json.dumps(COCO), [("a.jpg", "an a"), ("b.jpg", "a b"), ("a.jpg#2", "again")]),
        ("list.json", json.dumps(ROWS, indent=1), [("0.jpg", "caption 0"), ("1.jpg", "caption 1")]),
        ("metadata.jsonl", "\n\n".join(map(json.dumps, ROWS)), [("0.jpg", "caption 0"), ("1.jpg", "caption 1")]),
        ("one", json.dumps({"image": "c.jpg", "Caption": ["x", "y"]}), [("c.jpg", "x"), ("c.jpg#2", "y")]),
    ],
)
def test_json_is_a_table(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    assert [(sample.key, text(sample)) for sample in read(find(tmp_path / name))] == expected
    if name.endswith("jsonl"):  # as `datasets` has them in folders of images
        (tmp_path / "0.jpg").write_bytes(b"0")
        assert [sample.key for sample in read(find(tmp_path))] == ["0.jpg", "1.jpg"]
    if "annotations" in content:
        uids = [json.loads(sample.members["json"])["uid"] for sample in read(find(tmp_path / name, uid_column="id"))]
        assert uids == [12, 10, 11]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "a.jpg,one\nb.jpg,two\n", r"t\.csv: its first line looks like a row, not a header \('a\.jpg' is no"),
        (
            "t.tsv",
            "one\thttp://h/a.jpg\n",
            "looks like a row, not a header .* images are only URLs, download them first",
        ),
        (
            "t.csv",
            "URL,TEXT\nhttp://h/a,one\n",
            "only URLs .column 'URL'.; download them first, .*img2dataset --url_list",
        ),
        ("t.jsonl", '{"text": "a"}\n{broken\n', "line 2 is not JSON"),
        ("t.json", "[1, 2]", "expected an object a line, a list of objects, or COCO's captions"),
        (
            "t.json",
            '{"images": [], "annotations": [{"image_id": 1}]}',
            r"not COCO's captions \(KeyError\(1\) is missing",
        ),
    ],
)
def test_what_a_table_lacks_is_said(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        find(tmp_path / name)


def test_a_folder_of_images_is_cut_into_units(tmp_path, monkeypatch):
    monkeypatch.setattr("clipdata_jax.formats.sources.source.ROWS", 2)
    (tmp_path / "p" / "inner").mkdir(parents=True)
    for name in ("b.png", "inner/a.JPG", "c.webp", "._b.png", "notes.txt"):
        (tmp_path / "p" / name).write_bytes(name.encode())
    found = find(tmp_path / "p", images_only=True)
    assert [sample.key for sample in read(found)] == ["b.png", "c.webp", "inner/a.JPG"]
    assert [sample.image() for sample in read(found)] == [b"b.png", b"c.webp", b"inner/a.JPG"]
    assert list(found.units) == ["p_00000", "p_00001"]
    assert found.facts[0]["images"] == 3
    before = found.facts
    (tmp_path / "p" / "b.png").write_bytes(b"longer than it was")
    assert find(tmp_path / "p", images_only=True).facts != before
    with pytest.raises(InputError, match=r"p: the folder holds 3 images, but no \.txt or \.json with a caption beside"):
        find(tmp_path / "p")


def test_captions_lie_beside_the_images_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("clipdata_jax.formats.sources.source.ROWS", 2)
    files = {
        "00000.parquet": b"log",
        "00000_stats.json": b"{}",
        "README.txt": b"about",
        "00000/a.jpg": b"A",
        "00000/a.txt": b"an a",
        "00000/a.json": b'{"caption": "other"}',
        "00000/b.PNG": b"B",
        "00000/b.JSON": b'{"caption": "a b"}',
        "00000/c.v2.jpg": b"C",
        "00000/c.v2.txt": b"a c",
        "00000/d.jpg": b"D",
        "00000/e.txt": b"no image",
        "00000/.a.txt": b"hidden",
    }
    for name, data in files.items():
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    pq.write_table(pa.table({"url": ["u"] * 4}), tmp_path / "p" / "00000.parquet")
    (tmp_path / "p" / "00000" / "loop").symlink_to(tmp_path / "p", target_is_directory=True)
    found = find(tmp_path / "p")
    samples = read(found)
    assert [(sample.key, sorted(sample.members)) for sample in samples] == [
        ("00000/a.jpg", ["json", "txt"]),
        ("00000/b.PNG", ["json"]),
        ("00000/c.v2.jpg", ["txt"]),
        ("00000/d.jpg", []),
        ("00000/e.txt", ["txt"]),
    ]
    assert [sample.image() for sample in samples] == [b"A", b"B", b"C", b"D", None]
    assert len(found.units) == 3
    assert found.passed_over == {".parquet": 1, ".json": 1, ".txt": 1, "hidden or system": 1}
    assert found.facts[0]["images"] == 4
    keys = [sample.key for sample in read(find(tmp_path / "p", images_only=True))]
    assert keys == [sample.key for sample in samples[:4]]
    before = found.facts
    (tmp_path / "p" / "00000" / "a.txt").write_bytes(b"another caption")
    assert find(tmp_path / "p").facts != before
    (tmp_path / "q").symlink_to(tmp_path / "p", target_is_directory=True)
    for other in ("q", "p/", "p/00000", "p/../p"):
        with pytest.raises(InputError, match=r"named twice|lies in"):
            find(tmp_path / "p", f"{tmp_path}/{other}")


def test_a_table_of_other_things_beside_images_is_passed_over(tmp_path):
    for name, data in {"a.jpg": b"A", "a.txt": b"an a", "labels.csv": b"id,label\n1,2\n"}.items():
        (tmp_path / name).write_bytes(data)
    found = find(tmp_path)
    assert [sample.key for sample in read(found)] == ["a.jpg"]
    assert found.passed_over == {".csv": 1}
    with pytest.raises(InputError, match="--caption-column is 'label', but none of the sources is a table"):
        find(tmp_path, caption_column="label")


def test_the_first_samples_are_of_the_first_units(tmp_path):
    for number in range(3):
        tars.write_tar(str(tmp_path / f"{number}.tar"), [(f"{key}.png", png()) for key in range(4)])
    units = find(tmp_path).units
    for count, expected in ((3, [3]), (4, [4]), (6, [4, 2]), (99, [4, 4, 4])):
        assert [len(list(one.samples())) for one in source.first_samples(units, count).values()] == expected


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz"])
def test_compressed_tars_are_refused_with_advice(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"x"))
    tars.write_tar(str(tmp_path / "1.tar"), [("0.png", png())])
    for pattern in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=rf"{name}: is a compressed tar, .* unpack it first \(gunzip"):
            find(pattern)


@pytest.mark.parametrize("name", ["pool [2024]", "pool {v1}", "a*b?"])
def test_what_exists_under_exactly_a_name_is_meant(tmp_path, name):
    (tmp_path / name).mkdir()
    tars.write_tar(str(tmp_path / name / "s[1].tar"), [("0.png", png())])
    for pattern in (name, f"{name}/s[1].tar"):
        assert len(read(find(tmp_path / pattern, images_only=True))) == 1
    assert len(read(find(tmp_path / "*" / "*.tar", images_only=True))) == 1


def test_unit_names_are_unique(tmp_path, monkeypatch):
    monkeypatch.setattr("clipdata_jax.formats.sources.source.ROWS", 1)
    (tmp_path / "p").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "p" / name).write_bytes(png())
    for name in ("p.tar", "p_00000.tar", "q_p_00000.tar"):
        tars.write_tar(str(tmp_path / name), [("x.png", png())])
    names = list(find(tmp_path / "p", tmp_path / "*.tar", images_only=True).units)
    assert len(names) == len(set(names)) == 5
    with pytest.raises(InputError, match="named twice"):
        find(tmp_path / "p", f"{tmp_path}/p", images_only=True)


def test_a_tfds_split_is_read_without_decoding(tmp_path, monkeypatch):
    prepare(tmp_path, [(png(i), f"image {i}", i % 2) for i in range(5)])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    found = find("tfds:tiny_images/train")
    samples = read(found)
    assert [sample.image() for sample in samples] == [png(i) for i in found_order(samples)]
    assert sorted(text(sample) for sample in samples) == [f"image {i}" for i in range(5)]
    assert [sample.members["cls"] for sample in samples] == [b"%d" % (i % 2) for i in found_order(samples)]
    assert [sample.key for sample in samples] == [f"{i:07}" for i in range(5)]
    assert found.facts == [{"name": "tfds:tiny_images/train", "version": "tiny_images/1.0.0", "images": 5}]
    part = find("tfds:tiny_images/train[1:3]", images_only=True)
    assert [sample.image() for sample in read(part)] == [sample.image() for sample in samples[1:3]]


def found_order(samples):
    """The numbers of the images: TFDS shuffles what it prepares."""
    return [int(text(sample).split()[1]) for sample in samples]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tfds:nonsense/train", "TFDS can't open it in array_record form .* set TFDS_DATA_DIR"),
        ("tfds:train", "expected tfds:name/split"),
        ("tfds:tiny_images/test", "TFDS can't open it"),
        ("tfds:tiny_images/train[:0]", "the split is empty"),
    ],
)
def test_missing_tfds_splits_are_refused(tmp_path, monkeypatch, name, words):
    prepare(tmp_path, [(png(), "an image", 0)])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=words):
        find(name)


def test_a_tfds_split_without_captions_needs_images_only(tmp_path, monkeypatch):
    prepare(tmp_path, [(png(), None, 0)])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"has no captions .* only embed does without, with --images-only"):
        find("tfds:tiny_images/train")
    assert len(read(find("tfds:tiny_images/train", images_only=True))) == 1
