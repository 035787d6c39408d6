"""Units completed in a thread, and the record of their times."""

import json
import sys
import threading
from subprocess import PIPE

import pytest
from support.processes import started

from clipdata_jax import storage
from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.runs import output as output_module
from clipdata_jax.runs import telemetry
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import RunPlan, UnitTimes
from clipdata_jax.runs.writer import Writer
from clipdata_jax.runtime import parallel


class Slow:
    """An output whose second unit can't be written, and whose first waits to be let go."""

    def __init__(self):
        self.done, self.go = [], threading.Event()

    def complete(self, unit):
        assert self.go.wait(60)
        if unit == "b":
            raise InputError("no space left")
        self.done.append(unit)


def test_units_are_written_in_order_and_an_error_stops_the_run_once():
    output = Slow()
    with pytest.raises(InputError, match="no space left"), Writer(output.complete) as writer:
        writer.complete("a")
        writer.complete("b")
        output.go.set()
        for _ in range(1_000_000):  # told within two units
            writer.complete("c")
    assert output.done[0] == "a"
    assert len(output.done) < 9


@pytest.mark.parametrize("error", [None, InputError("a bad shard"), KeyboardInterrupt()])
def test_what_was_worked_out_is_written_before_a_stop(error):
    output = Slow()
    threading.Timer(0.05, output.go.set).start()
    try:
        with Writer(output.complete) as writer:
            writer.complete("a")
            writer.complete("c")
            if error:
                raise error
    except (InputError, KeyboardInterrupt) as raised:
        assert raised is error
    assert output.done == (["a"] if isinstance(error, KeyboardInterrupt) else ["a", "c"])


def test_an_error_in_the_last_unit_is_told_too():
    output = Slow()
    output.go.set()
    with pytest.raises(InputError, match="no space left"), Writer(output.complete) as writer:
        writer.complete("a")
        writer.complete("b")


@pytest.mark.parametrize("folder", ["out", "memory://begun-at-once"])
def test_of_runs_that_begin_at_once_in_one_folder_one_writes_the_plan(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(storage.Folder, "names", lambda folder: [])  # each finds the folder empty
        patch.setattr(output_module, "_left_by_another", lambda *_: None)
        first = open_output(folder, plan=RunPlan(command="a"), units=["u"])
        assert open_output(folder, plan=RunPlan(command="a"), units=["u"]) == first
        before = storage.read_bytes(first.path("_plan.json"))
        with pytest.raises(InputError, match=r"0 of 1 unit of another run \(command was \"a\", now \"b\"\)"):
            open_output(folder, plan=RunPlan(command="b"), units=["u"])
    assert storage.read_bytes(first.path("_plan.json")) == before
    storage.write_bytes(first.path("_plan.json"), b"{")
    with pytest.raises(InputError, match=r"_plan\.json doesn't say what it holds \(Expecting"):
        open_output(folder, plan=RunPlan(command="a"), units=["u"])


def test_a_folder_where_nothing_was_finished_is_free_once_its_process_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(output_module, "_SECONDS", 0.0)
    folder, a, b = str(tmp_path / "out"), RunPlan(command="a"), RunPlan(command="b")
    first = open_output(folder, plan=a, units=["u", "v"])
    other_process = storage.hold(first.path("_plan.json"))
    with pytest.raises(InputError, match=r"another run \(command was \"a\", now \"b\"\)"):
        open_output(folder, plan=b, units=["u"])
    storage.release(other_process)
    open_output(folder, plan=b, units=["u"])  # though `first` is alive in this process, after an error perhaps
    first = open_output(folder, plan=a, units=["u", "v"])
    first.complete("u", {"u.npy": b"1"}, {})
    with pytest.raises(InputError, match=r"holds 1 of 2 units of another run .*; give that run's command"):
        open_output(folder, plan=b, units=["u"])


def test_a_unit_that_a_killed_process_wrote_without_a_receipt_locks_no_folder(tmp_path, monkeypatch):
    folder, a, b = str(tmp_path / "out"), RunPlan(command="a"), RunPlan(command="b")
    first = open_output(folder, plan=a, units=["u", "v"])
    parts = {"u_0.npy": b"1", "uids/u_0.npy": b"2"}
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(output_module, "Receipt", lambda **_: 1 / 0)
        first.complete("u", parts, {}, times=UnitTimes(rows=1, rows_per_second=1))
    assert sorted(storage.Folder(folder).sizes()) == [
        "_plan.json", "_receipts/u.begun", "_run.jsonl", "u_0.npy", "uids/u_0.npy",
    ]  # fmt: skip
    (tmp_path / "out/mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"out: already holds 0 of 2 units of another run"):
        open_output(folder, plan=b, units=["w"])
    (tmp_path / "out/mine.txt").unlink()
    other = open_output(folder, plan=b, units=["w"])
    assert sorted(storage.Folder(folder).sizes()) == ["_plan.json"]
    other.complete("w", parts, {})
    assert other.finish(lambda receipts: {}) is not None
    assert not any(name.endswith(".begun") for name in other.folder.sizes())


OTHER = """
import sys
from clipdata_jax.runs.output import open_output
from clipdata_jax.runs.records import RunPlan
output = open_output(sys.argv[1], plan=RunPlan(command="a"), units=["u"])
print("open", flush=True)
sys.stdin.read()
"""


def test_another_process_at_work_in_the_folder_is_said_or_refused(tmp_path, capsys):
    folder, plan = str(tmp_path / "out"), RunPlan(command="a")
    with started([sys.executable, "-c", OTHER, folder], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        open_output(folder, plan=plan, units=["u"], share=parallel.Share(0, 2))
        assert not capsys.readouterr().err
        output = open_output(folder, plan=plan, units=["u"])
        assert capsys.readouterr().err.startswith(f"{folder}: another process is at work here, too: the work is")
        with pytest.raises(InputError, match="another process is at work here; wait until it has ended"):
            open_output(folder, plan=plan, units=["u"], together=True)
        output.complete("u", {"u.npy": b"1"}, {})
        output.finish(lambda receipts: {})
        open_output(folder, plan=plan, units=["u"], together=True)  # nothing is left to do
        assert not capsys.readouterr().err


def test_a_run_that_goes_on_says_how_much_was_done(tmp_path, capsys):
    for begun in (0, 1):
        output = open_output(str(tmp_path / "out"), plan=RunPlan(command="a"), units=["u", "v", "w"])
        assert len(output.remaining(parallel.ALONE)) == 3 - begun
        assert capsys.readouterr().err == "1 of 3 units done before, going on\n" * begun
        output.complete("u", {"u.npy": b"1"}, {})


def test_a_run_whose_folder_another_took_over_stops_before_it_writes():
    folder = "memory://taken-over"  # without locks
    first = open_output(folder, plan=RunPlan(command="a"), units=["u"])
    second = open_output(folder, plan=RunPlan(command="b"), units=["u"])
    with pytest.raises(InputError, match="another run has begun here before this one finished anything"):
        first.complete("u", {"u.npy": b"1"}, {})
    second.complete("u", {"u.npy": b"2"}, {})
    assert storage.read_bytes(f"{folder}/u.npy") == b"2"


def test_an_error_in_writing_says_that_work_is_kept_only_where_there_is_some(tmp_path):
    output = open_output(str(tmp_path), plan=RunPlan(command="a"), units=["u", "v"])
    (tmp_path / "v.npy").mkdir()
    for kept in ("", "; the units finished before are kept"):
        with pytest.raises(InputError) as told:
            output.complete("v", {"v.npy": b"1"}, {})
        assert str(told.value) == f"{tmp_path}/v.npy: can't be written (is a directory){kept}"
        output.complete("u", {"u.npy": b"1"}, {})


def test_times_in_a_store_are_those_of_the_units_whenever_a_run_is_stopped(monkeypatch):
    def finished(rows):
        output = open_output("memory://stopped-at-the-end", plan=RunPlan(command="a"), units=["u"])
        if output.remaining(parallel.ALONE):
            output.complete("u", {"u.npy": b"1"}, {}, times=UnitTimes(rows=rows, rows_per_second=1))
        output.finish(lambda receipts: {})
        return [json.loads(line)["rows"] for line in storage.read_bytes(output.path("_run.jsonl")).splitlines()]

    with monkeypatch.context() as patch:
        patch.setattr(Output, "_take_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finished(1)
    assert finished(2) == [1]
    storage.remove("memory://stopped-at-the-end/u.npy")  # to be made again
    assert finished(3) == [3]


def test_lines_of_a_stranger_are_read_as_far_as_they_make_sense(tmp_path):
    good = {"time": 5, "unit": "a", "rows": 10, "rows_per_second": 2.5, "read_seconds": 1}
    odd = [{**good, "rows": value} for value in ("x", None, [1], -1, 1e300, float("nan"))]
    lines = [json.dumps(line) for line in ({"step": 1}, [], *odd, good)]
    (tmp_path / "_run.jsonl").write_bytes("\n".join([*lines, "[" * 5000, ""]).encode() + b"\xff{")
    spent = {"read": 1.0, "wait": 0.0, "compute": 0.0, "write": 0.0}
    want = UnitTimes(time=5.0, rows=10.0, rows_per_second=2.5, unit="a", seconds=spent)
    assert telemetry.read(str(tmp_path / "_run.jsonl")) == [want]
    assert telemetry.read(str(tmp_path / "none")) == []


def test_a_run_of_one_process_with_units_missing_fails(tmp_path):
    output = open_output(str(tmp_path / "out"), plan=RunPlan(command="x"), units=["a", "b"])
    output.complete("a", {"a.txt": b"1"}, {})
    with pytest.raises(StorageError, match=r"1 of 2 units are missing at the end of the run \(b for one\)"):
        output.finish(lambda receipts: {})
    assert output.finish(lambda receipts: {}, parallel.Share(0, 2)) is None
