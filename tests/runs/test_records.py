"""Records of a run: written and read back the same, and refused where they are something else."""

import json

import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.runs import records
from clipdata_jax.runs.records import FileEntry, Manifest, Receipt, RunPlan, UnitTimes

FILE = FileEntry("a.tar", 5, "sha256:0", fingerprint="5 1.5")
PLAN = RunPlan(command="x", options={"n": 1}, pool=(FileEntry("a"),), facts={"versions": {}}, units=("u",))
RECORDS = [
    PLAN,
    PLAN.finished({"pool": [FILE.without_fingerprint()], "pairs": 2}, {"u.npz": FileEntry(bytes=3)}),
    Receipt(
        unit="u",
        files={"u.npz": FileEntry(bytes=0, digest="sha256:1")},
        facts={"pairs": 2},
        inputs=(FILE, FileEntry("b", 1, unreadable=True), FileEntry("folder", 7, "sha256:2", files=2)),
        times=UnitTimes(time=1.0, rows=2.0, rows_per_second=3.0, seconds=dict.fromkeys(records.SECONDS, 0.5)),
    ),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_read_as_it_was_written(record, tmp_path):
    (tmp_path / "r.json").write_bytes(records.to_json(record))
    assert records.read(type(record), str(tmp_path / "r.json")) == record


def test_a_manifest_knows_its_pool_better_than_the_plan():
    made = RECORDS[1]
    assert isinstance(made, Manifest)
    assert made.pool == (FileEntry("a.tar", 5, "sha256:0"),)
    assert made.facts == {"versions": {}, "pairs": 2}


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (RunPlan, {"command": None}, "its 'command' is missing, expected text"),
        (RunPlan, {"units": ["a/b"]}, "its 'units' are not a list of plain names"),
        (RunPlan, {"inputs": [3]}, "a file's entry is 3, expected an object"),
        (RunPlan, {"inputs": [{"name": "a", "bytes": True}]}, "its 'bytes' is True, expected a whole number"),
        (Manifest, {}, "its 'outputs' is missing, expected an object"),
        (Manifest, {"outputs": {"a": {}}}, "its 'bytes' is missing, expected a whole number"),
        (Receipt, {"unit": "u", "files": []}, r"its 'files' is \[\], expected an object"),
    ],
)
def test_a_wrong_field_is_named(kind, change, words, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({**json.loads(records.to_json(PLAN)), **change}))
    with pytest.raises(InputError, match=rf"r\.json: {words}"):
        records.read(kind, str(tmp_path / "r.json"))


@pytest.mark.parametrize("data", [b"", b"[" * 9999, b"\xff", b"[]"])
def test_other_files_are_refused(data, tmp_path):
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(InputError, match=r"r\.json: "):
        records.read(RunPlan, str(tmp_path / "r.json"))
