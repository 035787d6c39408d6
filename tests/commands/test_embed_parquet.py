"""The real `clipdata embed`, `score` and `report` on parquet files with the images inside."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.checkpoints import CAPTIONS, make_checkpoint
from support.images import jpeg, write_pairs

from clipdata_jax.formats.uids import uid_of

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("small"))


def arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def write(path, images, captions, **columns):
    path.parent.mkdir(exist_ok=True)
    records = pa.array([{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)], STRUCT)
    pq.write_table(pa.table({"image": records, "caption": captions, **columns}), path, row_group_size=2)


def test_images_inside_parquet_are_embedded_as_those_in_tars(tmp_path, small, clipdata):
    for part in range(2):
        seeds = range(4 * part, 4 * part + 4)
        write_pairs(tmp_path / f"{part}.tar", seeds)
        captions = [CAPTIONS[seed % 3] for seed in seeds]
        columns = {"url": ["u", None, "v", "w"], "uid": [uid_of(f"{part}.tar", f"{seed:05}") for seed in seeds]}
        write(tmp_path / "data" / f"train-{part}.parquet", map(jpeg, seeds), captions, **columns)
    flags = ("--model", small, "--batch-size", 4)
    assert clipdata("embed", "0.tar", "1.tar", *flags, "--out", "tars").returncode == 0
    done = clipdata("embed", "data", *flags, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "Embedded 8 pairs" in done.stdout, done.stderr
    for part in range(2):
        found, wanted = arrays(tmp_path / "out" / f"train-{part}.npz"), arrays(tmp_path / "tars" / f"{part}.npz")
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])
        columns = pq.read_table(tmp_path / "out" / f"train-{part}.parquet").to_pydict()
        assert columns["key"] == [f"{row:07}" for row in range(4)]
        assert columns["tar"] == [f"train-{part}.parquet"] * 4
        assert columns["url"] == ["u", None, "v", "w"]
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert [entry["name"].rpartition("/")[2] for entry in manifest["pool"]] == ["train-0.parquet", "train-1.parquet"]
    # The same files as a target, and their nearest images on the report.
    target = ("--target", "t=data", "--target-model", small, "--target-cache", "cache", "--nearest")
    done = clipdata("score", "out", "--scores", "norm_sim", *target, "--out", "scores")
    assert done.returncode == 0, done.stderr
    nearest = [pq.read_table(tmp_path / "scores" / f"train-{part}.parquet")["norm_sim_inf_t_row"] for part in range(2)]
    assert [row for column in nearest for row in column.to_pylist()] == list(range(8))
    done = clipdata("select", "scores", "--rule", "top(norm_sim_inf_t, 0.5)", "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    target = ("--pool", "data", "--target", "t=data")
    done = clipdata("report", "scores", "--subset", "s.npy", *target, "--out", "report.html")
    assert done.returncode == 0, done.stderr
    assert "no image" not in (tmp_path / "report.html").read_text()


def test_bad_rows_are_named_or_listed(tmp_path, small, clipdata):
    modes = []
    for mode in ("L", "P", "RGBA", "CMYK", "I;16"):
        buffer = io.BytesIO()
        Image.new(mode, (40, 40)).save(buffer, "TIFF" if mode in ("CMYK", "I;16") else "PNG")
        modes.append(buffer.getvalue())
    images = [None, jpeg(0)[:200], jpeg(1), jpeg(2), b"", *modes]
    captions = ["a", "b", None, " ", "c", *["a mode"] * 5]
    write(tmp_path / "t" / "0.parquet", images, captions, ID=["a" * 32] * 10)
    (tmp_path / "t" / "1.parquet").write_bytes((tmp_path / "t" / "0.parquet").read_bytes()[:-9])
    flags = ("embed", "t", "--model", small, "--batch-size", 4, "--uid-column", "id")
    done = clipdata(*flags, "--out", "stopped")
    assert done.returncode == 2
    assert "t/0.parquet: sample '0000000': " in done.stderr
    done = clipdata(*flags, "--out", "out", "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "Embedded 5 pairs" in done.stdout
    assert "4 pairs repeat a uid of their file" in done.stdout
    assert "Skipped 1 tar and 5 samples" in done.stdout
    skipped = json.loads((tmp_path / "out" / "_manifest.json").read_text())["skipped_samples"]
    reasons = {int(one["key"]): one["reason"] for one in skipped}
    for key, words in enumerate(["no such file", "broken", "no caption", "caption is empty", "file is empty"]):
        assert words in reasons[key], reasons
