"""The log of a training run: lines with rates and shares, TensorBoard's and wandb's figures."""

import json
import sys
import types

import pytest

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.runs import metric_writers, training_log
from clipdata_jax.runs.output import Output
from clipdata_jax.runs.training_log import TrainingLog


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return Output(storage.Folder(str(tmp_path / "out")), ("model",))


def open_log(output, **changes):
    setting = {
        "steps": 10, "first": 0, "last": 10, "batch_size": 8, "learning_rate": lambda step: step / 100,
        "flops_per_pair": 1e6, "peak": 1e7,
    }  # fmt: skip
    return TrainingLog(output, **{**setting, **changes})


def lines(output):
    return [json.loads(line) for line in output.folder.read_bytes(storage.TIMES).decode().splitlines()]


def test_a_line_has_the_rate_and_the_shares_since_the_last_one(output, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training_log.time, "monotonic", lambda: now[0])
    with open_log(output) as log:
        for step, second in ((1, 10.0), (2, 12.0), (3, 18.0)):
            now[0] = second
            log.step(step, {"loss": 1 / step, "grad_norm": 2.0}, 1.0)
        with log.pause():
            now[0] = 100.0
        log.evaluation(3, {"retrieval": {"image_to_text": {"r1": 0.5}}})
        now[0] = 108.0
        log.step(4, {"loss": 0.25}, 6.0)
    first, third, evaluation, fourth = lines(output)
    assert (first["step"], third["step"], fourth["step"]) == (1, 3, 4)
    assert (first["rows"], third["rows"]) == (8, 16)
    assert third["rows_per_second"] == 2  # two steps of 8 pairs in 8 seconds
    assert (third["peak_share"], third["input_wait_share"]) == (0.2, 0.25)
    assert (third["learning_rate"], third["loss"], third["grad_norm"]) == (0.03, 0.33333, 2.0)
    assert (fourth["rows_per_second"], fourth["input_wait_share"]) == (1, 0.75)
    assert evaluation["evaluation"] == {"retrieval": {"image_to_text": {"r1": 0.5}}}


def test_lines_in_a_store_become_one_file(monkeypatch):
    monkeypatch.setattr(training_log, "_SECONDS_BETWEEN_FILES", 0.0)
    folder = storage.Folder("memory://run")
    with open_log(Output(folder, ("model",))) as log:
        log.step(1, {"loss": 1.0}, 0.0)
        log.step(10, {"loss": 0.5}, 0.0)
    training_log.finish_log(folder)
    found = [json.loads(line)["loss"] for line in folder.read_bytes(storage.TIMES).decode().splitlines()]
    assert found == [1.0, 0.5]


def test_the_share_of_an_unknown_peak_is_null(output):
    with open_log(output, peak=None) as log:
        log.step(1, {"loss": 1.0}, 0.0)
    assert lines(output)[0]["peak_share"] is None


def test_tensorboard_has_the_figures(output):
    summary = pytest.importorskip("tensorboardX.proto.event_pb2")
    record = pytest.importorskip("tensorboardX.record_writer")
    assert record
    with open_log(output, writers=("tensorboard",)) as log:
        log.step(1, {"loss": 0.5}, 0.0)
        log.evaluation(1, {"retrieval": {"r1": 0.25}, "skipped": []})
    (file,) = output.folder.at("tensorboard").files()
    data, found = storage.read_bytes(file), {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = summary.Event.FromString(data[12 : 12 + size])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + size :]
    assert found["train/loss"] == (1, 0.5)
    assert found["eval/retrieval/r1"] == (1, 0.25)
    assert "train/images_per_second" in found


def test_wandb_continues_the_run_of_a_folder(output, monkeypatch):
    calls = []

    class Error(Exception):
        pass

    def init(**named):
        calls.append(named)
        if named["config"] == {"bad": 1}:
            raise Error("api_key not configured (no-tty)")
        return types.SimpleNamespace(
            log=lambda figures, step: calls.append((step, figures)), finish=lambda: calls.append("finish")
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=Error))
    for _ in range(2):
        with open_log(output, writers=("wandb",), options={"seed": 1}) as log:
            log.step(1, {"loss": 0.5}, 0.0)
    begun, (step, figures), end, again, *_ = calls
    assert begun == again
    assert (begun["resume"], begun["config"], step, figures["train/loss"], end) == (
        "allow", {"seed": 1}, 1, 0.5, "finish",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"--log wandb: api_key not configured .*set WANDB_MODE=offline"):
        open_log(output, writers=("wandb",), options={"bad": 1})


def test_a_writer_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(metric_writers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--log wandb needs wandb, which is not installed; pip install .*\[wandb\]"):
        metric_writers.check_writers(["wandb"], "out")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"--out s3://bucket/run is not local"):
        metric_writers.check_writers(["tensorboard"], "s3://bucket/run")
