"""The command `compare`: results of a suite and of single sets, ours and DataComp's, into one page."""

import json
import re

import pytest

from clipdata_jax import cli
from clipdata_jax.evaluation import results
from clipdata_jax.evaluation.tasks import TASKS


def suite(folder, **values):
    """A folder with DataComp's file."""
    folder.mkdir(parents=True)
    lines = [
        results.TaskResult(
            TASKS[key].key, TASKS[key].name, {**metrics, TASKS[key].main_metric: metrics["main_metric"]}, 50
        )
        for key, metrics in values.items()
    ]
    (folder / results.NAME).write_bytes(results.to_lines(lines))
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("r0", 0.2), ("r1", 0.3), ("s0", 0.8), ("s1", 0.7)):
        suite(tmp_path / name, mnist={"main_metric": value}, **{"imagenet1k": {"main_metric": value / 2}})
    return tmp_path


def told(capsys):
    return json.loads(capsys.readouterr().out)


def test_seeds_of_a_method_have_a_mean_and_a_spread(work, capsys):
    assert cli.main(["compare", "random=r0,r1", "selected=s0,s1", "--out", "page.html"]) == 0
    shown = capsys.readouterr().out
    last = next(line for line in shown.splitlines() if line.startswith("average"))
    assert re.fullmatch(r"average, mean of 2 tasks +18\.8\s% ± [\d.]+ +56\.2\s% ± [\d.]+ +\+37\.5 ± [\d.]+ \*", last)
    assert "* a difference of more than two of its standard errors" in shown
    facts = json.loads((work / "page.html.manifest.json").read_bytes())
    assert facts["methods"] == {"random": 2, "selected": 2}
    assert facts["tasks"]["mnist"]["selected"]["mean"] == pytest.approx(0.75)
    assert facts["tasks"]["mnist"]["random"]["spread"] == pytest.approx(0.1 / 2**0.5)
    html = (work / "page.html").read_text()
    assert html.index("ImageNet 1k") < html.index("MNIST")  # DataComp's order
    before = html
    assert cli.main(["compare", "random=r0,r1", "selected=s0,s1", "--out", "page.html"]) == 0
    assert (work / "page.html").read_text() == before


def test_figures_of_single_sets_and_losses_of_their_training(work, capsys):
    figures = {
        "classification": {"images": 40, "top1": 0.5},
        "retrieval": {"images": 10, "captions": 50, "image_to_text": {"r1": 0.1}, "text_to_image": {"r1": 0.2}},
    }
    for name in ("a", "b"):
        (work / name).mkdir()
        lines = [{"time": 1.0, "step": step, "rows": 1, "rows_per_second": 1.0, "loss": 3 / step} for step in (1, 5, 9)]
        (work / name / "_run.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (work / f"{name}.json").write_text(json.dumps(figures))
        made = {"command": "evaluate", "options": {"model": {"name": str(work / name / "model")}}}
        (work / f"{name}.json.manifest.json").write_text(json.dumps(made))
    assert cli.main(["compare", "a.json", "b.json", "--out", "page.html", "--json"]) == 0
    assert set(told(capsys)["result"]["tasks"]) == {"classification", "image to caption", "caption to image"}
    html = (work / "page.html").read_text()
    assert "b (dashed: a)" in html
    assert "Image to caption" in html


def test_a_worst_group_counts_its_own_images(work, capsys):
    metrics = {
        "main_metric": 0.25,
        "acc_region:0": 0.25,
        "count_region:0": 4,
        "acc_region:1": 0.5,
        "count_region:1": 46,
    }
    suite(work / "g", **{"fairness/geode": metrics})
    suite(work / "h", **{"fairness/geode": metrics})
    assert cli.main(["compare", "g", "h", "--out", "page.html", "--json"]) == 0
    found = told(capsys)["result"]["tasks"]["fairness/geode"]["h"]
    assert found["error"] == pytest.approx((2 * 0.25 * 0.75 / 4) ** 0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["r0", "r0"], "--results is 'r0', expected names that differ"),
        (["nowhere"], "nowhere: no such file"),
        (["x.json"], "x.json: holds no figure to compare"),
        (["y.json"], "y.json: is not JSON"),
        (["=r0"], "expected RESULTS, NAME=RESULTS"),
        (["unknown.jsonl"], "mine is not a task of DataComp, and the number of its images is missing"),
        (["twice.jsonl"], "has two results of MNIST"),
    ],
)
def test_bad_input_is_one_sentence(work, capsys, arguments, words):
    (work / "x.json").write_text("{}")
    (work / "y.json").write_text("no")
    line = '{"key": "%s", "dataset": "%s", "metrics": {"main_metric": 0.5}}\n'
    (work / "unknown.jsonl").write_text(line % ("mine", "Mine"))
    (work / "twice.jsonl").write_text(2 * (line % ("mnist", "MNIST")))
    assert cli.main(["compare", *arguments, "--out", "page.html"]) == 2
    assert words in capsys.readouterr().err
    assert not (work / "page.html").exists()
