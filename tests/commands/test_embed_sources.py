"""The real `clipdata embed` on what has no tars, with several models, into one file, and killed in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.checkpoints import CAPTIONS, make_checkpoint
from support.images import jpeg, write_pairs
from support.tfds_images import prepare

from clipdata_jax.embedding import encoder
from clipdata_jax.formats import tars
from clipdata_jax.formats.sources import discovery

ROOT = Path(__file__).parents[2]
# Ends the process, without a word, where its second unit is to be written.
KILLED = """
import os, signal, sys
from clipdata_jax import cli
from clipdata_jax.runs import output
complete = output.Output.complete
def complete_or_die(self, *arguments, **named):
    if os.path.exists(self.path("_receipts")):
        os.kill(os.getpid(), signal.SIGKILL)
    complete(self, *arguments, **named)
output.Output.complete = complete_or_die
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("large"), image_size=48, seed=1)


def arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_several_models_in_one_pass_give_what_each_gives_alone(tmp_path, small, large, clipdata):
    write_pairs(tmp_path / "0.tar", range(11))
    models = (f"small={small}", f"large={large}")
    assert clipdata("embed", "0.tar", "--model", *models, "--out", "both", "--batch-size", 4).returncode == 0
    both, columns = arrays(tmp_path / "both" / "0.npz"), pq.read_table(tmp_path / "both" / "0.parquet")
    assert list(both) == ["small_img", "small_txt", "large_img", "large_txt"]
    for model in models:
        tag = model.partition("=")[0]
        done = clipdata("embed", "0.tar", "--model", model, "--out", tag, "--batch-size", 4)
        assert done.returncode == 0, done.stderr
        for name, array in arrays(tmp_path / tag / "0.npz").items():
            np.testing.assert_array_equal(both[name], array)
        similarity = f"clip_{tag}_similarity_score"
        assert columns[similarity].equals(pq.read_table(tmp_path / tag / "0.parquet")[similarity])
    assert not np.array_equal(both["small_img"], both["large_img"])
    done = clipdata("score", "both", "--out", "scores", "--tag", "large", "--scores", "clip_score")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_gives_what_the_same_pairs_in_a_tar_give(tmp_path, small, clipdata, form):
    (tmp_path / "pairs" / "images").mkdir(parents=True)
    names = [f"images/{seed:05}.jpg" for seed in range(9)]
    captions = [CAPTIONS[seed % 3] for seed in range(9)]
    for seed, name in enumerate(names):
        (tmp_path / "pairs" / name).write_bytes(jpeg(seed))
    if form == "csv":
        rows = [f"{name},{caption}" for name, caption in zip(names, captions, strict=True)]
        (tmp_path / "pairs" / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]))
    else:
        table = pa.table({"file_name": names, "caption": captions})
        pq.write_table(table, tmp_path / "pairs" / "metadata.parquet")
    write_pairs(tmp_path / "0.tar", range(9))
    flags = ("--model", small, "--batch-size", 4)
    for source, out in (("0.tar", "of_tar"), ("pairs", "of_table")):
        done = clipdata("embed", source, *flags, "--out", out)
        assert done.returncode == 0, done.stderr
        assert "Embedded 9 pairs" in done.stdout, done.stderr
    found, wanted = arrays(tmp_path / "of_table" / "metadata.npz"), arrays(tmp_path / "of_tar" / "0.npz")
    for name in ("clip_img", "clip_txt"):
        np.testing.assert_array_equal(found[name], wanted[name])
    columns = pq.read_table(tmp_path / "of_table" / "metadata.parquet").to_pydict()
    assert columns["text"] == captions
    assert columns["key"] == names
    assert len(set(columns["uid"])) == 9


def test_captions_beside_images_are_embedded_as_in_a_tar(tmp_path, small, clipdata):
    write_pairs(tmp_path / "0.tar", range(5))
    (tmp_path / "p" / "00000").mkdir(parents=True)
    for key, members, _ in tars.group_members("0.tar", tars.read_members("0.tar")):
        for extension, data in members.items():
            (tmp_path / "p" / "00000" / f"{key}.{extension}").write_bytes(data)
    pq.write_table(pa.table({"url": ["u"] * 5}), tmp_path / "p" / "00000.parquet")  # of the downloader
    flags = ("--model", small, "--batch-size", 4)
    assert clipdata("embed", "0.tar", *flags, "--out", "of_tar").returncode == 0
    done = clipdata("embed", "p", *flags, "--out", "of_folder")
    assert done.returncode == 0, done.stderr
    assert "Embedded 5 pairs" in done.stdout
    assert "Passed over 1 file that is not an image: .parquet 1" in done.stdout
    found, wanted = arrays(tmp_path / "of_folder" / "p.npz"), arrays(tmp_path / "of_tar" / "0.npz")
    for name in ("clip_img", "clip_txt"):
        np.testing.assert_array_equal(found[name], wanted[name])
    (tmp_path / "p" / "00000" / "00001.txt").unlink()
    (tmp_path / "p" / "00000" / "00003.jpg").unlink()
    done = clipdata("embed", "p/00000", *flags, "--out", "less")
    assert done.returncode == 2
    assert "p/00000: sample '00001.jpg': no caption: expected a .txt" in done.stderr
    done = clipdata("embed", "p/00000", *flags, "--out", "less", "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "Skipped 2 samples" in done.stdout
    skipped = json.loads((tmp_path / "less" / "_manifest.json").read_text())["skipped_samples"]
    assert [one["key"] for one in skipped] == ["00001.jpg", "00003.txt"]


def test_a_missing_file_of_a_table_is_named_or_listed(tmp_path, small, clipdata):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "t.csv").write_text("path,text\na.jpg,one\nb.jpg,two\na.jpg,\n")
    flags = ("embed", "t.csv", "--model", small, "--out", "out", "--batch-size", 4)
    done = clipdata(*flags)
    assert done.returncode == 2
    assert "t.csv: sample 'b.jpg':" in done.stderr
    assert "no such file" in done.stderr
    done = clipdata(*flags, "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "Skipped 2 samples" in done.stdout, done.stderr


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_a_tfds_split_becomes_a_target_of_one_file(tmp_path, small, clipdata, monkeypatch, form):
    images = [jpeg(seed) for seed in range(7)]
    prepare(tmp_path / "tfds", [(image, None, 0) for image in images])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr("clipdata_jax.formats.sources.source.ROWS", 3)  # three units, gathered
    (tmp_path / "images").mkdir()
    for source in discovery.find_sources(["tfds:tiny_images/train"], images_only=True).units.values():
        for sample in source.samples():
            (tmp_path / "images" / f"{sample.key}.jpg").write_bytes(sample.image())
    flags = ("--images-only", "--model", f"tiny={small}", "--batch-size", 4)
    command = ("embed", "tfds:tiny_images/train", *flags, "--out", f"target.{form}")
    done = clipdata(*command)
    assert done.returncode == 0, done.stderr
    assert "Embedded 7 images as tiny" in done.stdout, done.stderr
    assert clipdata("embed", "images", *flags, "--out", "folder").returncode == 0
    parts = [arrays(path)["tiny_img"] for path in sorted((tmp_path / "folder").glob("*.npz"))]
    loaded = np.load(tmp_path / f"target.{form}", allow_pickle=False)
    found = loaded if form == "npy" else loaded["tiny_img"]
    assert [len(part) for part in parts] == [3, 3, 1]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.concatenate(parts))
    assert not (tmp_path / f"target.{form}.parts").exists()
    manifest = json.loads((tmp_path / f"target.{form}.manifest.json").read_text())
    assert manifest["pairs"] == 7
    assert manifest["sources"][0]["version"] == "tiny_images/1.0.0"
    before = (tmp_path / f"target.{form}").stat().st_mtime_ns
    done = clipdata(*command)
    assert done.returncode == 0
    assert "Already complete" in done.stdout
    assert (tmp_path / f"target.{form}").stat().st_mtime_ns == before
    write_pairs(tmp_path / "0.tar", range(4))
    assert clipdata("embed", "0.tar", "--model", f"tiny={small}", "--out", "meta").returncode == 0
    done = clipdata("score", "meta", "--target", f"t=target.{form}", "--out", "scores")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "a=x", "a=y"], "--model is ('a=x', 'a=y'), expected TAG=FOLDER with distinct tags"),
        (["--model", "x", "--out", "t.npz"], "--out is 't.npz', expected a folder; single files are for --images-only"),
        (
            ["--model", "a=x", "b=y", "--images-only", "--out", "t.npy"],
            "--out is 't.npy', expected a .npz or a folder for several models",
        ),
        (
            ["--model", "x", "--out", "o", "--caption-column", "c"],
            "--caption-column is 'c', but none of the sources is a table",
        ),
    ],
)
def test_bad_flags_are_one_clear_sentence(tmp_path, clipdata, arguments, words):
    write_pairs(tmp_path / "0.tar", range(2))
    out = [] if "--out" in arguments else ["--out", "out"]
    done = clipdata("embed", "0.tar", *arguments, *out)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path, small, clipdata):
    (tmp_path / "pool").mkdir()
    for tar in range(4):
        write_pairs(tmp_path / "pool" / f"{tar}.tar", range(40 * tar, 40 * tar + 40))
    flags = ("embed", "pool", "--model", small, "--batch-size", 2)
    command = [sys.executable, "-c", KILLED, *map(str, flags), "--out", "killed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = sorted(path.stem for path in (tmp_path / "killed" / "_receipts").glob("*.json"))
    assert done
    assert not (tmp_path / "killed" / "_manifest.json").exists()
    kept = {name: (tmp_path / "killed" / f"{name}.npz").stat().st_mtime_ns for name in done}
    assert clipdata(*flags, "--out", "killed").returncode == 0
    assert clipdata(*flags, "--out", "whole").returncode == 0
    for path in sorted((tmp_path / "whole").glob("*.[np]*")):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name
    assert {name: (tmp_path / "killed" / f"{name}.npz").stat().st_mtime_ns for name in done} == kept
    assert len(list((tmp_path / "whole").glob("*.npz"))) == 4


def test_a_target_file_is_not_overwritten_and_follows_its_tars(tmp_path, small, clipdata):
    write_pairs(tmp_path / "0.tar", range(4))
    write_pairs(tmp_path / "1.tar", range(4, 8))
    flags = ("--images-only", "--model", small, "--batch-size", 4, "--out", "target.npy")
    assert clipdata("embed", "0.tar", *flags).returncode == 0
    first = (tmp_path / "target.npy").read_bytes()
    done = clipdata("embed", "1.tar", *flags)
    assert done.returncode == 2
    assert "target.npy: already holds the results of another run" in done.stderr
    assert (tmp_path / "target.npy").read_bytes() == first
    write_pairs(tmp_path / "0.tar", range(8, 12))  # of the same size, and another
    done = clipdata("embed", "0.tar", *flags)
    assert done.returncode == 0, done.stderr
    assert "Embedded 4 images" in done.stdout, done.stderr
    assert (tmp_path / "target.npy").read_bytes() != first
    (tmp_path / "target.npy.manifest.json").unlink()
    done = clipdata("embed", "0.tar", *flags)
    assert done.returncode == 2
    assert "was not written by this command" in done.stderr


def test_a_worker_that_another_has_overtaken_finds_the_file_made(tmp_path, small, clipdata, monkeypatch):
    from clipdata_jax.embedding import single_file

    for tar in range(2):
        write_pairs(tmp_path / f"{tar}.tar", range(4 * tar, 4 * tar + 4))
    flags = ("embed", "0.tar", "1.tar", "--images-only", "--model", small, "--batch-size", 4)
    assert clipdata(*flags, "--out", "alone.npz").returncode == 0
    assert clipdata(*flags, "--out", "dealt.npz", "--worker", "0/2").returncode == 0
    write, other = single_file._write_single, []

    def overtaken(*arguments):
        monkeypatch.setattr(single_file, "_write_single", write)
        # The other worker, which is as far, does it all while this one begins.
        other.append(clipdata(*flags, "--out", "dealt.npz", "--worker", "0/2"))
        write(*arguments)

    monkeypatch.setattr(single_file, "_write_single", overtaken)
    done = clipdata(*flags, "--out", "dealt.npz", "--worker", "1/2")
    assert [other[0].returncode, done.returncode] == [0, 0], done.stderr
    assert (tmp_path / "dealt.npz").read_bytes() == (tmp_path / "alone.npz").read_bytes()
    assert not (tmp_path / "dealt.npz.parts").exists()


def test_an_image_with_several_captions_is_decoded_and_embedded_once(tmp_path, small, clipdata, monkeypatch):
    from clipdata_jax import models

    opened, embedded = [], []
    open_image, images = models.open_image, encoder.Encoder.images
    monkeypatch.setattr(models, "open_image", lambda data: opened.append(data) or open_image(data))
    monkeypatch.setattr(
        encoder.Encoder, "images", lambda self, pixels: embedded.append(len(pixels)) or images(self, pixels)
    )
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "bad.jpg").write_bytes(jpeg(0)[:99])
    # In any order; the first caption of 9 is bad, its image isn't; that of bad.jpg is.
    order = [*range(9), *range(9), 9, 9, "bad", "bad", 0, 0, 0, 8]
    rows = [[f"{one}.jpg", f"caption {row}"] for row, one in enumerate(order)]
    rows[18][1] = ""
    (tmp_path / "t.csv").write_text("path,text\n" + "".join(f"{','.join(row)}\n" for row in rows))
    flags = ("--model", small, "--batch-size", 4, "--on-bad", "skip")
    done = clipdata("embed", "t.csv", *flags, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "Embedded 23 pairs" in done.stdout
    assert sum(embedded) == 10
    assert len(opened) == 12  # bad.jpg once for each of its rows
    skipped = json.loads((tmp_path / "out" / "_manifest.json").read_text())["skipped_samples"]
    assert [one["key"] for one in skipped] == ["9.jpg", "bad.jpg", "bad.jpg#2"]
    kept = [row for number, row in enumerate(rows) if number not in (18, 20, 21)]
    columns = pq.read_table(tmp_path / "out" / "t.parquet").to_pydict()
    assert columns["text"] == [text for _, text in kept]
    assert columns["key"][:10] == [*(f"{i}.jpg" for i in range(9)), "0.jpg#2"]
    assert len(set(columns["uid"])) == 23
    assert columns["original_width"] == [50] * 23
    # The same, an image at a time.
    members = [
        (f"{i:02}{e}", d) for i, (n, t) in enumerate(kept) for e, d in ((".jpg", jpeg(int(n[0]))), (".txt", t.encode()))
    ]
    tars.write_tar(str(tmp_path / "0.tar"), members)
    assert clipdata("embed", "0.tar", *flags, "--out", "of_tar").returncode == 0
    found, wanted = arrays(tmp_path / "out" / "t.npz"), arrays(tmp_path / "of_tar" / "0.npz")
    for name in ("clip_img", "clip_txt"):
        np.testing.assert_array_equal(found[name], wanted[name])
    cosines = pq.read_table(tmp_path / "of_tar" / "0.parquet")["clip_clip_similarity_score"].to_pylist()
    assert columns["clip_clip_similarity_score"] == cosines


def test_paths_that_no_file_can_have_are_listed(tmp_path, small, clipdata):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    names = pa.array(["a.jpg", "zero\0.jpg", "x" * 300, "/proc/self/mem", "no://scheme"])
    table = pa.table({"path": names.dictionary_encode(), "text": ["a"] * 5})
    pq.write_table(table, tmp_path / "t.parquet")
    flags = ("--model", small, "--out", "out", "--batch-size", 4, "--on-bad", "skip")
    done = clipdata("embed", "t.parquet", *flags)
    assert done.returncode == 0, done.stderr
    assert "Skipped 4 samples" in done.stdout, done.stderr


def test_a_tfds_dataset_with_records_of_captions(tmp_path, small, clipdata, monkeypatch):
    captions = [{"id": 1, "text": "a café"}, {"id": 2, "text": "another"}]
    prepare(tmp_path / "tfds", [(jpeg(seed), captions, 0) for seed in range(3)])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    source = "tfds:tiny_images/train"
    done = clipdata("embed", source, "--model", small, "--out", "out", "--batch-size", 4)
    assert done.returncode == 0, done.stderr
    columns = pq.read_table(tmp_path / "out" / "train.parquet").to_pydict()
    assert columns["text"] == ["a café"] * 3
    assert "3 samples with several captions: the first is used" in done.stdout
    write_pairs(tmp_path / "lines.tar", range(2), **{"z__jpg": jpeg(9), "z__txt": b"one\ntwo\n"})
    done = clipdata("embed", "lines.tar", "--model", small, "--out", "lines", "--batch-size", 4)
    assert "1 caption of several lines: each is one caption" in done.stdout, done.stderr
    assert columns["tar"] == [source] * 3


def test_images_and_captions_of_other_extensions_are_named(tmp_path, small, clipdata):
    members = [("._s0.input.jpg", b"of macOS"), (".DS_Store", b"x"), ("__MACOSX/s0.input.jpg", b"x")]
    members += [(f"s{i}{e}", d) for i in range(4) for e, d in ((".input.jpg", jpeg(i)), (".outputs.txt", b"a caption"))]
    tars.write_tar(str(tmp_path / "0.tar"), members)
    flags = ("embed", "0.tar", "--model", small, "--batch-size", 4, "--out", "out")
    done = clipdata(*flags)
    assert done.returncode == 2
    assert "it has .input.jpg, .outputs.txt: name one with --caption-ext outputs.txt" in done.stderr
    done = clipdata(*flags, "--caption-ext", "outputs.txt")
    assert "name one with --image-ext input.jpg" in done.stderr
    done = clipdata(*flags, "--caption-ext", "outputs.txt", "--image-ext", ".input.JPG")
    assert "Embedded 4 pairs" in done.stdout, done.stderr
    assert "Passed over 3 hidden or system files" in done.stdout
    shutil.rmtree(tmp_path / "out")
    done = clipdata(*flags, "--caption-ext", "outputs.txt", "--image-ext", ".input.JPG", "--limit", 3)
    assert done.returncode == 0, done.stderr
    assert "Embedded 3 pairs" in done.stdout
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["options"]["limit"] == 3
    assert pq.read_table(tmp_path / "out" / "0.parquet")["key"].to_pylist() == ["s0", "s1", "s2"]
