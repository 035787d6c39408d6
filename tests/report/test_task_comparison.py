"""Models compared: means, spreads and standard errors against plain formulas, and the page that shows them."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.report.task_comparison import Method, TaskLabel, TaskScore, compare, render

TASKS = [TaskLabel("a", "A", "acc1", "VTAB"), TaskLabel("b", "B", "acc1", "VTAB"), TaskLabel("c", "C", "acc1")]
share = st.floats(0, 1, allow_nan=False)


def method(name, *seeds, images=100, keys="abc"):
    return Method(name, [{k: TaskScore(v, images) for k, v in zip(keys, seed, strict=True)} for seed in seeds])


@given(st.lists(share, min_size=2, max_size=2), st.lists(share, min_size=3, max_size=3), st.integers(1, 10_000))
@settings(max_examples=40, deadline=None)
def test_errors_are_the_larger_of_images_and_seeds(one, other, images):
    found = compare([method("x", *([v] for v in one), images=images, keys="a"),
                     method("y", *([v] for v in other), images=images, keys="a")], TASKS[:1])  # fmt: skip
    figure = found.tasks[0].figures[1]
    p, q = np.mean(one), np.mean(other)
    binomial = math.sqrt((p * (1 - p) + q * (1 - q)) / images)
    seeds = math.sqrt(np.var(one, ddof=1) / 2 + np.var(other, ddof=1) / 3)
    assert figure.difference == pytest.approx(q - p, abs=1e-12)
    assert figure.spread == pytest.approx(np.std(other, ddof=1))
    assert figure.error == pytest.approx(max(binomial, seeds), abs=1e-12)
    assert figure.is_beyond == (abs(figure.difference) > 2 * figure.error)


def test_means_are_over_tasks_that_all_have():
    one, other = method("x", (0.2, 0.4, 0.6)), method("y", (0.5, 0.7), keys="ab")
    found = compare([one, other], TASKS)
    assert found.left_out == ("C",)
    vtab, average = found.groups
    assert (vtab.label.name, average.label.name) == ("VTAB", "average")
    assert [figure.mean for figure in average.figures] == pytest.approx([0.3, 0.6])
    variance = sum(p * (1 - p) / 100 for p in (0.2, 0.4, 0.5, 0.7)) / 4
    assert average.figures[1].error == pytest.approx(math.sqrt(variance))
    assert math.isnan(found.tasks[2].figures[1].mean)
    assert found.tasks[2].figures[1].difference is None


def test_losses_are_compared_where_both_have_steps():
    losses = [
        {step: 5.0 - step / 100 for step in range(1, 101)},
        {step: 4.0 - step / 100 for step in range(1, 101, 10)},
    ]
    one = Method("x", [{"a": TaskScore(0.5, 10)}], losses[:1])
    found = compare([one, Method("y", [{"a": TaskScore(0.5, 10)}], losses[1:])], TASKS[:1])
    [(title, chart)] = found.curves
    assert title == "y (dashed: x)"
    assert [line.kind for line in chart.lines] == ["main", "other"]
    assert len(chart.lines[0].dots) == len(chart.lines[1].dots) == 9
    assert compare([one], TASKS[:1]).curves[0][0] == "x"
    assert not compare([method("z", (0.5,), keys="a"), one], TASKS[:1]).curves


def page_reader():
    path = Path(__file__).parent / "test_page.py"
    spec = importlib.util.spec_from_file_location("page_of_tests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_figures_and_no_stranger_acts():
    tests = page_reader()
    hostile = tests.HOSTILE[0]
    found = compare([method(hostile, (0.25, 0.5, 0.5)), method("y", (0.5, 0.5, 0.5), (0.75, 0.5, 0.5))], TASKS)
    html = render(found, hostile, [(hostile, [hostile]), ("y", ["r0", "r1"])])
    read = tests.Reader(html)
    assert "<script" not in html
    assert not read.open  # every tag is closed
    for words in ("25.0", "62.5", "+37.5", "2 seeds", "VTAB", "average", "alert(1)"):
        assert words in read.text
    assert "http" not in html.replace("http-equiv", "")
    assert html == render(found, hostile, [(hostile, [hostile]), ("y", ["r0", "r1"])])
