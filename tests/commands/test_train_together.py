"""The command `train` on two processes: as on one, stopped together, and continued by any number."""

import json
import os

import pytest
from support.checkpoints import CAPTIONS
from support.processes import run_two

from clipdata_jax import models
from clipdata_jax.demo.pool import make_clean_tars

# The second process gets a signal when it is about to begin its 5th step.
STOPPED = """
import os, signal, sys
from clipdata_jax.runtime import parallel
stop_step = parallel.stop_step
def ask_and_stop(step, **named):
    if sys.argv[-1] == "1" and step == 4:
        os.kill(os.getpid(), signal.SIGTERM)
    return stop_step(step, **named)
parallel.stop_step = ask_and_stop
from clipdata_jax.__main__ import main
main()
"""


def losses(folder):
    lines = [json.loads(line) for line in (folder / "_run.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def test_two_processes_train_as_one_and_stop_at_the_same_step(tmp_path, clipdata, monkeypatch):
    monkeypatch.setattr("clipdata_jax.runs.training_log._SECONDS_BETWEEN_LINES", 0.0)
    make_clean_tars(str(tmp_path / "pool"), pairs=40, seed=0, shards=2)
    models.train_tokenizer(CAPTIONS, tmp_path / "tokenizer", vocab_size=600, context_length=32)
    (tmp_path / "program.py").write_text(
        "from clipdata_jax.runs import training_log\ntraining_log._SECONDS_BETWEEN_LINES = 0.0\n" + STOPPED
    )
    sizes = ["--width", 16, "--layers", 1, "--heads", 2, "--embed-dim", 16, "--image-size", 16, "--context-length", 16]
    fixed = ["--steps", 10, "--batch-size", 16, "--learning-rate", "1e-2", *sizes]
    arguments = [str(one) for one in ("train", "pool", "--tokenizer", "tokenizer", *fixed, "--out")]
    assert (one := clipdata(*arguments, "one")).returncode == 0, one.stderr
    run_two(["program.py", *arguments, "two"], tmp_path, status=75)
    (stopped,) = map(int, os.listdir(tmp_path / "two" / "checkpoints"))
    assert 4 <= stopped <= 7
    assert sorted(losses(tmp_path / "two")) == list(range(1, stopped + 1))
    assert (resumed := clipdata(*arguments, "two")).returncode == 0, resumed.stderr
    found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert sorted(found) == list(range(1, 11))
    assert found == pytest.approx(expected, abs=1e-5)
