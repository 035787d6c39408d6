"""Hints to install an extra fit how the package was installed."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipdata_jax import errors

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("recorded", "hint"),
    [
        ({"url": "file:///a b", "dir_info": {"editable": True}}, "pip install -e '/a b[s3]'"),
        ({"url": f"file://{ROOT}", "dir_info": {}}, f"pip install '{ROOT}[s3]'"),
        ({"url": "file:///gone", "dir_info": {}}, "pip install '.[s3]'"),
        (
            {"url": "https://x.org/c", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            "pip install 'clipdata_jax[s3] @ git+https://x.org/c'",
        ),
        (
            {"url": "file:///w/c.whl", "archive_info": {}},
            "pip install 'clipdata_jax[s3] @ file:///w/c.whl'",
        ),
        (None, f"pip install '{ROOT}[s3]'"),
    ],
)
def test_the_hint_is_the_command_for_the_source(monkeypatch, recorded, hint):
    text = None if recorded is None else json.dumps(recorded)
    found = SimpleNamespace(read_text=lambda name: text)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    assert errors.install_extra("s3") == hint
