"""What files say is data: nothing here can run code from one, or write where one says."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

import clipdata_jax
from clipdata_jax.runtime import console

ROOT = Path(clipdata_jax.__file__).parent
_RUN_CODE = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch", "yaml", "code"}
_CALLS = {"eval", "exec", "extract", "extractall", "unpack_archive", "system", "run_path", "literal_eval"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ((node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")), node)


def wrong(source: str) -> set[str]:
    """What in a file could run code that data brings, or write files that it names."""
    tree = ast.parse(source)
    found = set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        found |= {name.partition(".")[0] for name in names} & _RUN_CODE
    for name, call in calls(tree):
        options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        of_numpy = ast.unparse(call.func) in ("np.load", "numpy.load")
        if name in _CALLS or (of_numpy and options.get("allow_pickle", True) is not False):
            found.add(ast.unparse(call.func))
    return found


def test_only_config_files_are_code():
    found = {str(path.relative_to(ROOT)): wrong(path.read_text("utf-8")) for path in ROOT.rglob("*.py")}
    assert {name: what for name, what in found.items() if what} == {"config/run.py": {"runpy.run_path"}}


@pytest.mark.parametrize(
    "source",
    ["np.load(f)", "np.load(f, allow_pickle=True)", "import pickle", "from torch import load", "tar.extract(m)"],
)
def test_the_check_finds_what_it_looks_for(source):
    assert wrong(source)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07\x9b1m\x7f", r"\x1b[2J\x07\x9b1m\x7f"),
        ("gpj.\u202eexe\u200b", r"gpj.\u202eexe\u200b"),
        ("\udc80 \ud800", r"\udc80 \ud800"),
        ("één 一 ½ 30\u202f% —\tx\ny", "één 一 ½ 30\u202f% —\tx\ny"),
        ("100%|███", "100%|███"),
    ],
)
def test_a_terminal_shows_strangers_text_and_does_not_obey_it(text, shown, monkeypatch):
    assert console.printable(text) == shown
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    with console.all_printable():
        print(text)
        bar = console.bar(total=2, unit="pair", name=f"bar {text}")
        bar.update(2)
        bar.close()
    assert out.getvalue() == f"{shown}\n"
    assert "\x1b" not in err.getvalue()
    assert "\x07" not in err.getvalue()


def test_errors_and_summaries_show_control_characters(clipdata, tmp_path):
    evil = "\x1b]0;owned\x07"
    done = clipdata("reshard", f"tars{evil}", "--subset", f"{evil}.npy", "--out", "out")
    assert done.returncode == 2
    assert r"\x1b]0;owned\x07" in done.stderr
    assert all(char.isprintable() or char == "\n" for char in done.stdout + done.stderr)
