"""The real `clipdata report --duplicates`: groups as images, and images beside those they are too near to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.report_pools import image, make_pool

from clipdata_jax.formats import score_tables, uids

COMMAND = ("report", "scores", "--subset", "subset.npy", "--pool", "tars", "--duplicates", "d.parquet")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Two groups, of three pairs and of two, and two pairs that are too near a set of four images."""
    folder = make_pool(tmp_path)
    uid, _ = score_tables.open_tables([str(folder / "scores")]).read([])
    names = uids.to_hex(uid)
    table = {
        "uid": [names[row] for row in (5, 80, 81, 20, 21, 90, 91)],
        "group": pa.array([0, 0, 0, 1, 1, None, None], pa.int64()),
        "cosine": pa.array([1, 0.97, 0.96, 1, 0.99, None, None], pa.float32()),
        "kept": [True, False, False, True, False, False, False],
        "against": [None] * 5 + ["test", "test"],
        "against_row": pa.array([None] * 5 + [3, 0], pa.int64()),
    }
    pq.write_table(pa.table(table), folder / "d.parquet")
    (folder / "eval").mkdir()
    for number in range(4):
        (folder / f"eval/{number}.jpg").write_bytes(image(200 + number))
    return folder


def test_groups_and_near_images_are_shown(pool, clipdata):
    done = clipdata(*COMMAND, "--against", "test=eval", "--images", 2, "--out", "page.html")
    assert done.returncode == 0, done.stderr
    html = (pool / "page.html").read_text("utf-8")
    section = html[html.index('<section id="duplicates">') :]
    section = section[: section.index("</section>")]
    assert "2 groups hold 5 pairs" in section
    bands = section.split('<div class="band">')[1:]
    captions = [re.findall(r">caption (\d+)<", band) for band in bands]
    assert captions == [["5", "81"], ["20", "21"], ["90", "91"]]
    assert "3 pairs" in bands[0]
    assert [band.count('<ul class="near">') for band in bands] == [0, 0, 2]
    assert "Histogram of cosine" in section
    assert "nearest other" not in section, "the table has no manifest"


def test_how_near_the_nearest_other_pairs_are_is_shown(pool, clipdata):
    for bins, shown in (
        ([[0.5, 100], [0.95, 17], [0.97, 2], [1.0, 1]], True),
        ([[0.5, "100"]], False),
        ([[7.0, 1]], False),
    ):
        (pool / "d.parquet.manifest.json").write_text(json.dumps({"nearest": bins}))
        done = clipdata(*COMMAND, "--images", 2, "--out", "page.html", "--overwrite")
        assert done.returncode == 0, done.stderr
        html = (pool / "page.html").read_text("utf-8")
        text = (
            "Of 120 pairs, kept or dropped, the nearest other reaches 0.8 for 20, 0.9 for 20, 0.95 for 20, 0.98 for 1"
        )
        assert (f"{text}, 1.0 for 1." in html) == shown
        assert ("cosine with the nearest other pair" in html) == shown


def test_what_is_wrong_with_the_table_is_said(pool, clipdata):
    (pool / "few").mkdir()
    (pool / "few/0.jpg").write_bytes(image(0))
    for given, words in (
        (("--against", "other=eval"), "no pair is too near to a set of that name; there are test"),
        (("--against", "test=few"), "holds 1 image, but a pair is near number"),
    ):
        done = clipdata(*COMMAND, *given, "--out", "page.html")
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    done = clipdata(*COMMAND[:6], "--against", "test=eval", "--out", "page.html")
    assert "expected no value without --pool and --duplicates" in done.stderr
    table = pq.read_table(pool / "d.parquet")
    foreign = uids.to_hex(np.zeros(len(table), uids.DTYPE))
    pq.write_table(table.set_column(0, "uid", pa.array(foreign)), pool / "d.parquet")
    done = clipdata(*COMMAND, "--out", "page.html")
    assert (done.returncode, "is it of another pool?" in done.stderr) == (2, True), done.stderr
    pq.write_table(table.drop_columns(["cosine"]), pool / "d.parquet")
    done = clipdata(*COMMAND, "--out", "page.html")
    assert (done.returncode, "has no columns 'cosine'" in done.stderr) == (2, True), done.stderr
