"""`clipdata verify`: outputs against their receipts, manifests and inputs. Imports no jax."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from clipdata_jax import config, storage
from clipdata_jax.embedding import single_file
from clipdata_jax.errors import InputError
from clipdata_jax.runs import manifest
from clipdata_jax.runs.records import Check, Problem, Run
from clipdata_jax.runs.verify import open_file, open_folder
from clipdata_jax.runtime import console, threads
from clipdata_jax.runtime.console import printable


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was looked at, and what is wrong with it."""

    runs: tuple[Run, ...]
    problems: tuple[Problem, ...]


def run(options: config.Verify) -> Summary:
    """Checks outputs; prints a line for each problem and one for each run.

    Raises:
      InputError: something is wrong with one of them, or it is no output of ours.
    """
    found = [_open(path, options) for path in options.runs]
    checks = list(
        {(check.path, check.digest, check.bytes): check for one in found for check in _all(one)}.values()
    )
    wrong = _check_all(checks, options.threads)
    problems = [*(problem for one in found for problem in one.problems), *wrong]
    for problem in problems:
        print(printable(f"{problem.kind}: {problem.path}: {problem.text}"))
    for one in found:
        print(printable(_text(one, {problem.path for problem in wrong})))
    if problems:
        raise InputError(f"{console.counted(len(problems), 'problem')} found, listed above")
    return Summary(tuple(found), tuple(problems))


def _open(path: str, options: config.Verify) -> Run:
    inputs, digests = options.pool != "no", options.pool == "digest"
    path = (path.rstrip("/") or path).removesuffix(f".{manifest.NAME}")
    parts = single_file.parts_folder(path)
    folder = (
        parts if single_file.is_file(path) and not storage.exists(path) and storage.is_folder(parts) else path
    )
    if storage.is_folder(folder):
        if not storage.exists(storage.join(folder, storage.PLAN)):
            raise InputError(
                f"{folder}: holds no {storage.PLAN}; expected a folder that a command of ours filled"
            )
        return open_folder(folder, inputs=inputs, digests=digests, stores=options.stores)
    if storage.exists(f"{path}.{manifest.NAME}"):
        return open_file(path, inputs=inputs, digests=digests, stores=options.stores)
    if storage.exists(path):
        raise InputError(
            f"{path}: no {path}.{manifest.NAME} beside it, so there is nothing to compare it with"
        )
    raise InputError(f"{path}: no such file or folder; check the path")


def _all(one: Run) -> list[Check]:
    return [*one.checks, *one.inputs]


def _check_all(checks: Sequence[Check], how_many: int) -> list[Problem]:
    """What is wrong with files, in order; several are read at a time."""
    found: list[Problem] = []
    total = sum(_to_read(check) for check in checks)
    with console.bar(total=total, unit="B", name="verify") as bar:
        several = how_many or 2 * threads.cores()
        for check, problem in zip(checks, threads.in_order(_check, checks, several), strict=True):
            found += [] if problem is None else [problem]
            bar.update(_to_read(check))
    return found


def _to_read(check: Check) -> int:
    return 0 if check.digest is None else check.bytes or 0


def _check(check: Check) -> Problem | None:
    """What is wrong with a file: whether it is there, its size, its digest, its contents, in this order."""
    try:
        if not storage.exists(check.path):
            return Problem("missing", check.path, "no such file")
        if not _is_regular(storage.Folder(check.path)):
            return Problem("refused", check.path, "is no regular file; not opened")
        text = _differs(check)
    except (InputError, OSError, ValueError) as error:
        text = str(error).removeprefix(f"{check.path}: ")
    return Problem(check.wrong, check.path, text) if text else None


def _is_regular(at: storage.Folder) -> bool:
    return not at.is_local or os.path.isfile(at.inner) or os.path.isdir(at.inner)


def _differs(check: Check) -> str:
    if storage.is_folder(check.path):
        found = manifest.file_entry(check.path)
        size, digest = found["bytes"], found["digest"]
    else:
        size, digest = storage.size(check.path), None
    if check.bytes is not None and size != check.bytes:
        return f"{size:,} bytes, recorded are {check.bytes:,}"
    if check.digest is not None and (digest or storage.digest(check.path)) != check.digest:
        return "its digest is not the recorded one"
    return check.look() if check.look is not None else ""


def _text(one: Run, wrong: set[str]) -> str:
    """The run in a line: how far it is done, what was compared how."""
    count, done = one.units
    parts = [f"{one.path}: {one.command}"]
    if count:
        rest = "" if done == count else ": not finished"
        parts.append(f"{done:,} of {console.counted(count, 'unit')} done{rest}")
    parts.append(_compared(one.checks, "part" if count else "file"))
    if one.inputs:
        parts.append(f"of its inputs {_compared(one.inputs, 'file')}")
    bad = len(one.problems) + sum(check.path in wrong for check in _all(one))
    return ", ".join([*parts, console.counted(bad, "problem") if bad else "all good"])


def _compared(checks: Sequence[Check], noun: str) -> str:
    by_digest = sum(check.digest is not None for check in checks)
    rest = len(checks) - by_digest
    told = [f"{console.counted(by_digest, noun)} compared by digest"] if by_digest or not rest else []
    by_size = sum(check.digest is None and check.bytes is not None for check in checks)
    told += [f"{console.counted(by_size, noun)} by size alone"] if by_size else []
    by_name = rest - by_size
    return " and ".join([*told, *([f"{console.counted(by_name, noun)} by name alone"] if by_name else [])])
