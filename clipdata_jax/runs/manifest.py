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
from typing import Any

from clipdata_jax import storage
from clipdata_jax.config.base import path_options
from clipdata_jax.runs import records
from clipdata_jax.runs.records import Facts, FileEntry, Manifest, RunPlan
from clipdata_jax.runtime import parallel

NAME = storage.MANIFEST
# Options that say where and how the work is done, not what comes of it.
_HOW = {
    *("checkpoint_every", "decoders", "evaluation", "explain", "force", "input_workers", "keep_every", "log"),
    *("max_bad_rows", "memory_gb", "on_bad", "out", "overwrite", "processes", "profile", "stop_after"),
    *("target_cache", "workers"),
}
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
      options: its dataclass. Left out are `out`, `workers`, `decoders` and their like, where and how the work is
        done, and `on_bad`: a run that stopped at a broken file may go on with "skip", since what it finished is the
        same. Paths become entries of files, so that the same one spelled otherwise is the same.
      inputs: files it reads whole at the start: name, size and digest are recorded.
      pool: files that the units of work read: names are recorded here, sizes and digests in the units' receipts,
        so that planning needs no pass over the pool, and a file that was repaired is read again.
      devices: whether device code decides the results, so that hardware and jax belong to the plan.
      facts: more, JSON-able.
    """
    if devices:
        parallel.warn_of_unused_gpu()
    return RunPlan(
        command=command,
        options=plain_options(options),
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


def plain_options(options: Any) -> Facts:
    """The options that results depend on, JSON-able; paths become entries of files."""
    kind: type = type(options)
    paths = path_options(kind)
    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {
        name: _path_entries(value, paths[name]) if name in paths else _plain(value)
        for name, value in chosen.items()
        if name not in _HOW
    }


def _path_entries(value: object, named: bool) -> object:
    if isinstance(value, (tuple, list)):
        return [_path_entries(one, named) for one in value]
    if not isinstance(value, str):
        return value
    name, sign, path = value.partition("=")
    if named and sign and "/" not in name:
        return {name: _path_entries(path, False)}
    return FileEntry(value.rstrip("/") or value)  # a shell's completion adds it to folders


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain_options(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def beside(path: str) -> str:
    """The path of the manifest of an output that is one file."""
    return storage.beside(path, NAME)


def write_beside(path: str, plan: RunPlan, facts: Facts) -> Manifest:
    """Writes the manifest of an output that is one file, `<file>.manifest.json`; returns it."""
    storage.sweep_beside(path)
    entry = dataclasses.replace(file_entry(path), name="")
    made = plan.finished(facts, {path.rpartition("/")[2]: entry})
    storage.write_bytes(beside(path), records.to_json(made, path))
    return made


def as_before(now: object, before: object) -> object:
    """What a record would say, with the paths of an earlier one where both are of the same file.

    That is one spelled otherwise, or found on the same way from the output after both were moved.
    """
    if isinstance(now, dict) and isinstance(before, dict):
        paths = {}
        if "relative" in now and "relative" in before and _is_same_file(now, before):
            paths = {name: before[name] for name in ("name", "relative")}
        return {name: as_before(value, before.get(name)) for name, value in now.items()} | paths
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        return list(map(as_before, now, before))
    return now


def _is_same_file(one: Facts, other: Facts) -> bool:
    if one["relative"] == other["relative"] or one["name"] == other["name"]:
        return True
    try:
        return os.path.realpath(str(one["name"])) == os.path.realpath(str(other["name"]))
    except ValueError:  # no system has such names
        return False


def first_difference(before: object, now: object, name: str = "") -> str:
    """The first difference of two runs' plans, in words; options come first, since they explain the rest."""
    if isinstance(before, dict) and isinstance(now, dict):
        if "relative" in before and "relative" in now and before.get("name") != now.get("name"):
            return first_difference(_names(before), _names(now), name)
        # What the user chose explains best: other options bring other inputs and units.
        for key in sorted({*before, *now}, key=lambda key: (key not in ("command", "options"), key)):
            if before.get(key) != now.get(key):
                return first_difference(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for old, new in zip(before, now, strict=True):
            if old != new and isinstance(old, dict) and isinstance(new, dict) and len(old) == 1 and [*old] == [*new]:
                [one], [other] = old.values(), new.values()  # NAME=PATH
                return first_difference(one, other, name)
            if old != new:
                named = isinstance(old, dict) and isinstance(new, dict) and "name" in old
                same = named and old["name"] == new.get("name")
                return first_difference(old, new, f"{name}[{old['name']}]" if same else name)
    shown = [text if len(text) < 80 else text[:77] + "..." for text in map(json.dumps, map(_names, (before, now)))]
    section, _, option = name.partition(".")
    flag = f"--{option.rpartition('.')[2].replace('_', '-')}" if section == "options" and option else name
    return f"{flag} was {shown[0]}, now {shown[1]}"


def _names(value: object) -> object:
    """A value with the files' entries replaced by their paths."""
    if isinstance(value, list):
        return list(map(_names, value))
    return value["name"] if isinstance(value, dict) and "relative" in value and "name" in value else value


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
