"""Selections side by side, and the target images nearest to a pair, on pages of the real command."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.report_pools import image, make_pool, options, page_of

from clipdata_jax.commands import report, report_inputs
from clipdata_jax.errors import InputError
from clipdata_jax.formats import score_tables, uid_files, uids


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return make_pool(tmp_path)


def test_selections_are_compared(pool, clipdata):
    uid, _ = score_tables.open_tables([str(pool / "scores")]).read([])
    uids.write_subset(str(pool / "first.npy"), uid[:50])
    uids.write_subset(str(pool / "none.npy"), uid[:0])
    arguments = ["scores", "--subset", "subset.npy", "--pool", "tars", "--out", "page.html"]
    done = clipdata("report", *arguments, "--compare", "first.npy", "no pairs=none.npy")
    assert done.returncode == 0, done.stderr
    html = (pool / "page.html").read_text("utf-8")
    kept = uids.find(uid_files.read_subset(str(pool / "subset.npy")), uid) >= 0
    told = json.loads((pool / "page.html.manifest.json").read_bytes())["counts"]["compared"]
    assert told == {"first": {"kept": 50, "shared": int(kept[:50].sum())}, "no pairs": {"kept": 0, "shared": 0}}
    grid = html.split("Dropped here, kept by <code>first</code>")[1].split('<div class="band">')[0]
    shown = [int(row) for row in re.findall(r">caption (\d+)<", grid)]
    assert len(shown) == 6
    assert max(shown) < 50
    assert not kept[shown].any()
    assert re.search(r"whole pool</th><td>120</td><td>2.0</td><td>2.0</td><td>100.0", html)
    assert re.search(r"whole pool</th><td>[\d.]+\u202f%</td>", html.split("Languages of the captions</h3>")[1])
    assert clipdata("report", *arguments, "--compare", "first.npy", "no pairs=none.npy").returncode == 0
    assert (pool / "page.html").read_text("utf-8") == html


@pytest.mark.parametrize(
    ("compare", "sentence"),
    [
        (("nowhere.npy",), "nowhere.npy: no such file"),
        (("x=foreign.npy",), r"foreign.npy: none of its 1 uids is in"),
        (("subset.npy", "tars/subset.npy"), "two subset files are named 'subset'; rename one"),
        (("x=",), "--compare is 'x=', expected NAME=FILE or FILE"),
    ],
)
def test_bad_selections_to_compare_are_one_sentence(pool, monkeypatch, compare, sentence):
    monkeypatch.chdir(pool)
    uids.write_subset("foreign.npy", uids.from_hex(["0" * 32]))
    with pytest.raises(InputError, match=sentence):
        report.run(options(pool, compare=compare))


def add_nearest(pool: Path, count: int, **told) -> np.ndarray:
    """A table with the nearest of `count` target images, and the images; row 7 has none."""
    (pool / "nearest").mkdir()
    (pool / "target").mkdir()
    for number in range(count):
        (pool / f"target/{number:02d}.jpg").write_bytes(image(1000 + number))
    nearest = np.random.default_rng(3).integers(0, count, 120).astype(np.int32)
    table = score_tables.open_tables([str(pool / "scores")])
    for part, rows in (("a", slice(0, 60)), ("b", slice(60, 120))):
        columns = {"norm_sim_inf_mine": np.full(60, 0.5, np.float32), "norm_sim_inf_mine_row": nearest[rows]}
        null = np.arange(120)[rows] == 7
        (pool / f"nearest/{part}.parquet").write_bytes(score_tables.part_bytes(table.read_uids(part), columns, null))
    (pool / "nearest/_manifest.json").write_text(json.dumps({"targets": {"mine": told.get("scored", count)}}))
    return nearest


def test_a_card_shows_the_nearest_target_beside_its_pair(pool):
    nearest = add_nearest(pool, 9)
    both = (str(pool / "scores"), str(pool / "nearest"))
    html = page_of(options(pool, scores=both, target=(f"mine={pool / 'target'}",)))
    cards = re.findall(
        r'<article.*?<ul class="near">.*?base64,([^"]+)".*?<code>mine</code>.*?>caption (\d+)<', html, re.S
    )
    assert len(cards) > 60
    for data, row in cards:
        got = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), int)
        want = np.asarray(Image.open(io.BytesIO(image(1000 + nearest[int(row)]))).convert("RGB"), int)
        assert np.abs(got[12, 16] - want[12, 16]).max() <= 6
    # The number of a row is no score: it has no histogram and stands on no card.
    assert "mine_row" not in html
    assert "norm_sim_inf_mine" in html


def test_other_target_images_than_were_scored_are_refused(pool):
    add_nearest(pool, 9, scored=10)
    both = (str(pool / "scores"), str(pool / "nearest"))
    for target, words in (
        (f"mine={pool / 'target'}", "holds 9 images, but it was scored with 10; pass exactly the images"),
        (f"in1k={pool / 'target'}", r"have no nearest images of it \(targets that have: mine"),
    ):
        with pytest.raises(InputError, match=words):
            report.run(options(pool, scores=both, target=(target,)))
    with pytest.raises(InputError, match="expected --pool too, whose images"):
        options(pool, pool=(), target=("mine=x",))


@pytest.mark.parametrize(
    "told", ["[]", '{"options": {"norm_sim": {"union": null}}}', '{"options": {"norm_sim": {"union": "all"}}}']
)
def test_a_union_is_what_the_manifest_calls_so(tmp_path, told):
    columns = {f"norm_sim_inf_{name}": np.zeros(2, np.float32) for name in ("mine", "all", "None")}
    part = score_tables.part_bytes(uids.from_hex(["0" * 32, "1" * 32]), columns)
    for folder, says in (("a", "{}"), ("b", told)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.parquet").write_bytes(part)
        (tmp_path / folder / "_manifest.json").write_text(says)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    expected = {"norm_sim_inf_all"} if "all" in told else set()
    assert report_inputs.union_columns(score_tables.open_tables([b])) == expected
    assert not report_inputs.union_columns(score_tables.open_tables([a, b]))  # the column is that of the first
