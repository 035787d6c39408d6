"""A run's plan described, and the manifest beside every output. Deterministic: no times."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable

from clipdata_jax import storage
from clipdata_jax.runs import records
from clipdata_jax.runs.records import Facts, FileEntry, Manifest, RunPlan

NAME = storage.MANIFEST
# Options that say where and how the work is done, not what comes of it.
_HOW = ("workers", "out", "on_bad", "max_bad_rows", "memory_gb", "processes", "explain", "profile", "stop_after")
_PACKAGES = ("clipdata_jax", "jax", "jaxlib", "flax", "numpy", "pyarrow", "pillow", "transformers")


def describe(
    command: str,
    options: object,
    *,
    inputs: Iterable[str] = (),
    pool: Iterable[str] = (),
    devices: bool = False,
    **facts: object,
) -> RunPlan:
    """Describes all that decides a run's results: command, options, inputs, versions, hardware.

    Args:
      command: the command's name.
      options: its dataclass. Left out are `out`, `workers`, `profile` and their like, where and how the work is
        done, and `on_bad`: a run that stopped at a broken file may go on with "skip", since what it finished is the
        same.
      inputs: files it reads whole at the start: name, size and digest are recorded.
      pool: files that the units of work read: names are recorded here, sizes and digests in the units' receipts,
        so that planning needs no pass over the pool, and a file that was repaired is read again.
      devices: whether device code decides the results, so that hardware and jax belong to the plan.
      facts: more, JSON-able.
    """
    chosen = _plain(options)
    assert isinstance(chosen, dict)
    return RunPlan(
        command=command,
        options={name: value for name, value in chosen.items() if name not in _HOW},
        inputs=tuple(map(file_entry, inputs)),
        pool=tuple(map(FileEntry, pool)),
        facts={"versions": _versions(), **({"hardware": hardware()} if devices else {}), **facts},
    )


def file_entry(path: str) -> FileEntry:
    """A file's name, size in bytes and digest; a folder's is over its files' names, sizes and digests."""
    at = storage.Folder(path)
    if at.is_folder():
        inside = [FileEntry(one, *storage.Folder(one).size_and_digest()) for one in at.tree()]
        relative = [dataclasses.replace(one, name=one.name[len(path) :]) for one in inside]
        digest = f"sha256:{hashlib.sha256(records.to_json(relative)).hexdigest()}"
        return FileEntry(path, sum(one.bytes or 0 for one in inside), digest, len(inside))
    return FileEntry(path, *at.size_and_digest())


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def hardware() -> dict[str, object]:
    """The hardware that scores' bits depend on: the kind of device (not how many), and the cores of a CPU."""
    import jax

    device = jax.devices()[0]
    cores = {"cores": os.cpu_count()} if device.platform == "cpu" else {}
    return {"platform": device.platform, "kind": device.device_kind, **cores}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.rstrip("/") or value  # a shell's completion adds it to folders
    return value


def beside(path: str) -> str:
    """The path of the manifest of an output that is one file."""
    return storage.beside(path, NAME)


def write_beside(path: str, plan: RunPlan, facts: Facts) -> Manifest:
    """Writes the manifest of an output that is one file, `<file>.manifest.json`; returns it."""
    storage.sweep_beside(path)
    made = plan.finished(facts, {path: file_entry(path)})
    storage.write_bytes(beside(path), records.to_json(made))
    return made


def first_difference(before: object, now: object, name: str = "") -> str:
    """The first difference of two runs' plans, in words; options come first, since they explain the rest."""
    if isinstance(before, dict) and isinstance(now, dict):
        # What the user chose explains best: other options bring other inputs and units.
        for key in sorted({*before, *now}, key=lambda key: (key not in ("command", "options"), key)):
            if before.get(key) != now.get(key):
                return first_difference(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for old, new in zip(before, now, strict=True):
            if old != new:
                named = isinstance(old, dict) and isinstance(new, dict) and "name" in old
                return first_difference(old, new, f"{name}[{old['name']}]" if named else name)
    shown = [text if len(text) < 80 else text[:77] + "..." for text in (json.dumps(before), json.dumps(now))]
    return f"{name} was {shown[0]}, now {shown[1]}"


def read_facts(path: str) -> Facts:
    """Everything that the manifest of a folder, or beside a file, says: {} if it has none or an unreadable one.

    For files of any tool: nothing of it is checked.
    """
    where = storage.join(path, NAME) if storage.is_folder(path) else beside(path)
    if not storage.exists(where):
        return {}
    try:
        content = json.loads(storage.read_bytes(where))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
