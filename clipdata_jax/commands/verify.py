"""`clipdata verify`: outputs against their receipts, manifests and inputs. Imports no jax."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from clipdata_jax import config, storage
from clipdata_jax.embedding import single_file
from clipdata_jax.errors import InputError
from clipdata_jax.runs import manifest, verify
from clipdata_jax.runs.verify import Check, Checked, CheckedRun
from clipdata_jax.runtime import console, threads

_Key: TypeAlias = tuple[tuple[str, ...], int | None, str | None]


def run(options: config.Verify) -> list[CheckedRun]:
    """Checks outputs; prints a line for each problem and one for each run.

    Raises:
      InputError: something is wrong with one of them, or it was not written by a command of ours.
    """
    found = [_open(path, options) for path in options.runs]
    # A file that several runs name in the same way is read once.
    checks = {_key(check): check for one in found for check in _checks(one)}
    checked = dict(zip(checks, _check_all(list(checks.values()), options.threads), strict=True))
    problems = [problem for one in found for problem in one.problems]
    problems += [one.problem for one in checked.values() if one.problem is not None]
    lines = [f"{problem.kind}: {problem.path}: {problem.text}" for problem in problems]
    lines += [_summary_line(one, checked) for one in found]
    print("\n".join(map(console.printable, lines)))
    if problems:
        missing = any(checked[_key(check)].is_missing for one in found for check in filter(None, one.inputs.values()))
        advice = "; where inputs were moved, say so: --moved FROM=TO" if missing else ""
        first = lines[0] if len(problems) == 1 else f"the first: {lines[0]}"
        listed = [dataclasses.asdict(problem) for problem in problems]
        raise InputError(f"{console.counted(len(problems), 'problem')} found; {first}{advice}", problems=listed)
    return found


def _key(check: Check) -> _Key:
    return check.paths, check.entry.bytes, check.entry.digest


def _checks(one: CheckedRun) -> list[Check]:
    return [*one.checks, *filter(None, one.inputs.values())]


def _open(path: str, options: config.Verify) -> CheckedRun:
    path = (path.rstrip("/") or path).removesuffix(manifest.beside(""))
    parts = single_file.parts_folder(path)
    unfinished = single_file.is_file(path) and not storage.exists(path) and storage.is_folder(parts)
    run = CheckedRun(parts if unfinished else path, options.pool, options.stores, options.moves())
    at = storage.Folder(run.path)
    if at.is_folder() and not at.exists(storage.PLAN):
        raise InputError(f"{at}: holds no {storage.PLAN}; expected a folder that a command of ours filled")
    if at.is_folder():
        verify.read_folder(run)
    elif storage.exists(manifest.beside(path)):
        verify.read_file(run)
    elif at.exists():
        raise InputError(f"{path}: no {manifest.beside(path)} beside it, so there is nothing to compare it with")
    else:
        raise InputError(f"{path}: no such file or folder; check the path")
    return run


def _check_all(checks: Sequence[Check], how_many: int) -> list[Checked]:
    """Checks files, several at a time; in order."""
    found: list[Checked] = []
    with console.bar(total=sum(map(Check.bytes_to_read, checks)), unit="B", name="verify") as bar:
        several = how_many or 2 * threads.cores()
        for check, checked in zip(checks, threads.prefetch(Check.run, checks, threads=several), strict=True):
            found.append(checked)
            bar.update(check.bytes_to_read())
    return found


def _summary_line(one: CheckedRun, checked: Mapping[_Key, Checked]) -> str:
    """The progress of the run, and its files by how they were compared."""
    count, done = one.units
    parts = [f"{one.path}: {one.command}"]
    if count:
        rest = "" if done == count else ": not finished"
        parts.append(f"{done:,} of {console.counted(count, 'unit')} done{rest}")
    parts.append(_compared(one.checks, "part" if count else "file"))
    if inputs := list(filter(None, one.inputs.values())):
        where = collections.Counter(_where(check, checked[_key(check)].path) for check in inputs)
        found = ", ".join(f"{count:,} {text}" for text, count in where.items() if text)
        parts.append(f"of its inputs {_compared(inputs, 'file')}{f' ({found})' if found else ''}")
    bad = len(one.problems) + sum(checked[_key(check)].problem is not None for check in _checks(one))
    return ", ".join([*parts, console.counted(bad, "problem") if bad else "all good"])


def _where(check: Check, path: str) -> str:
    """How an input was found, where there are two ways."""
    if len(check.paths) < 2:
        return ""
    return "by the path from the output" if path == check.paths[0] else "by the absolute path"


def _compared(checks: Sequence[Check], noun: str) -> str:
    entries = [check.entry for check in checks]
    counts = {
        "compared by digest": sum(entry.digest is not None for entry in entries),
        "by size alone": sum(entry.digest is None and entry.bytes is not None for entry in entries),
        "by name alone": sum(entry.digest is None and entry.bytes is None for entry in entries),
    }
    texts = [f"{console.counted(count, noun)} {how}" for how, count in counts.items() if count]
    return " and ".join(texts or [f"{console.counted(0, noun)} compared by digest"])
