"""What all commands share: JSON for scripts, silence, and what is wrong with a command line in one sentence."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from clipdata_jax import cli, outcome, storage
from clipdata_jax.commands import uids as uids_command
from clipdata_jax.formats import score_tables, uids

UIDS = [f"{row:032x}" for row in range(4)]
EXPORT = ["export", "scores", "--out", "x.csv"]


@pytest.fixture
def scores(tmp_path):
    columns = {"clip_score": np.arange(4, dtype=np.float32)}
    storage.write_bytes(str(tmp_path / "scores/0.parquet"), score_tables.part_bytes(uids.from_hex(UIDS), columns))


def json_of(done):
    """The one line of standard output, which is JSON."""
    assert done.stdout.endswith("}\n")
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_json_is_one_object_on_standard_output_and_text_goes_to_standard_error(scores, clipdata):
    done = clipdata("select", "scores", "--rule", "top(clip_score, 0.5)", "--out", "s.npy", "--json")
    found = json_of(done)
    assert 0 <= found.pop("seconds") < 60
    result = found.pop("result")
    assert found == {"command": "select", "status": 0, "out": "s.npy"}
    assert (result["pairs"], result["kept"], result["uids"]) == (4, 2, 2)
    (step,) = result["steps"]
    assert (step["rule"], step["seen"], step["kept"], step["asked"]) == ("top(clip_score, 0.5)", 4, 2, 2)
    assert "kept 2 of 4 pairs" in done.stderr


def test_json_tells_of_errors_too(scores, clipdata):
    for words, error in (
        (["export", "nowhere", "--out", "x.csv"], "nowhere: no such folder"),
        (["export", "scores", "--out", "x.csv", "--tpo", "3"], "unknown option --tpo; did you mean --top?"),
        (["exprot"], "unknown command 'exprot'; did you mean export?"),
        ([], "no command is given"),
    ):
        done = clipdata(*words, "--json")
        found = json_of(done)
        assert (done.returncode, found["status"]) == (2, 2)
        assert error in found["error"]
        assert error in done.stderr or not words
        assert "result" not in found


def test_json_lists_the_problems_that_verify_finds(scores, clipdata, tmp_path):
    assert clipdata(*EXPORT).returncode == 0
    (tmp_path / "x.csv").write_text("else")
    found = json_of(clipdata("verify", "x.csv", "--json", "--quiet"))
    assert [(one["kind"], one["path"]) for one in found["problems"]] == [("damaged", "x.csv")]
    assert found["error"].startswith("1 problem found; damaged: x.csv: 4 bytes, recorded are ")


def test_json_tells_of_a_failure_of_ours_and_of_a_stop(scores, clipdata, monkeypatch, capsys):
    def fail(options):
        raise ZeroDivisionError("boo")

    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(uids_command, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["uids", "stats", "a.npy", "--json"])
    assert json.loads(capsys.readouterr().out)["status"] == 1
    monkeypatch.setattr(uids_command, "run", stop)
    done = clipdata("uids", "stats", "a.npy", "--json")
    assert (done.returncode, json_of(done)["status"]) == (75, 75)
    assert json_of(done)["error"] == "stopped; run the same command again to continue"


def test_quiet_prints_errors_only(scores, clipdata):
    done = clipdata(*EXPORT, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = clipdata("export", "nowhere", "--out", "x.csv", "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("clipdata export: nowhere: no such folder; ")
    done = clipdata(*EXPORT, "--quiet", "--json")
    assert json_of(done)["result"]["rows"] == 4
    assert done.stderr == ""
    done = clipdata(*EXPORT)  # nothing stays silent
    assert "exported 4 of 4 pairs" in done.stdout
    assert "export:" in done.stderr


def test_long_lists_are_cut_and_say_so():
    cut = outcome.plain({"a": list(range(150)), "b": {str(i): i for i in range(150)}, "c": (np.float32(0.5), np.inf)})
    assert cut["a"][100:] == ["... and 50 more"]
    assert (len(cut["b"]), cut["b"]["..."]) == (101, "and 50 more")
    assert cut["c"] == [0.5, "inf"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "embed --model m pool --out x",
            "--model took 'm pool', which leaves no sources; write sources first: ",
        ),
        ("embed --model m pool --out x", "clipdata embed pool --model m --out x"),
        ("embed pool --modle m --out x", "unknown option --modle; did you mean --model? (see clipdata embed --help)"),
        ("score", "clipdata score: missing: FOLDER, --out FOLDER (see clipdata score --help)"),
        ("select s --out x.npy", "clipdata select: missing: --rule STR (see"),
        ("score p --out x --batch-size ab", "--batch-size is 'ab', expected INT [INT ...] (see"),
        ("score p --out x --seed 1.5", "--seed is '1.5', expected INT (see"),
        (
            "score p --out x --scores foo",
            "--scores is 'foo', expected one of clip_score, neg_clip_loss, norm_sim, head (see",
        ),
        ("uids unoin a b --out c.npy", "operation is 'unoin', expected one of union, intersect, minus,"),
        ("export s --out x.csv --top 3", "--top needs 2 values (see"),
        ("export s --out", "--out needs a value (see"),
        ("score p q --out x", "unrecognized options: q (see"),
        ("reshard p --dry-run=yes --subset s --out o", "unrecognized options: yes"),
    ],
)
def test_what_is_wrong_with_a_line_is_one_sentence(clipdata, line, said):
    done = clipdata(*line.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"clipdata {line.split()[0]}: ")


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("export s --out=x.csv --top 3 a", {"top": (3, "a")}),
        ("export --top 3 a s t --out x.csv", {"top": (3, "a"), "scores": ("s", "t")}),
        ("score p --out s --batch_size 8 16", {"pool": "p"}),
        ("embed pool --model a=b c=d --out x", {"sources": ("pool",), "model": ("a=b", "c=d")}),
        ("select s --rule top(a,0.3) --out x.npy --columns c.parquet", {"columns": ("c.parquet",)}),
    ],
)
def test_usual_lines_are_taken(line, given):
    name, *words = line.split()
    options = cli._parse(name, words)
    assert {field: getattr(options, field) for field in given} == given


def test_an_output_file_is_replaced_by_the_same_command_or_where_one_says_so(scores, clipdata, tmp_path):
    def export(*flags):
        return clipdata("export", "scores", "--out", "x.csv", *flags)

    (tmp_path / "x.csv").write_text("mine")
    refused = export()
    assert refused.returncode == 2
    advice = "choose another --out, add --overwrite, or delete the file"
    assert refused.stderr == f"clipdata export: x.csv: already exists and was not written by this command; {advice}\n"
    assert (tmp_path / "x.csv").read_text() == "mine"
    assert export("--overwrite").returncode == 0
    whole = (tmp_path / "x.csv").read_bytes()
    assert whole.count(b"\n") == 5
    assert export().returncode == 0  # the same command again, the flag aside
    other = export("--top", 1, "clip_score")
    assert "already holds the results of another run (--top was " in other.stderr
    assert (other.returncode, (tmp_path / "x.csv").read_bytes()) == (2, whole)
    assert export("--top", 1, "clip_score", "--overwrite").returncode == 0
    assert json.loads((tmp_path / "x.csv.manifest.json").read_text())["rows"] == 1
    (tmp_path / "y.csv").mkdir()
    done = clipdata("export", "scores", "--out", "y.csv", "--overwrite")
    assert done.stderr == "clipdata export: y.csv: is a folder; --out names the file to write\n"


def test_every_command_that_writes_one_file_takes_overwrite():
    takes = {name for name, one in cli.COMMANDS.items() if hasattr(one.options_class, "overwrite")}
    assert takes == {"dedup", "select", "filter", "uids", "report", "export", "evaluate", "compare"}


COMPLETE = """
source completion.bash
complete_words() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
    _clipdata_or_files clipdata "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
    echo "${COMPREPLY[*]}"
}
complete -p clipdata
"""
COMPLETED = {
    "clipdata se": "select",
    "clipdata score --ba": "--batch-size",
    "clipdata score pool --division ''": "group shard",
    "clipdata reshard pool --js": "--json",
    "clipdata norm-sim-d pool --fr": "--fraction",
    "clipdata embed po": "pool.tar",
    "clipdata select scores --out po": "pool.tar",
}


def test_bash_completes_commands_flags_choices_and_files(tmp_path, clipdata):
    done = clipdata("--print-completion", "bash")
    assert done.returncode == 0, done.stderr
    (tmp_path / "completion.bash").write_text(done.stdout)
    (tmp_path / "pool.tar").touch()
    script = COMPLETE + "".join(f"complete_words {words}\n" for words in COMPLETED)
    bash = shutil.which("bash")
    assert bash is not None
    ran = subprocess.run([bash, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines() == ["complete -o filenames -F _clipdata_or_files clipdata", *COMPLETED.values()]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_too(clipdata, shell):
    done = clipdata("--print-completion", shell)
    assert done.returncode == 0, done.stderr
    assert "norm-sim-d" in done.stdout
    assert "or ['__TYRO_COMPLETE_FILES__']" in done.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=done.stdout, text=True, timeout=60, check=True)
    other = clipdata("--print-completion", "csh")
    assert other.stderr == "clipdata: --print-completion is 'csh', expected one of bash, zsh, fish\n"
