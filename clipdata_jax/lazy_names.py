"""Names of a package that are resolved when first used (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the functions `__getattr__` and `__dir__` of a package.

    Args:
      package: its `__name__`.
      home: public name -> the module of the package that has it.

    Returns:
      `__getattr__`, which imports the module of a name and raises AttributeError for other names, and `__dir__`.

    >>> resolve, names = lazy_names("clipdata_jax", {"InputError": "errors"})
    >>> resolve("InputError").__module__, names()
    ('clipdata_jax.errors', ['InputError'])
    """

    def resolve(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    return resolve, lambda: sorted(home)
