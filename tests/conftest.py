"""What all tests share: 8 CPU devices, the folder of shared data, the real command."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before jax is imported anywhere: the tests run on eight CPU devices.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"
# Processes that tests start share what was compiled; most of their time goes there.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Compiling takes most of the tests' time: half of it goes into optimising what runs for milliseconds.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# They compile the package once, not each anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import jax
import jaxtyping
import pytest

# The shapes and types that these modules state are checked at every call that the tests make in this process.
jaxtyping.install_import_hook(
    [
        *(f"clipdata_jax.{name}" for name in ("scores", "models", "training", "embedding.encoder")),
        *(f"clipdata_jax.evaluation.{name}" for name in ("zero_shot", "retrieval", "nearest_candidates", "metrics")),
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int is a float
)

ROOT = Path(__file__).resolve().parents[1]
# jax writes the cache in place: of two processes one may find an entry half written, and compiles it itself.
HALF_WRITTEN = "ignore:Error reading persistent compilation cache entry"


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
def types_unchecked() -> Iterator[None]:
    """Turns the checks of types off, for tests of the errors that users get: their calls are not checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compiles tests without most of LLVM's optimisations, here and in processes that they start.

    Those marked `optimized` get them: they are about exact bits, or errors near float32's own.
    """
    quick = str(int(item.get_closest_marker("optimized") is None))
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != quick:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = quick
        jax.config.update("jax_disable_most_optimizations", quick == "1")
        jax.clear_caches()


@pytest.fixture
def golden() -> Path:
    """The reference values that belong to the project."""
    return ROOT / "tests" / "golden"


@pytest.fixture
def clipdata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command in tmp_path: as a process of its own where `devices` (or the environment) is given.

    Otherwise `main` runs in this process, on the tests' eight devices, which saves starting Python and jax.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, devices: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        command = list(map(str, arguments))
        if devices is None and not environment:
            return _run_here(command)
        flags = {} if devices is None else {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        return subprocess.run(
            [sys.executable, "-W", "error", "-W", HALF_WRITTEN, "-m", "clipdata_jax", *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **flags, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def _run_here(command: list[str]) -> subprocess.CompletedProcess[str]:
    from clipdata_jax.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(command)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())
