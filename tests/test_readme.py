"""The README's and the site's examples run, their links lead somewhere, and the site names what there is."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from clipdata_jax.commands import demo
from clipdata_jax.demo import pool

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HUB_ID = "openai/clip-vit-large-patch14"


def code_of_readme(language: str) -> str:
    """The first code block of a language, on the model that ships with the demo."""
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    assert HUB_ID in found[1]
    return found[1].replace(HUB_ID, demo.MODEL)


def test_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 9 * 1024


@pytest.mark.slow
def test_readme_commands_run(tmp_path, clipdata):
    pool.make_pool("pool", pairs=60, seed=0, shards=2)
    pool.make_target("target-images", images=8, seed=0)
    lines = code_of_readme("sh").splitlines()
    assert len(lines) == 6
    for line in lines:
        small = ["--batch-size", 8] if line.startswith("clipdata embed") else []  # per device; eight would pad 2,048
        done = clipdata(*shlex.split(line)[1:], *small)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert len(np.load("subset.npy")) == 12
    assert list(Path("selected").glob("*.tar"))
    assert "</html>" in Path("report.html").read_text()


def test_readme_api_example_runs(tmp_path):
    names = pool.make_target(str(tmp_path), images=3, seed=0)
    given = {
        "jpegs": [Path(name).read_bytes() for name in names],
        "captions": ["a red fish", "a blue boat", "a tree"],
        "target_emb": np.eye(128, dtype=np.float32)[:5],
    }
    exec(code_of_readme("python"), given)
    assert given["s"].shape == given["n"].shape == (3,)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|`[^`<]+ <([^>]+)>`", text)
    links = [one or other for one, other in links]
    named = re.findall(r"`((?:benchmarks|notebooks|configs|clipdata_jax|docs|tests)/[\w./]+)`", text)
    generated = ("docs/_build/", "commands/")
    for link in links:
        if not link.startswith(("http", *generated)):
            assert (page.parent / link).exists(), link
    for name in named:
        if not name.startswith(generated):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    ("module", "pages"), [("__init__.pyi", ["scores", "models"]), ("selection/__init__.py", ["selection"])]
)
def test_api_pages_name_every_public_function(module, pages):
    tree = ast.parse((ROOT / "clipdata_jax" / module).read_text())
    public = {name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    text = "\n".join((ROOT / "docs" / "api" / f"{page}.md").read_text() for page in pages)
    named = set(re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)$", text, re.MULTILINE))
    assert named <= public
    assert {name for name in public if name.islower() or module == "__init__.pyi"} <= named


def test_command_pages_show_every_option(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import command_pages

    text = command_pages.help_text("score")
    page = command_pages.page("score", text)
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text.partition("usage:")[2]))
    assert flags
    assert not [flag for flag in flags if flag not in page]
    assert "`--batch-size INT [INT ...]`\n: " in page
    assert not set("│╭╰─") & set(page)
