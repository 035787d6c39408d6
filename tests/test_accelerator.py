"""The benchmark for accelerators, at the sizes that it takes on a CPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def accelerator():
    """The script as a module; its neighbour _timing is found beside it."""
    spec = importlib.util.spec_from_file_location("accelerator", BENCHMARKS / "accelerator.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setitem(sys.modules, "accelerator", module)
        spec.loader.exec_module(module)
        yield module


def test_it_checks_the_values_and_measures_every_part(accelerator, capsys):
    assert accelerator.main(["--quick"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["figure"]: line for line in lines}
    assert sum(name.startswith("correct: ") for name in found) >= 18
    bars = [name for name in found if name.startswith("bar: ")]
    assert len(bars) == 5
    assert all(found[name]["passes"] == (found[name]["reached"] >= found[name]["bar"]) for name in bars)
    assert found["projection: DataComp-medium, negCLIPLoss, K = 10"]["bound_by"] in ("computing", "copying")
    assert found["all of it"]["wrong"] == []


def test_a_wrong_value_is_a_failure(accelerator, capsys, monkeypatch):
    plain = accelerator.plain_neg_clip_loss
    monkeypatch.setattr(accelerator, "plain_neg_clip_loss", lambda f, g, t: plain(f, g, t) + 1e-3)
    assert accelerator.main(["--quick", "--only", "values"]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "negCLIPLoss of a golden batch" in last["wrong"]
