"""The `>>>` examples of the package run, and every public function has one."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "clipdata_jax").rglob("*.py"))
}


def examples(name: str) -> list[doctest.DocTest]:
    """The docstrings with examples, from the source: what jit and other wrappers hide is found there."""
    path, known = MODULES[name], vars(importlib.import_module(name))
    parser, found = doctest.DocTestParser(), []
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.get_docstring(node, clean=False) if isinstance(node, DOCUMENTED) else None
        if text and ">>>" in text:
            line = node.body[0].lineno - 1
            found.append(parser.get_doctest(text, dict(known), getattr(node, "name", path.stem), str(path), line))
    return found


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if ">>>" in path.read_text()])
def test_examples_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runner, failures = doctest.DocTestRunner(), []
    for test in examples(name):
        runner.run(test, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("package", ["", "scores", "models", "training", "evaluation"])
def test_every_public_function_has_an_example(package: str):
    module = importlib.import_module(".".join(["clipdata_jax", package]).rstrip("."))
    names = getattr(module, "__all__", vars(module))
    public = {name: inspect.unwrap(getattr(module, name)) for name in names if not name.startswith("_")}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    assert functions
    assert [name for name, function in functions.items() if ">>>" not in (function.__doc__ or "")] == []
