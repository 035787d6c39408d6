"""`clipdata run` of a config file: all its steps in order, each once, on a tiny pool."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from clipdata_jax import storage
from clipdata_jax.demo.pool import make_pool
from clipdata_jax.formats import score_tables, uids

EXAMPLE = Path(__file__).parents[2] / "configs" / "demo_steps.py"
STEPS = """
from clipdata_jax.config import *
def get_config():
    return Run(
        select=Select(scores=("scores",), rule="top(clip_score, 0.5)", out="s.npy"),
        uids=Uids(operation="convert", files=("s.npy",), out="s.txt"),
        export=Export(scores=("scores",), subset="s.npy", out="x.csv"),
    )
"""


@pytest.fixture
def steps(tmp_path):
    """A score table of four pairs, and a config file of three steps that need no jax."""
    uid = uids.from_hex([f"{row:032x}" for row in range(4)])
    part = score_tables.part_bytes(uid, {"clip_score": np.arange(4, dtype=np.float32)})
    storage.write_bytes(str(tmp_path / "scores/0.parquet"), part)
    (tmp_path / "mine.py").write_text(STEPS)
    return tmp_path


def states(done):
    """Step -> its state and rows in the table at the end."""
    table = done.stdout.rpartition("\n\n")[2]
    found = re.findall(r"^(\S+) +(already complete|done|failed|not begun) *(\d*)", table, re.MULTILINE)
    return {step: f"{state} {rows}".strip() for step, state, rows in found}


def test_the_example_runs_all_steps_and_then_has_nothing_to_do(tmp_path, clipdata):
    make_pool(str(tmp_path / "demo-output/pool"), pairs=20, shards=2, size=32)
    example = tmp_path / "example.py"  # with small batches: eight devices would pad these pairs to 2,048
    example.write_text(EXAMPLE.read_text().replace("embed=Embed(", "embed=Embed(batch_size=8, "))
    done = clipdata("run", "--config", example)
    assert done.returncode == 0, done.stderr
    assert "[2 of 6] clipdata score" in done.stdout
    assert len((tmp_path / "demo-steps/best.csv").read_text().splitlines()) == 21
    made = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "demo-steps").rglob("*.*") if path.name != "sizes.json"
    }
    again = clipdata("run", example, "--json", "--quiet")
    found = json.loads(again.stdout)["result"]
    assert [one["step"] for one in found] == ["embed", "score", "select", "reshard", "report", "export"]
    assert all(one["was_complete"] for one in found)
    assert [one["rows"] for one in found] == [20, 20, 10, 10, None, 20]
    assert again.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_step_is_done_again_where_its_options_inputs_or_output_changed(steps, clipdata):
    assert list(states(clipdata("run", "mine.py"))) == ["select", "uids", "export"]
    same = clipdata("run", "mine.py")
    assert same.stdout.count("Already complete: ") == 3
    assert set(states(same).values()) == {"already complete 2"}
    (steps / "x.csv").write_text("damaged")
    again = states(clipdata("run", "mine.py"))
    assert (again["uids"], again["export"]) == ("already complete 2", "done 2")
    storage.write_bytes(  # scored again: all steps follow
        str(steps / "scores/0.parquet"),
        score_tables.part_bytes(
            uids.from_hex([f"{row:032x}" for row in range(4)]), {"clip_score": -np.arange(4, dtype=np.float32)}
        ),
    )
    assert set(states(clipdata("run", "mine.py")).values()) == {"done 2"}
    (steps / "mine.py").write_text(STEPS.replace("subset='s.npy', ", "").replace('subset="s.npy", ', ""))
    other = clipdata("run", "mine.py")
    assert other.returncode == 2
    assert "clipdata run: export: x.csv: already holds the results of another run" in other.stderr


def test_the_first_that_fails_ends_the_run_with_its_status(steps, clipdata):
    (steps / "mine.py").write_text(STEPS.replace('files=("s.npy",)', 'files=("none.npy",)'))
    done = clipdata("run", "mine.py")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "clipdata run: uids: none.npy: no such file or folder; check the path"
    assert states(done) == {"select": "done 2", "uids": "failed", "export": "not begun"}
    found = json.loads(clipdata("run", "mine.py", "--json", "--quiet").stdout)
    assert (found["status"], [one["step"] for one in found["steps"]]) == (2, ["select"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Run(score=Score(pool='p', out='x', batchsize=3))", "line 3: Score has no option 'batchsize'"),
        (
            "Run(select=Select(scores=('p',), rul='x', out='x'))",
            "line 3: Select has no option 'rul'; did you mean rule?",
        ),
        ("Run(scores=3)", "line 3: Run has no option 'scores'; did you mean score?"),
        ("Run(score=Score(pool='p'))", "line 3: Score needs 'out'"),
        ("Run(score=Scoer(pool='p'))", "line 3: NameError: name 'Scoer' is not defined"),
        ("Run(select=Select(scores=(), rule='x', out='x'))", "no input: give at least one score table"),
        ("Run()", "mine.py: its Run sets no command"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, clipdata, text, said):
    (tmp_path / "mine.py").write_text(f"from clipdata_jax.config import *\ndef get_config():\n    return {text}\n")
    done = clipdata("run", "--config", "mine.py")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "(options not given" not in done.stderr
