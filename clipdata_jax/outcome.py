"""What a command made, as plain JSON for scripts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from clipdata_jax.runs.records import FileEntry, Manifest

_MOST = 100
"""Entries of a list or mapping that are shown; the manifest has all of them."""


def facts_of(made: object) -> object:
    """The facts of what a command returned: of a manifest those besides options, inputs and outputs."""
    return plain(made.facts if isinstance(made, Manifest) else made)


def plain(value: object) -> Any:
    """A value as JSON has it; long lists and mappings are cut, and numbers that JSON lacks become text.

    >>> plain({"pairs": 3, "share": math.inf, "files": tuple(range(200))})["share"]
    'inf'
    >>> plain(list(range(200)))[-2:]
    [99, '... and 100 more']
    """
    if isinstance(value, FileEntry):
        return plain(value.to_json())
    if hasattr(value, "to_facts"):
        return plain(value.to_facts())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if hasattr(value, "tolist"):  # of NumPy
        return plain(value.tolist())
    if isinstance(value, dict):
        rest = len(value) - _MOST
        found = {str(name): plain(one) for name, one in list(value.items())[:_MOST]}
        return found if rest <= 0 else {**found, "...": f"and {rest:,} more"}
    if isinstance(value, (list, tuple, set, frozenset)):
        rest = len(value) - _MOST
        return [*map(plain, list(value)[:_MOST]), *([f"... and {rest:,} more"] if rest > 0 else [])]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
