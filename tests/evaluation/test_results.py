"""Results of a suite: DataComp's lines, and the means of groups."""

import json

import numpy as np
import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.evaluation import results
from clipdata_jax.evaluation.tasks import TASKS


def test_the_table_is_that_of_datacomp():
    assert len(TASKS) == 40
    assert sum(task.main_metric is not None for task in TASKS.values()) == 38
    groups = [task.group for task in TASKS.values()]
    assert {name: groups.count(name) for name in ("ImageNet", "shifts", "VTAB", "retrieval")} == {
        "ImageNet": 1, "shifts": 6, "VTAB": 13, "retrieval": 3,
    }  # fmt: skip
    assert len({task.unit for task in TASKS.values()}) == len({task.folder for task in TASKS.values()}) == 40


def test_datacomps_aggregation_reads_all_lines():
    """By its rules: lines with key, dataset and metrics; those whose main metric is not null, 38; their plain mean."""
    rng = np.random.default_rng(0)
    values = {key: None if task.main_metric is None else rng.random() for key, task in TASKS.items()}
    lines = [
        results.TaskResult(key, TASKS[key].name, {"acc1": 0.25, "main_metric": value}, images=10)
        for key, value in values.items()
    ]
    read = [json.loads(line) for line in results.to_lines(lines).splitlines()]
    main = {one["dataset"]: one["metrics"]["main_metric"] for one in read}
    kept = {name: value for name, value in main.items() if value is not None}
    assert len(kept) == 38
    means = {one.name: one for one in results.group_means(values)}
    assert means["average"].mean == pytest.approx(np.mean(list(kept.values())), rel=1e-12)
    assert means["ImageNet"].mean == kept["ImageNet 1k"]
    retrieval = np.mean([kept[name] for name in ("Flickr", "MSCOCO", "WinoGAViL")])
    assert means["retrieval"].mean == pytest.approx(retrieval, rel=1e-12)
    assert (means["VTAB"].measured, means["VTAB"].tasks) == (13, 13)


def test_results_come_back_as_they_were_written(tmp_path):
    path, one = tmp_path / results.NAME, results.TaskResult("mnist", "MNIST", {"acc1": 0.5, "main_metric": 0.5}, 7, 2)
    path.write_bytes(results.to_lines([one]))
    assert results.read(str(path)) == [one]
    path.write_text(
        '{"key": "mnist", "dataset": "MNIST", "metrics": {"acc1": 0.5, "main_metric": 0.5}}\n'
    )  # DataComp's
    assert results.read(str(path))[0].images is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; expected a result a line"),
        ("no json\n", "line 1: is not JSON"),
        ('{"key": "mnist"}\n', "line 1: is not the result of a task"),
        ('{"key": "mnist", "dataset": "MNIST", "metrics": {}, "images": 0}\n', "has 0 images"),
        ("[]\n", "is not the result of a task"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, text, words):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.jsonl") as caught:
        results.read(str(path))
    assert words in str(caught.value)
