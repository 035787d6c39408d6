"""The real `clipdata embed` on inputs as people have them: nothing is left out, merged or cut without a word."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.checkpoints import make_checkpoint
from support.images import jpeg, write_pairs

from clipdata_jax import storage
from clipdata_jax.formats import tars, uids


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("small"))


@pytest.fixture
def embed(clipdata, small):
    def run(*arguments):
        return clipdata("embed", *arguments, "--model", small, "--batch-size", 4)

    return run


def captions(path):
    return pq.read_table(path)["text"].to_pylist()


def test_each_line_of_a_tsv_is_a_pair(tmp_path, embed):
    texts = ["one", '"unbalanced', "three", 'the 5" pipe', "five"]
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "t.tsv").write_text("\ufefffilepath\ttitle\n" + "".join(f"a.jpg\t{text}\n" for text in texts))
    done = embed("t.tsv", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "Embedded 5 pairs" in done.stdout
    assert captions(tmp_path / "out" / "t.parquet") == texts


def test_a_stray_quote_in_a_csv_is_refused(tmp_path, embed):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "t.csv").write_text('filepath,title\na.jpg,"stray\na.jpg,b\na.jpg,of 5"\na.jpg,d\n')
    done = embed("t.csv", "--out", "out")
    assert done.returncode == 2
    assert "t.csv: line 2: unbalanced quotes" in done.stderr


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path, embed):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "t.csv").write_text("path,text\na.jpg,\ufeffa red circle\na.jpg,a red circle\n")
    members = []
    for number, text in enumerate(("\ufeffa red circle", "a red circle", " \ufeff a red circle")):
        members += [(f"{number}.jpg", jpeg(0)), (f"{number}.txt", text.encode())]
    field = json.dumps({"caption": "\ufeffa red circle"}).encode("utf-8-sig")
    tars.write_tar(str(tmp_path / "0.tar"), [*members, ("3.jpg", jpeg(0)), ("3.json", field)])
    done = embed("t.csv", "0.tar", "--out", "out")
    assert done.returncode == 0, done.stderr
    for name, number in (("t", 2), ("0", 4)):
        assert captions(tmp_path / "out" / f"{name}.parquet") == ["a red circle"] * number
        scores = pq.read_table(tmp_path / "out" / f"{name}.parquet")["clip_clip_similarity_score"].to_pylist()
        assert np.ptp(scores) < 1e-6


def test_a_caption_of_a_byte_order_mark_alone_is_empty(tmp_path, embed):
    tars.write_tar(str(tmp_path / "0.tar"), [("0.jpg", jpeg(0)), ("0.txt", b"\xef\xbb\xbf\n")])
    done = embed("0.tar", "--out", "out")
    assert done.returncode == 2
    assert "0.tar: sample '0': its caption is empty" in done.stderr


def test_joined_sources_are_several(tmp_path, embed, clipdata, small):
    for number in range(4):
        write_pairs(tmp_path / f"part{number // 2}" / f"{number}.tar", range(3 * number, 3 * number + 3))
    joined = "part0/{0..1}.tar::part1/{2..3}.tar"
    done = embed(joined, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "Embedded 12 pairs" in done.stdout
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert [table["tar"].unique().to_pylist() for table in tables] == [[f"{number}.tar"] for number in range(4)]
    assert [len(table) for table in tables] == [3] * 4
    found = np.concatenate([uids.from_hex(table["uid"].to_pylist()) for table in tables])
    uids.write_subset(str(tmp_path / "s.npy"), found)
    done = clipdata("reshard", joined, "--subset", "s.npy", "--out", "tars")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "tars").glob("*.tar")) == [f"{number}.tar" for number in range(4)]
    done = clipdata("evaluate", small, "--retrieval", joined, "--out", "e.json")
    assert done.returncode == 0, done.stderr
    assert "12" in done.stdout


def encoded(kind, seed=0):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(seed))).save(buffer, kind)
    return buffer.getvalue()


KINDS = {"gif": "GIF", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF", "jfif": "JPEG", "JPE": "JPEG"}


def test_images_of_every_kind_in_a_tar_are_embedded(tmp_path, embed):
    members = [(f"{number}.{name}", encoded(kind)) for number, (name, kind) in enumerate(KINDS.items())]
    tars.write_tar(str(tmp_path / "0.tar"), members)
    done = embed("0.tar", "--images-only", "--out", "out.npy")
    assert done.returncode == 0, done.stderr
    assert f"Embedded {len(KINDS)} images" in done.stdout
    rows = np.load(tmp_path / "out.npy").astype(np.float32)
    assert (rows @ rows.T).min() > 0.9  # the same image, but for the loss of its encoding


def test_images_of_a_folder_are_told_by_content_and_the_rest_is_counted(tmp_path, embed):
    files = {f"{number}.{name}": encoded(kind) for number, (name, kind) in enumerate(KINDS.items())}
    files |= {"in/no_ending": encoded("PNG"), "in/9.DAT": encoded("WEBP"), "8.jpg": jpeg(0)}
    taken = len(files)
    hidden = [".ipynb_checkpoints/8-checkpoint.jpg", "in/@eaDir/8.jpg/thumb.jpg", ".Trash-1000/files/8.jpg"]
    hidden += ["__MACOSX/._8.jpg", "in/._8.jpg", "Thumbs.db", "in/desktop.ini"]
    files |= dict.fromkeys(hidden, jpeg(1))
    files |= {"a.txt": b"a", "in/b.txt": b"b", "c.TXT": b"", "a.json": b"{}", "b.json": b"[1]", "README": b"\xff"}
    for name, data in files.items():
        storage.write_bytes(f"{tmp_path}/images/{name}", data)
    done = embed("images", "--images-only", "--out", "out.npz")
    assert done.returncode == 0, done.stderr
    assert f"Embedded {taken} images" in done.stdout
    words = "Passed over 6 files that are not images: .txt 3, .json 2, no ending 1; and 7 hidden or system files"
    assert words in done.stdout
    told = json.loads((tmp_path / "out.npz.manifest.json").read_text())
    assert told["passed_over"] == {".json": 2, ".txt": 3, "hidden or system": 7, "no ending": 1}
    rows = np.load(tmp_path / "out.npz")["clip_img"].astype(np.float32)
    assert len(rows) == taken
    assert (rows @ rows.T).min() > 0.9


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>no such image</html>", "not an image but a web page; its download failed; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not an image but a Git LFS pointer; fetch the file itself"),
        (b"no image", "not an image: 8 bytes starting b'no image'"),
    ],
)
def test_a_broken_file_named_as_an_image_is_not_passed_over(tmp_path, embed, data, words):
    storage.write_bytes(f"{tmp_path}/images/a.jpg", data)
    storage.write_bytes(f"{tmp_path}/images/b.jpg", jpeg(0))
    done = embed("images", "--images-only", "--out", "out.npz")
    assert done.returncode == 2
    assert f"images: sample 'a.jpg': {words}" in done.stderr


def test_a_folder_without_images_tells_what_it_holds(tmp_path, embed):
    storage.write_bytes(f"{tmp_path}/images/a.svg", b"<svg/>")
    storage.write_bytes(f"{tmp_path}/images/.b.jpg", jpeg(0))
    done = embed("images", "--images-only", "--out", "out.npz")
    assert done.returncode == 2
    assert "images: the folder holds neither .tar files nor images; passed over 1 file that is not" in done.stderr


@pytest.mark.parametrize("kinds", ["jpg txt", "txt jpg", "json txt jpg"])
@pytest.mark.parametrize("flags", [(), ("--images-only",)])
def test_a_tar_sorted_by_type_is_named_as_such(tmp_path, embed, kinds, flags):
    content = {"jpg": jpeg(0), "txt": b"a caption", "json": b"{}"}
    members = [(f"{number:03}.{kind}", content[kind]) for kind in kinds.split() for number in range(40)]
    tars.write_tar(str(tmp_path / "0.tar"), members)
    done = embed("0.tar", "--out", "out", *flags)
    assert done.returncode == 2
    assert "0.tar: the members of sample '000' lie apart (found '000." in done.stderr
    assert "sort | tar -cf ../sorted.tar -T -" in done.stderr


def test_a_caption_that_is_nowhere_is_missing(tmp_path, embed):
    tars.write_tar(str(tmp_path / "0.tar"), [("0.jpg", jpeg(0)), ("1.jpg", jpeg(0)), ("1.txt", b"one")])
    done = embed("0.tar", "--out", "out")
    assert done.returncode == 2
    assert "0.tar: sample '0': no caption: expected a .txt" in done.stderr


def test_coco_and_a_csv_named_txt_with_images_in_another_folder(tmp_path, embed):
    (tmp_path / "val2017").mkdir()
    for number in range(3):
        (tmp_path / f"val2017/{number}.jpg").write_bytes(jpeg(number))
    coco = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(3)],
        "annotations": [{"id": i, "image_id": i % 3, "caption": f"caption {i}"} for i in range(4)],
    }
    (tmp_path / "captions_val2017.json").write_text(json.dumps(coco))
    (tmp_path / "captions.txt").write_text("image,caption\n2.jpg,last\n")
    done = embed("captions_val2017.json", "captions.txt", "--image-root", "val2017", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "Embedded 5 pairs" in done.stdout
    embedded = [sorted(captions(path)) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert sorted(embedded) == [[f"caption {i}" for i in range(4)], ["last"]]


def test_what_is_no_pool_yet_is_refused_with_advice(tmp_path, embed, clipdata):
    pq.write_table(pa.table({"URL": ["https://x/0.jpg"], "TEXT": ["a"]}), tmp_path / "urls.parquet")
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz/0.tar.gz").write_bytes(b"\x1f\x8b")
    for source, words in (("urls.parquet", "download them first"), ("gz", "0.tar.gz: is a compressed tar")):
        done = embed(source, "--out", "out")
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_paths_with_brackets_are_meant_themselves(tmp_path, clipdata, small):
    write_pairs(tmp_path / "a[1]{b}/0[2].tar", range(2))
    for source in ("a[1]{b}", "a[1]{b}/0[2].tar"):
        done = clipdata("plan", "--", "embed", source, "--model", small, "--out", "out")
        assert "2 pairs, 1 unit" in done.stdout, done.stderr
