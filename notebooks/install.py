"""Installs the library from this checkout for a notebook, on Colab for one, and keeps the jax that is there.

A GPU or a TPU that jax can't use yet gets its plugin.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")


def installed() -> dict[str, str]:
    """Returns the versions of jax, jaxlib and jax's plugins, those that are there."""
    versions = {}
    for name in ("jax", "jaxlib", *_PLUGINS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def accelerator() -> str:
    """Returns the extra of the accelerator: "cuda12", "cuda13" or "tpu"; "" where there is none."""
    if glob.glob("/dev/nvidia[0-9]*") or Path("/dev/dxg").exists():
        smi = shutil.which("nvidia-smi")
        shown = subprocess.run([smi], capture_output=True, text=True, check=False).stdout if smi else ""
        driver = re.search(r"CUDA Version: (\d+)", shown)  # the newest CUDA that the driver runs
        return "cuda13" if driver and int(driver[1]) >= 13 else "cuda12"
    return "tpu" if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*") else ""


def requirements(checkout: str, versions: Mapping[str, str], extra: str) -> list[str]:
    """Returns what pip installs.

    Args:
      checkout: the folder of setup.cfg.
      versions: of jax, jaxlib and plugins that are installed.
      extra: of the accelerator, or "".
    """
    # jax passes over a plugin of another version than jaxlib's.
    plugins = [version for name, version in versions.items() if "cuda" in name]
    usable = "libtpu" in versions if extra == "tpu" else versions.get("jaxlib") in plugins
    package = checkout if usable or not extra else f"{checkout}[{extra}]"
    return [package, *[f"{name}=={versions[name]}" for name in ("jax", "jaxlib") if name in versions]]


if __name__ == "__main__":
    wanted = requirements(str(Path(__file__).resolve().parents[1]), installed(), accelerator())
    print("pip install", *wanted)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
    importlib.invalidate_caches()  # the notebook imports the library next
