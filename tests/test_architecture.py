"""The shape of the package: imports go one way, importing it is light, the command says what it can do."""

from __future__ import annotations

import ast
import collections
import importlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

import clipdata_jax
from clipdata_jax import cli, config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clipdata_jax"
# The line of docs/architecture.md: each package may import what stands to the left of it, and itself.
(ORDER,) = re.findall(r"^errors <- .*$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
LEVELS = [level.split(", ") for level in ORDER.split(" <- ")]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported_modules(module: str) -> set[str]:
    """The modules of the package that a module imports, wherever in its code."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{name.name}" for name in node.names]
            found |= {name if name in MODULES else node.module or "" for name in names}
    return {name for name in found & MODULES.keys() if name not in ("clipdata_jax", module)}


def package_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module):
    imported = imported_modules(module)
    if module == "clipdata_jax":
        assert not imported, "the package's __init__ resolves names lazily"
        return
    own = package_of(module)
    (level,) = [index for index, packages in enumerate(LEVELS) if own in packages]
    allowed = {own}.union(*LEVELS[:level])
    assert {package_of(name) for name in imported} <= allowed


def test_no_imports_form_a_cycle():
    graph = {module: imported_modules(module) for module in MODULES}
    # Importing a.b runs a/__init__.py, which may import a.c: these two don't depend on each other.
    graph |= {module: set() for module in MODULES if MODULES[module].name == "__init__.py"}
    assert not [" -> ".join(cycle) for cycle in _cycles(graph)]


def _cycles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Chains of modules that import each other."""
    done: set[str] = set()

    def visit(module: str, chain: list[str]) -> Iterator[list[str]]:
        if module in chain:
            yield [*chain[chain.index(module) :], module]
        elif module not in done:
            for name in sorted(graph[module]):
                yield from visit(name, [*chain, module])
            done.add(module)

    for module in graph:
        yield from visit(module, [])


def repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in collections.Counter(names).items() if count > 1]


def test_names_of_classes_and_modules_occur_once():
    nodes = (node for path in MODULES.values() for node in ast.walk(ast.parse(path.read_text())))
    assert not repeated(node.name for node in nodes if isinstance(node, ast.ClassDef))
    # Files of commands/ are named after the commands.
    outside = (path for path in MODULES.values() if path.parent.name != "commands" and path.name != "__init__.py")
    assert not repeated(path.name for path in outside)


def test_modules_and_folders_stay_small():
    assert not [path for path in MODULES.values() if len(path.read_text().splitlines()) > 500]
    folders = collections.Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert not [folder for folder, count in folders.items() if count > 20]


def test_a_config_file_sets_the_options_of_every_command():
    fields = get_type_hints(config.Run)
    assert {name.replace("_", "-") for name in fields} == set(cli.COMMANDS) - {"plan", "run"}
    for name, kind in fields.items():
        assert kind == cli.COMMANDS[name.replace("_", "-")].options_class | None


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_no_process_that_a_test_starts_can_make_it_wait_for_ever(path):
    for call in ast.walk(ast.parse(path.read_text())):
        words = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if words in ("subprocess.run", "subprocess.check_call", "subprocess.check_output"):
            assert "timeout" in [option.arg for option in call.keywords], f"line {call.lineno}: give a timeout"
        if words == "subprocess.Popen":
            assert path.name == "processes.py", f"line {call.lineno}: use support.processes.started"


def run_python(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS",)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_neither_jax_nor_numpy():
    assert (
        run_python("import sys, clipdata_jax; print('jax' in sys.modules, 'numpy' in sys.modules)") == "False False\n"
    )


def test_importing_every_module_touches_no_device():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    code = f"""
import importlib
for name in {modules!r}: importlib.import_module(name)
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())"""
    assert run_python(code) == "False\n"


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_reads_like_documentation_and_loads_no_jax(command):
    code = f"""
import sys
from clipdata_jax.cli import main
try:
    main([{command!r}, "--help"])
except SystemExit as stop:
    assert not stop.code, stop.code
assert not {{"jax", "flax", "transformers"}} & set(sys.modules), "heavy imports"
"""
    text = run_python(code)
    assert f"usage: clipdata {command}" in text
    assert f"Example: clipdata {command}" in text
    assert "--config" in text
    assert "None" not in text
    assert text.count("efault:") == text.count("(default:")
    assert max(len(line) for line in text.splitlines() if not line.startswith(("Example:", "usage:"))) <= 80


def test_help_of_an_option_is_one_line_of_source():
    """A second line is shown as a line of its own, in the middle of a sentence."""
    for path in (PACKAGE / "config").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for option, told in itertools.pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
                if isinstance(option, ast.AnnAssign) and isinstance(told, ast.Expr):
                    assert told.lineno == told.end_lineno, f"{path}:{told.lineno}"


def test_sets_of_uids_need_no_jax(tmp_path):
    code = f"""
import sys
from clipdata_jax.cli import main
with open({str(tmp_path / "a.txt")!r}, "w") as file: file.write("0" * 32)
assert main(["uids", "union", {str(tmp_path / "a.txt")!r}, "--out", {str(tmp_path / "b.npy")!r}]) == 0
assert main(["uids", "verify", {str(tmp_path / "b.npy")!r}]) == 0
assert not {{"jax", "flax", "transformers"}} & set(sys.modules), "heavy imports"
"""
    assert "good: 1 uid, sorted, unique" in run_python(code)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "usage: clipdata COMMAND"),
        (["--help"], 0, "embed -> score -> select -> reshard"),
        (["--version"], 0, f"clipdata {clipdata_jax.__version__}"),
        (["weigh"], 2, "unknown command 'weigh'; choose from embed, "),
        (["score", "pool", "--out", "x", "--nonsense"], 2, "nonsense"),
        (["score", "pool", "--out=x", "--target", "a=b", "--target=c=d"], 2, "--target is given 2 times"),
        (["score", "--config"], 2, "--config needs a file"),
        (["score", "--config", "missing.py"], 2, "--config missing.py: can't be read"),
        (["score", "--config", "empty.py"], 2, "has no function get_config()"),
        (["score", "--config", "wrong.py"], 2, "returned int, expected a config.Run"),
        (["embed", "--config", "score.py"], 2, "its Run has no options for embed"),
        (["score", "--config", "."], 2, "--config .: is a folder"),
        (["score", "--config", "typo.py"], 2, "--config typo.py: can't be run (expected ':'"),
    ],
)
def test_usage(tmp_path, clipdata, arguments, status, words):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "typo.py").write_text("def get_config() return 3")
    (tmp_path / "wrong.py").write_text("def get_config(): return 3")
    (tmp_path / "score.py").write_text(
        "from clipdata_jax.config import *\ndef get_config(): return Run(score=Score(pool='nowhere', out='x'))"
    )
    done = clipdata(*arguments)
    assert done.returncode == status
    assert words in done.stdout + done.stderr
    assert "--config file)" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["select", "--help"]])
def test_a_reader_that_is_gone_is_no_failure(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-W", "error", "-m", "clipdata_jax", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_config_file_sets_all_options_and_flags_override_it(tmp_path, clipdata):
    (tmp_path / "score.py").write_text(
        "from clipdata_jax.config import *\n"
        "def get_config(): return Run(score=Score(pool='nowhere', out='x', neg_clip_loss=NegClipLoss(repeats=7)))"
    )
    assert "nowhere: no such folder" in clipdata("score", "--config", "score.py").stderr
    assert "--repeats is 0" in clipdata("score", "--config=score.py", "--repeats", 0).stderr
    text = " ".join(clipdata("score", "--config", "score.py", "--help").stdout.replace("│", " ").split())
    assert "(default: 7)" in text
    assert "(default: nowhere)" in text


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.name)
def test_every_config_is_well_formed(path):
    import runpy

    from clipdata_jax.config import Run

    run = runpy.run_path(str(path))["get_config"]()
    assert isinstance(run, Run)
    assert any(vars(run).values())


@pytest.mark.parametrize("package", ["", "models", "training"])
def test_public_names_resolve_and_match_their_stub(package):
    module = importlib.import_module(f"clipdata_jax.{package}".rstrip("."))
    stub = ast.parse((PACKAGE / package / "__init__.pyi").read_text())
    typed = {name.name for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert typed == set(module.__all__) - {"__version__"}
    assert all(getattr(module, name).__doc__ or name.isupper() for name in typed)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018
