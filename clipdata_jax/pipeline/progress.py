"""Progress with rate and time left, in a terminal, a notebook and a log file."""

from __future__ import annotations

import sys
from typing import Any


def bar(*, total: int, unit: str, name: str) -> Any:
    """A tqdm bar to `update(n)`; a log file gets a line every ten seconds rather than a redrawn one."""
    from tqdm.auto import tqdm

    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(
        total=total, unit=unit, unit_scale=True, desc=name, mininterval=0.2 if live else 10.0, leave=True
    )
