"""Errors that end a command with one sentence: bad input, failing storage; and what to do with bad input."""

from __future__ import annotations

import contextlib
import errno
from typing import Literal

OnBad = Literal["stop", "skip"]


class InputError(Exception):
    """Bad usage or bad input: one sentence that names what, where, what was expected and what to do.

    The command prints it without a traceback and exits with status 2.

    Args:
      text: the sentence.
      facts: what `--json` tells of it besides, such as a list of what was found.
    """

    def __init__(self, text: str = "", **facts: object) -> None:
        super().__init__(text)
        self.facts = facts


class StorageError(Exception):
    """The storage failed, nothing is known of what it holds: no corrupt input, so `--on-bad skip` never skips it.

    The command prints it as it does an `InputError`; running the same command again resumes from what was finished.
    """


class StoppedEarly(Exception):
    """The command did the part of its work that `--stop-after` asked for; it ends with status 75.

    Args:
      done: units or steps done by this process.
      todo: units or steps that were left to it.
      noun: "unit" or "step".
    """

    def __init__(self, done: int, todo: int, noun: str = "unit") -> None:
        super().__init__(
            f"stopped after {done:,} of {todo:,} {noun}s as --stop-after says; run the command without it to continue"
        )


_DISK = ("EACCES", "EDQUOT", "EFBIG", "EHOSTDOWN", "EIO", "EMFILE", "ENODEV", "ENOSPC", "ENOTCONN", "EROFS", "ESTALE")


def of_the_disk(error: OSError) -> str:
    """A sentence for what the system says of its disks; "" for any other error."""
    if errno.errorcode.get(error.errno or 0) not in _DISK:
        return ""
    import tempfile

    where = error.filename or f"a file, perhaps a temporary one in {tempfile.gettempdir()} (TMPDIR sets where)"
    return f"{where}: {(error.strerror or str(error)).lower()}; once that is fixed, give the same command again"


def install_extra(extra: str) -> str:
    """Returns the command that installs an extra of this package from where the package itself was installed.

    It never names a package on an index alone, where anybody could take the name; where the source isn't known, it is
    the command for a checkout.
    """
    import importlib.metadata  # these take as long as the rest of the package, for a message that is rare
    import json
    import shlex
    from pathlib import Path

    source: dict[str, object] = {}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        source = json.loads(importlib.metadata.distribution("clipdata_jax").read_text("direct_url.json") or "{}")
    url = str(source.get("url", ""))
    match source:
        case {"dir_info": {"editable": True}}:
            return f"pip install -e {shlex.quote(url.removeprefix('file://') + f'[{extra}]')}"
        case {"vcs_info": {"vcs": str(tool)}}:
            return f"pip install 'clipdata_jax[{extra}] @ {tool}+{url}'"
        case {"archive_info": _}:
            return f"pip install 'clipdata_jax[{extra}] @ {url}'"
    folder = Path(url.removeprefix("file://") or Path(__file__).resolve().parents[1])
    checkout = str(folder) if (folder / "setup.cfg").exists() else "."
    return f"pip install {shlex.quote(f'{checkout}[{extra}]')}"
