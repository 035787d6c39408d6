"""The manifest beside every output: what made it, from what, and what came of it. Deterministic: no times."""

from __future__ import annotations

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
from clipdata_jax.errors import InputError

NAME = storage.MANIFEST
# Options that say where and how the work is done, not what comes of it.
_HOW = ("workers", "out", "on_bad", "max_bad_rows", "memory_gb", "processes", "explain", "profile")
_PACKAGES = ("clipdata_jax", "jax", "jaxlib", "flax", "numpy", "pyarrow", "pillow", "transformers")


def describe(
    command: str,
    options: Any,
    *,
    inputs: Iterable[str] = (),
    pool: Iterable[str] = (),
    devices: bool = False,
    **facts: Any,
) -> dict[str, Any]:
    """What decides a run's results: command, options, inputs, versions, hardware.

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
    chosen = {
        field.name: _plain(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if field.name not in _HOW
    }
    described: dict[str, Any] = {
        "command": command,
        "options": chosen,
        "inputs": [file_entry(path) for path in inputs],
    }
    described["pool"] = list(pool)
    return {**described, "versions": _versions(), **({"hardware": hardware()} if devices else {}), **facts}


def file_entry(path: str) -> dict[str, Any]:
    """A file's name, size in bytes and digest; a folder's is over its files' names, sizes and digests."""
    at = storage.Folder(path)
    if at.is_folder():
        inside = [file_entry(one) for one in at.tree()]
        entry = {"name": path, "bytes": sum(one["bytes"] for one in inside), "files": len(inside)}
        whole = hashlib.sha256(to_json([{**one, "name": one["name"][len(path) :]} for one in inside]))
        return {**entry, "digest": f"sha256:{whole.hexdigest()}"}
    return {"name": path, **at.size_and_digest()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """What scores' bits depend on: the kind of device (not how many), and the core count where it is a CPU."""
    import jax

    device = jax.devices()[0]
    cores = {"cores": os.cpu_count()} if device.platform == "cpu" else {}
    return {"platform": device.platform, "kind": device.device_kind, **cores}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.rstrip("/") or value  # a shell's completion adds it to folders
    return value


def to_json(content: Any) -> bytes:
    """JSON with sorted keys, two spaces, a final newline: the same content gives the same bytes."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    # Names in a tar may be no UTF-8; the surrogates that stand for their bytes are escaped as JSON does it.
    return f"{text}\n".encode(errors="backslashreplace")


def first_difference(before: Any, now: Any, name: str = "") -> str:
    """What differs between two runs' plans, in words; the options first, since they explain the rest."""
    if isinstance(before, dict) and isinstance(now, dict):
        # What the user chose explains best: other options bring other inputs and units.
        for key in sorted({*before, *now}, key=lambda key: (key not in ("command", "options"), key)):
            if before.get(key) != now.get(key):
                return first_difference(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for old, new in zip(before, now, strict=True):
            if old != new:
                file = (
                    old["name"] if isinstance(old, dict) and isinstance(new, dict) and "name" in old else ""
                )
                return first_difference(old, new, f"{name}[{file}]" if file else name)
    shown = [text if len(text) < 80 else text[:77] + "..." for text in (json.dumps(before), json.dumps(now))]
    return f"{name} was {shown[0]}, now {shown[1]}"


def write_beside(path: str, content: dict[str, Any]) -> None:
    """Writes the manifest of an output that is one file: `<file>.manifest.json`."""
    storage.sweep_beside(path)
    storage.write_bytes(f"{path}.{NAME}", to_json({**content, "outputs": {path: file_entry(path)}}))


def check_same_run(out: str, plan: dict[str, Any], *names: str) -> None:
    """Makes sure that a file is not there yet, or is what the same run wrote: that may be written again.

    Args:
      out: the file.
      plan: of this run.
      names: what must be as it was, as the plan names it: "command", "options.rule".

    Raises:
      InputError: another run wrote it, or nobody knows who did.
    """
    storage.sweep_beside(out)
    if not storage.exists(out):
        return
    beside = f"{out}.{NAME}"
    advice = "choose another --out, or delete it"
    try:
        before = json.loads(storage.read_bytes(beside)) if storage.exists(beside) else {}
        was = {name: _field(before, name) for name in names}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{out}: already there, and no manifest says what it holds; {advice}") from error
    for name, old in was.items():
        if old != (new := _field(plan, name)):
            what = name.rpartition(".")[2]
            raise InputError(
                f"{out}: already holds another run's result ({what} was {old!r}, now {new!r}); {advice}"
            )


def _field(content: Any, name: str) -> Any:
    for part in name.split("."):
        content = content[part]
    return content


def read(folder: str) -> dict[str, Any]:
    """The manifest of a folder, {} if it has none or an unreadable one (folders by other tools have none)."""
    return _read(storage.join(folder, NAME))


def read_beside(path: str) -> dict[str, Any]:
    """The manifest of an output that is one file, {} if it has none or an unreadable one."""
    return _read(f"{path}.{NAME}")


def _read(path: str) -> dict[str, Any]:
    if not storage.exists(path):
        return {}
    try:
        content = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
