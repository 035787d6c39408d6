"""The real command: score tables, subset and tars in, a page out; and what it says of bad input."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.processes import check_verify
from support.report_pools import RULE, image, make_pool, options, page_of

from clipdata_jax.commands import report
from clipdata_jax.errors import InputError
from clipdata_jax.formats import score_tables, tars, uid_files, uids


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return make_pool(tmp_path)


def rewrite(path: Path, edit) -> None:
    """Writes a tar anew with edited members; edit(name, data) returns the data, or None to leave it out."""
    edited = [(name, edit(name, data)) for name, data in tars.read_members(str(path))]
    tars.write_tar(str(path), [(name, data) for name, data in edited if data is not None])


def test_the_command_makes_a_page_and_a_manifest(pool, clipdata):
    done = clipdata("report", "scores", "--subset", "subset.npy", "--pool", "tars", "--out", "page.html")
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
    assert "page.html: 30 of 120 pairs kept" in done.stdout
    html = (pool / "page.html").read_text("utf-8")
    assert RULE.replace(">", "&gt;") in html
    assert "9.8.7" in html
    assert "would replace about 3.4" in html
    told = json.loads((pool / "page.html.manifest.json").read_bytes())
    assert told["command"] == "report"
    assert "page.html" in told["outputs"]
    check_verify(clipdata, Path("page.html"), Path("page.html"))
    counts = told["counts"]
    assert (counts["pairs"], counts["kept"], counts["null"]) == (120, 30, 1)
    assert counts["shown"] == counts["found_in_pool"] > 60
    shown = {int(row) for row in re.findall(r">caption (\d+)<", html)}
    assert len(shown) == counts["shown"]
    assert any(row < 60 for row in shown)
    assert any(row >= 60 for row in shown)


def test_every_caption_stands_beside_its_own_image(pool):
    html = page_of(options(pool))
    cards = re.findall(r'<article.*?base64,([^"]+)".*?>caption (\d+)<', html, re.S)
    assert len(cards) > 60
    for data, row in cards:
        got = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), int)
        want = np.asarray(Image.open(io.BytesIO(image(int(row)))).convert("RGB"), int)
        assert np.abs(got[12, 16] - want[12, 16]).max() <= 6


def test_kept_marks_and_scores_are_the_tables(pool):
    html = page_of(options(pool))
    uid, columns = score_tables.open_tables([str(pool / "scores")]).read(["neg_clip_loss"])
    subset = uid_files.read_subset(str(pool / "subset.npy"))
    cards = re.findall(r'<article class="card (in|out)">(.*?)</article>', html, re.S)
    assert cards
    for mark, card in cards:
        row = int(re.search(r">caption (\d+)<", card)[1])
        assert (mark == "in") == (uids.find(subset, uid[row : row + 1])[0] >= 0)
        value = f"{columns['neg_clip_loss'][row]:.2f}".replace("-", "\u2212")
        assert re.search(rf">negCLIPLoss</dt><dd>{value}</dd>", card)


def test_the_same_input_gives_the_same_bytes(pool):
    assert page_of(options(pool)) == page_of(options(pool))
    told = (pool / "page.html.manifest.json").read_bytes()
    report.run(options(pool))
    assert (pool / "page.html.manifest.json").read_bytes() == told


def test_without_tars_there_are_figures_and_it_says_so(pool, clipdata):
    done = clipdata("report", "scores", "--subset", "subset.npy", "--out", "page.html")
    assert done.returncode == 0, done.stderr
    html = (pool / "page.html").read_text("utf-8")
    assert "figures only" in html
    assert "<article" not in html
    assert "<figure" in html


def test_a_table_of_norm_sim_alone_has_a_report(pool, clipdata):
    for path in (pool / "scores").glob("*.parquet"):
        pq.write_table(pq.read_table(path, columns=["uid_hi", "uid_lo", "norm_sim_inf_in1k"]), path)
    done = clipdata("report", "scores", "--subset", "subset.npy", "--pool", "tars", "--out", "page.html")
    assert done.returncode == 0, done.stderr
    html = (pool / "page.html").read_text("utf-8")
    assert "norm_sim_inf_in1k" in html
    assert "<article" in html


def test_missing_and_broken_images_are_shown_as_such(pool):
    def edit(name: str, data: bytes) -> bytes | None:
        row = int(name[:4])
        if row % 3 == 0:
            return None
        return b"no image" if row % 3 == 1 and name.endswith(".jpg") else data

    for name in ("a", "b"):
        rewrite(pool / f"tars/{name}.tar", edit)
    html = page_of(options(pool))
    counts = json.loads((pool / "page.html.manifest.json").read_bytes())["counts"]
    assert 0 < counts["found_in_pool"] < counts["shown"]
    assert f"of {counts['shown']} pairs shown are in the pool" in html
    assert "name all that was embedded" not in html  # some are always gone
    for row, problem in re.findall(r'nopic">([^<]+)<.*?<p[^>]*>([^<]*)<', html, re.S):
        assert (row, problem) == ("not in the pool", "caption unknown") or row == "image unreadable"
    assert {"not in the pool", "image unreadable"} <= set(re.findall(r'nopic">([^<]+)<', html))


def test_tars_that_hold_few_of_the_pairs_are_pointed_at(pool):
    rewrite(pool / "tars/b.tar", lambda name, data: data if name < "0070" else None)
    assert "name all that was embedded" in page_of(options(pool, pool=(str(pool / "tars/b.tar"),)))


def test_odd_samples_do_no_harm(pool):
    odd = {
        "0001.json": b'{"uid": "' + b"\\ud800" * 32 + b'"}',
        "0002.json": b"[" * 100_000,
        "0003.json": b'{"uid": [5]}',
        "0004.txt": b"\xff\xfe<script>",
        "0005.txt": b"",
    }
    rewrite(pool / "tars/a.tar", lambda name, data: odd.get(name, data))
    html = page_of(options(pool, images=40))
    assert "<script" not in html
    assert "\ufffd\ufffd&lt;script&gt;" in html
    assert not re.search(r">caption [123]<", html)


def test_strangers_manifests_are_only_text(pool):
    beside = pool / "subset.npy.manifest.json"
    beside.write_text(json.dumps({"rule": "<script>" * 9_999, "steps": [1, {"rule": 3}], "<b>": {"a": [[[["<i>"]]]]}}))
    (pool / "scores/_manifest.json").write_text('{"deep": ' + "[" * 400 + "]" * 400 + "}")
    html = page_of(options(pool, pool=()))
    assert "<script" not in html
    assert '<i>"' not in html
    assert "&lt;script&gt;" in html
    assert len(html) < 300_000
    for bad in (b"\xff", b"[]", b"[" * 100_000, b'{"rule": 5}'):
        beside.write_bytes(bad)
        assert 'class="rule"' not in page_of(options(pool, pool=()))


def test_uids_without_a_row_are_told(pool):
    subset = uid_files.read_subset(str(pool / "subset.npy"))
    uids.write_subset(str(pool / "subset.npy"), np.concatenate([subset, uids.from_hex(["0" * 32, "f" * 32])]))
    assert "2 of the subset&#39;s 32 uids have no row in the score tables." in page_of(options(pool))


def test_uids_count_as_often_as_a_subset_names_them(pool):
    subset = uid_files.read_subset(str(pool / "subset.npy"))
    times = np.random.default_rng(0).integers(1, 9, len(subset))
    np.save(pool / "subset.npy", np.repeat(subset, times))
    html = page_of(options(pool, pool=()))
    assert f" of the pool. It names them <b>{times.sum()}</b> times: means and medians" in html
    counts = json.loads((pool / "page.html.manifest.json").read_bytes())["counts"]
    assert (counts["kept"], counts["named"]) == (30, times.sum())
    uid, columns = score_tables.open_tables([str(pool / "scores")]).read(["clip_score"])
    own = columns["clip_score"][np.isin(uid, subset)]
    named = np.repeat(own, times[np.searchsorted(subset, uid[np.isin(uid, subset)])])
    named = named[np.isfinite(named)]
    shown = re.search(r"CLIPScore.*?kept</th><td>(.*?)</td><td>(.*?)</td>", html, re.DOTALL)
    assert [float(text.replace("\u2212", "-")) for text in shown.groups()] == pytest.approx(
        [named.mean(), np.median(named)], abs=5e-3
    )


def test_an_empty_subset_has_a_page(pool):
    uids.write_subset(str(pool / "subset.npy"), np.empty(0, uids.DTYPE))
    assert "keeps <b>0</b> of <b>120</b>" in page_of(options(pool))


def test_columns_of_several_tables_join(pool):
    table = score_tables.open_tables([str(pool / "scores")])
    (pool / "more").mkdir()
    for part in table.parts:
        uid, _ = table.read_part(part, [])
        (pool / f"more/{part}.parquet").write_bytes(score_tables.part_bytes(uid, {"aesthetic": np.ones(60)}))
    html = page_of(options(pool, scores=(str(pool / "scores"), str(pool / "more"))))
    assert "<h3>aesthetic</h3>" in html
    assert "<code>clip_score</code>" in html


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scores": ("nowhere",)}, "nowhere: no such folder"),
        ({"subset": "nowhere.npy"}, "nowhere.npy: no such file"),
        ({"pool": ("nowhere.tar",)}, "nowhere.tar: no such file"),
        ({"subset": "foreign.npy"}, r"foreign.npy: none of its 1 uids is in"),
        ({"out": "tars"}, "tars: is a folder; --out names the file to write"),
        ({"pool": ("cut.tar",)}, "cut.tar: damaged or not a tar"),
    ],
)
def test_bad_input_is_one_sentence(pool, monkeypatch, changes, sentence):
    monkeypatch.chdir(pool)
    uids.write_subset("foreign.npy", uids.from_hex(["0" * 32]))
    Path("cut.tar").write_bytes(Path("tars/a.tar").read_bytes()[:30_000])
    with pytest.raises(InputError, match=sentence):
        report.run(options(pool, **changes))
    assert not Path("page.html").exists()


def test_bad_input_ends_the_command_with_status_2(pool, clipdata):
    done = clipdata("report", "scores", "--subset", "nowhere.npy", "--out", "page.html")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == "clipdata report: nowhere.npy: no such file; check the path"


def test_the_report_needs_no_jax():
    code = "import sys, clipdata_jax.commands.report; sys.exit('jax' in sys.modules)"
    root = Path(report.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False).returncode == 0


def test_real_images_are_shown(shared, tmp_path):
    folder = shared("data/flickr8k_val1000")
    image, caption = (np.load(folder / f"tinyclip_{kind}.npy").astype(np.float64) for kind in ("img", "txt"))
    cosines = image @ caption.T
    peak = np.exp((cosines - 1) / 0.01)
    loss = np.diag(cosines) - 0.005 * (np.log(peak.sum(0)) + np.log(peak.sum(1)) + 200)
    names = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += [json.load(tar.extractfile(name))["uid"] for name in tar.getnames() if name.endswith("json")]
    uid = uids.from_hex(names)
    (tmp_path / "scores").mkdir()
    scores = {"clip_score": np.diag(cosines), "neg_clip_loss": loss}
    (tmp_path / "scores/0.parquet").write_bytes(score_tables.part_bytes(uid, scores))
    uids.write_subset(str(tmp_path / "subset.npy"), uid[np.argsort(-loss)[:300]])
    html = page_of(options(tmp_path, pool=(str(folder / "{00000..00003}.tar"),), images=6))
    counts = json.loads((tmp_path / "page.html.manifest.json").read_bytes())["counts"]
    assert counts["found_in_pool"] == counts["shown"] > 80
    assert html.count("data:image/jpeg") == html.count("<article")
    assert 'nopic"' not in html
    assert "CLIPScore × negCLIPLoss" in html
    assert len(html) < 2_500_000


def test_the_steps_of_norm_sim_d_are_drawn(pool):
    assert "Steps of NormSim_2-D" not in page_of(options(pool))
    trace = pool / "subset.npy.trace.jsonl"
    lines = [{"step": i, "rows": 120 - i, "threshold": None, "eigenvalues": [0.3, 0.2]} for i in range(4)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    html = page_of(options(pool))
    assert "120 pairs at the start, 117 after step 3" in html
    assert "Largest and second eigenvalue" in html
    trace.write_text('{"step": 1}')
    with pytest.raises(InputError, match=r"trace\.jsonl: not a trace of norm-sim-d"):
        page_of(options(pool))


def test_throughput_is_drawn_where_a_table_has_a_record_of_it(pool):
    assert "Throughput" not in page_of(options(pool))
    line = {"rows": 60, "rows_per_second": 30.5, "compute_seconds": 1.5, "unit": "<script>"}
    told = [json.dumps({"time": i, **line}) for i in range(3)]
    (pool / "scores/_run.jsonl").write_text("\n".join([*told, "<script>"]))
    html = page_of(options(pool))
    assert "180 rows in 3 units; 30.5 rows/s per process" in html
    assert "Seconds per 1,000 rows" in html
    assert "compute</th><td>4.5 s</td><td>25.0 s</td>" in html
    assert "<script" not in html


def test_a_broken_tar_is_skipped_where_that_is_asked(pool, clipdata):
    whole = (pool / "tars/a.tar").read_bytes()
    (pool / "tars/a.tar").write_bytes(whole[:30_000])
    command = ("report", "scores", "--subset", "subset.npy", "--pool", "tars", "--out", "page.html")
    stopped = clipdata(*command)
    assert stopped.returncode == 2
    assert "(or use --on-bad skip)" in stopped.stderr
    done = clipdata(*command, "--on-bad", "skip")
    assert done.returncode == 0
    assert "Skipped 1 source" in done.stdout.splitlines()[-1]
    assert "Skipped: tars/a.tar: damaged" in (pool / "page.html").read_text("utf-8")
    told = json.loads((pool / "page.html.manifest.json").read_bytes())
    assert len(told["skipped_tars"]) == 1
    assert "tars/a.tar: damaged" in told["skipped_tars"][0]
