"""What setup.cfg declares is what the two files of constraints let the tests run with."""

from __future__ import annotations

import configparser
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN_TIME = ["s3", "gs", "http", "siglip", "filters", "tfds", "tensorboard"]


@pytest.fixture(scope="module")
def floors() -> dict[str, str]:
    """Name of each package that the library and its extras need -> the oldest version allowed."""
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    extras = declared["options.extras_require"]
    lines = [declared["options"]["install_requires"], *(extras[name] for name in [*RUN_TIME, "test"])]
    found = re.findall(r"^([\w-]+)(?:\[\w+\])? >= ([\d.]+)$", "\n".join(lines), re.MULTILINE)
    assert len(found) == sum(len(text.split("\n")) - 1 for text in lines)
    return dict(found)


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split(" ;")[0].strip().split("==") for line in lines)


def test_the_oldest_versions_are_tested(floors):
    oldest = pinned("constraints-lowest.txt")
    assert {name: re.sub(r"(\.0)+$", "", oldest[name]) for name in floors} == {
        name: re.sub(r"(\.0)+$", "", version) for name, version in floors.items()
    }


def test_every_extra_of_an_accelerator_has_the_same_floor(floors):
    text = (ROOT / "setup.cfg").read_text()
    assert re.findall(r"^    jax\[(\w+)\] >= (.*)$", text, re.MULTILINE) == [
        (extra, floors["jax"]) for extra in ("cuda12", "cuda13", "tpu")
    ]
    assert f"jax {floors['jax']} or newer" in (ROOT / "docs" / "installation.md").read_text()


@pytest.mark.parametrize(
    ("installed", "extra", "wanted"),
    [
        ({}, "", ["DIR"]),
        ({}, "cuda13", ["DIR[cuda13]"]),
        ({"jax": "0.9.0", "jaxlib": "0.9.0"}, "", ["DIR", "jax==0.9.0", "jaxlib==0.9.0"]),
        ({"jax": "0.9.0", "jaxlib": "0.9.0"}, "cuda12", ["DIR[cuda12]", "jax==0.9.0", "jaxlib==0.9.0"]),
        (  # as Colab comes
            {"jax": "0.7.2", "jaxlib": "0.7.2", "jax-cuda12-plugin": "0.7.2"},
            "cuda12",
            ["DIR", "jax==0.7.2", "jaxlib==0.7.2"],
        ),
        (  # a plugin that another jax has left behind
            {"jax": "0.9.0", "jaxlib": "0.9.0", "jax-cuda12-plugin": "0.7.2"},
            "cuda12",
            ["DIR[cuda12]", "jax==0.9.0", "jaxlib==0.9.0"],
        ),
        ({"jax": "0.9.0", "jaxlib": "0.9.0", "libtpu": "0.0.30"}, "tpu", ["DIR", "jax==0.9.0", "jaxlib==0.9.0"]),
        ({"jax": "0.9.0", "jaxlib": "0.9.0"}, "tpu", ["DIR[tpu]", "jax==0.9.0", "jaxlib==0.9.0"]),
    ],
)
def test_a_notebook_keeps_the_runtimes_jax(installed, extra, wanted):
    script = runpy.run_path(str(ROOT / "notebooks" / "install.py"))
    assert script["requirements"]("DIR", installed, extra) == wanted
    assert script["accelerator"]() in ("", "cuda12", "cuda13", "tpu")
    assert script["installed"]()["jax"]
