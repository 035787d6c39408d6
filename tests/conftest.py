"""What all tests share: 8 CPU devices, the folder of shared data, the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Before jax is imported anywhere: the tests run on eight CPU devices.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """`shared("data/cifar10")`: a path in the folder of shared data, or a skip that says what is missing."""
    folder = Path(os.environ.get("CLIPDATA_SHARED", ROOT.parent / "shared"))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"needs {folder / name}; set CLIPDATA_SHARED to the folder that has it")
        return folder / name

    return find


@pytest.fixture
def golden() -> Path:
    """The reference values that belong to the project."""
    return ROOT / "tests" / "golden"


@pytest.fixture
def clipdata(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command in a process of its own, in tmp_path; warnings are errors there too."""

    def run(*arguments: object, devices: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "clipdata_jax.cli", *map(str, arguments)],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
