"""`clipdata run`: all steps of a config file in order, each continued where it was stopped; one table at the end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from clipdata_jax import config, storage
from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.runs import manifest, records
from clipdata_jax.runs.records import Manifest
from clipdata_jax.runtime import console

_INPUTS = "_inputs.json"
_COUNTS = ("kept", "written", "rows", "pairs", "uids")


@dataclasses.dataclass(frozen=True)
class StepResult:
    """A step that is done.

    Attributes:
      step: the command.
      was_complete: whether nothing was left to do.
      out: what it made; None if nothing.
      rows: pairs or rows of that; None if the command counts none.
      seconds: that it took.
    """

    step: str
    was_complete: bool
    out: str | None
    rows: int | None
    seconds: float


def run(options: config.RunSteps, call: Callable[[str, Any], Any]) -> list[StepResult]:
    """Runs the steps; prints a table of them at the end, after an error too.

    Args:
      options: the config file.
      call: runs a command, given its name and options; returns what it made.

    Raises:
      InputError: the file is wrong, or a step's input is; `facts` has the steps before it.
      StorageError: likewise, of a step.
    """
    whole = config.load_run(options.config)
    fields = [(field.name, getattr(whole, field.name)) for field in dataclasses.fields(whole)]
    steps = [(name.replace("_", "-"), chosen) for name, chosen in fields if chosen is not None]
    if not steps:
        raise InputError(f"{options.config}: its Run sets no command, so there is nothing to do")
    done: list[StepResult] = []
    try:
        for number, (name, chosen) in enumerate(steps, start=1):
            print(f"{'' if number == 1 else chr(10)}[{number} of {len(steps)}] clipdata {name}", flush=True)
            done.append(_run_step(name, chosen, call))
    except (InputError, StorageError) as error:
        failed = steps[len(done)][0]
        print(f"\n{_table(done, [name for name, _ in steps[len(done) :]])}")
        if isinstance(error, StorageError):
            raise StorageError(f"{failed}: {error}") from error
        raise InputError(f"{failed}: {error}", **error.facts, steps=done) from error
    print(f"\n{_table(done, [])}")
    return done


def _run_step(name: str, options: Any, call: Callable[[str, Any], Any]) -> StepResult:
    start, out = time.monotonic(), getattr(options, "out", None) or ""
    single = hasattr(options, "overwrite") and out != ""  # the others know by their units what is done
    record = _record(name, options) if single else b""
    if single and _is_recorded(out, record):
        print(f"Already complete: {out}")
        return StepResult(name, True, out, _rows(records.read(Manifest, manifest.beside(out))), _since(start))
    before = _finished(out)
    made = call(name, options)
    if single and storage.exists(manifest.beside(out)):
        storage.write_bytes(storage.beside(out, _INPUTS), _with_output(record, out))
    return StepResult(name, bool(before) and before == _finished(out), out or None, _rows(made), _since(start))


def _since(start: float) -> float:
    return round(time.monotonic() - start, 1)


def _finished(out: str) -> str:
    """The fingerprint of the manifest of a folder of results; "" if it isn't finished."""
    path = storage.join(out, storage.MANIFEST) if out and storage.is_folder(out) else ""
    return storage.fingerprint(path) if path and storage.exists(path) else ""


def _record(name: str, options: Any) -> bytes:
    """All that decides the output of a command that writes one file: options, versions, and how its inputs stand."""
    plan = manifest.describe(name, options)
    texts = set(_texts(dataclasses.asdict(options)))
    inputs = {path: _standing(path) for path in sorted(texts - {options.out}) if _exists(path)}
    return records.to_json({"options": plan.options, "versions": plan.facts["versions"], "inputs": inputs})


def _texts(value: object) -> Iterator[str]:
    """The words of options that may be paths: whole, after a name and =, in quotes within a rule, or by a pattern."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
    if isinstance(value, str):
        whole = [value, value.partition("=")[2], *re.findall(r"[\"']([^\"']+)[\"']", value)]
        yield from filter(None, whole)
        if any(char in value for char in "*?[{"):
            try:
                yield from storage.expand(value)
            except InputError:  # no pattern, or one of no file
                return


def _exists(path: str) -> bool:
    try:
        return storage.exists(path)
    except (InputError, OSError, ValueError):  # no path at all
        return False


def _standing(path: str) -> str:
    return hashlib.sha256(storage.fingerprint(path).encode()).hexdigest()


def _with_output(record: bytes, out: str) -> bytes:
    return records.to_json({**json.loads(record), "output": [_standing(out), _standing(manifest.beside(out))]})


def _is_recorded(out: str, record: bytes) -> bool:
    """Whether a file was made by a step with this record, and is as it was then."""
    path = storage.beside(out, _INPUTS)
    if not all(map(storage.exists, (path, out, manifest.beside(out)))):
        return False
    return storage.read_bytes(path) == _with_output(record, out)


def _rows(made: object) -> int | None:
    """The number of rows or pairs that a command says it made."""
    facts: Any = made.facts if isinstance(made, Manifest) else made
    found = facts if isinstance(facts, dict) else getattr(facts, "__dict__", {})
    return next((found[name] for name in _COUNTS if isinstance(found.get(name), int)), None)


def _table(done: list[StepResult], left: list[str]) -> str:
    rows = [("step", "", "rows", "seconds", "output")]
    for one in done:
        state = "already complete" if one.was_complete else "done"
        rows.append((one.step, state, "" if one.rows is None else f"{one.rows:,}", f"{one.seconds:.1f}", one.out or ""))
    rows += [(name, "failed" if not number else "not begun", "", "", "") for number, name in enumerate(left)]
    return console.table(rows, left=(0, 1, -1))
