"""The records of a run: its plan, a receipt for each unit, the manifest, the units' times. Read strictly.

A record may come from anybody: every reader checks all that it takes from one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeAlias, TypeGuard, TypeVar, cast

from clipdata_jax import storage
from clipdata_jax.errors import InputError

# JSON of one command's own, which no other code looks into.
Facts: TypeAlias = dict[str, Any]
SECONDS = ("read", "wait", "compute", "write")
_T = TypeVar("_T")
_Record = TypeVar("_Record", bound="RunPlan | Receipt")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """The record of a file.

    Attributes:
      name: its path, in a record absolute or a URL; "" where it is the key of a mapping.
      relative: the way to it from the folder that the output lies in; None outside records and in another store.
      bytes: its size; None if only its name is recorded.
      digest: of its bytes; None if not taken.
      files: how many files it holds, if it is a folder.
      fingerprint: its size and time of change before it was read.
      unreadable: whether it was there, but could not be read.
    """

    name: str = ""
    bytes: int | None = None
    digest: str | None = None
    files: int | None = None
    fingerprint: str | None = None
    unreadable: bool = False
    relative: str | None = None

    @classmethod
    def from_json(cls, held: object, name: str = "") -> Self:
        """Reads an entry, or the name alone; raises InputError if it is something else."""
        if isinstance(held, str):
            return cls(held)
        entry = _mapping(held, "a file's entry")
        name = _field(entry, "name", str, name)
        digest, fingerprint, relative = (_field(entry, key, str, None) for key in ("digest", "fingerprint", "relative"))
        size = _field(entry, "bytes", int, *([None] if "name" in entry else []))
        files = _field(entry, "files", int, None)
        return cls(name, size, digest, files, fingerprint, "digest" in entry and digest is None, relative)

    def to_json(self) -> object:
        """The entry as `from_json` reads it."""
        held = {key: value for key, value in vars(self).items() if value not in (None, "", False)}
        held.pop("unreadable", None)
        if self.bytes is None:
            return held if self.relative else self.name
        return {**held, "bytes": self.bytes} | ({"digest": None} if self.unreadable else {})

    def without_fingerprint(self) -> Self:
        """The entry as a manifest lists it, which depends on no clock."""
        return dataclasses.replace(self, fingerprint=None)

    def without_content(self) -> Self:
        """The entry with the file's paths alone."""
        return type(self)(self.name, relative=self.relative)

    def located(self, folder: str) -> Self:
        """The entry as the record of an output that lies in `folder`, which is absolute, names it."""
        if not self.name or self.relative is not None:
            return self
        name = storage.absolute(self.name)
        return dataclasses.replace(self, name=name, relative=storage.relative(name, folder))

    def paths(self, folder: str) -> list[str]:
        """Where the file of a record may be: on its way from the folder that the output lies in now, or as recorded."""
        moved = [] if self.relative is None else [storage.resolve(folder, self.relative)]
        return list(dict.fromkeys([*moved, self.name]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitTimes:
    """Time and memory that a unit or a step took: a line of `_run.jsonl`.

    Attributes:
      time: of its end, in seconds since 1970.
      unit: its name.
      step: its number, if it is a step.
      process: index of the process.
      rows: pairs, images or samples.
      rows_per_second: of its process, since that one's unit before.
      seconds: by `SECONDS`; reading and writing may have gone on beside other units' work.
      metrics: figures of a step of training, by name; None where one isn't known.
      resident_bytes: most memory of the process so far, mapped files included.
      device_bytes: likewise of a device, if it says.
    """

    rows: float
    rows_per_second: float
    time: float = 0.0
    unit: str | None = None
    step: int | None = None
    process: int = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    resident_bytes: int | None = None
    device_bytes: int | None = None

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Reads a line; raises InputError if it is something else."""
        line = _mapping(content, "a line of times")
        read: dict[str, Any] = {name: _field(line, name, float) for name in ("time", "rows", "rows_per_second")}
        whole = ("step", "process", "resident_bytes", "device_bytes")
        read |= {name: _field(line, name, int) for name in whole if line.get(name) is not None}
        seconds = {name: _field(line, f"{name}_seconds", float, 0.0) for name in SECONDS}
        own = {field.name for field in dataclasses.fields(cls)} | {f"{name}_seconds" for name in SECONDS}
        others = {name: value for name, value in line.items() if name not in own}
        metrics = {name: value for name, value in others.items() if value is None or _is_number(value)}
        return cls(**read, unit=_field(line, "unit", str, None), seconds=seconds, metrics=metrics)

    def to_json(self) -> dict[str, object]:
        """The line as `from_json` reads it."""
        own = {key: value for key, value in vars(self).items() if key not in ("seconds", "metrics")}
        line = {key: value for key, value in own.items() if value is not None}
        seconds = {f"{name}_seconds": round(value, 3) for name, value in self.seconds.items()}
        return {"time": line.pop("time"), **line, **self.metrics, **seconds}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The plan of a run: all that decides its results.

    Attributes:
      command: its name.
      options: those of them that results depend on.
      inputs: files that are read whole at the start.
      pool: files that the units read.
      facts: what else the command depends on: versions, hardware, models.
      units: names of the units of work, in order; None if the command has none.
    """

    command: str
    options: Facts = dataclasses.field(default_factory=dict)
    inputs: tuple[FileEntry, ...] = ()
    pool: tuple[FileEntry, ...] = ()
    facts: Facts = dataclasses.field(default_factory=dict)
    units: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Reads a plan; raises InputError if it is something else."""
        return cls(**cls._fields(dict(_mapping(content, "the record"))))

    @classmethod
    def _fields(cls, content: dict[str, object]) -> dict[str, Any]:
        units = _field(content, "units", list, None)
        if units is not None and not all(isinstance(name, str) and name and "/" not in name for name in units):
            raise InputError("its 'units' are not a list of plain names")
        return {
            "command": _field(content, "command", str),
            "options": _field(content, "options", dict, {}),
            "inputs": _entries(content, "inputs"),
            "pool": _entries(content, "pool"),
            "units": None if units is None else tuple(units),
            "facts": {name: value for name, value in content.items() if name not in _OWN},
        }

    def to_json(self) -> Facts:
        """The plan as `from_json` reads it."""
        content = {name: getattr(self, name) for name in ("command", "options", "inputs", "pool")}
        return {**content, **self.facts, **({} if self.units is None else {"units": list(self.units)})}

    def finished(self, facts: Facts, outputs: Mapping[str, FileEntry]) -> Manifest:
        """The manifest of the plan's run.

        Args:
          facts: what came of it; its "inputs" and "pool" take the place of the plan's, which knew less of them.
          outputs: the files that it wrote.
        """
        own = {name: _entries(facts, name) if name in facts else getattr(self, name) for name in ("inputs", "pool")}
        rest = {name: value for name, value in facts.items() if name not in own}
        return Manifest(
            command=self.command,
            options=self.options,
            **own,
            facts={**self.facts, **rest},
            units=self.units,
            outputs=outputs,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(RunPlan):
    """The record of an output: what made it, from what, and its files.

    Attributes:
      outputs: the files, by name.
    """

    outputs: Mapping[str, FileEntry] = dataclasses.field(default_factory=dict)

    @classmethod
    def _fields(cls, content: dict[str, object]) -> dict[str, Any]:
        return {**super()._fields(content), "outputs": _files(content, "outputs")}

    def to_json(self) -> Facts:
        """The manifest as `from_json` reads it."""
        return {**super().to_json(), "outputs": dict(self.outputs)}

    def read_files(self) -> tuple[FileEntry, ...]:
        """All files that the run read; raises InputError if they are not recorded so."""
        return (*self.inputs, *self.pool, *_entries(self.facts, "pool_files"))


_OWN = ("command", "options", "inputs", "pool", "units", "outputs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """A unit of work that is done.

    Attributes:
      unit: its name.
      files: that it wrote, by name.
      facts: what the manifest sums up.
      inputs: files that it was made of.
      times: what it took, on an object store, which has no `_run.jsonl` before the run's end.
    """

    unit: str
    files: Mapping[str, FileEntry]
    facts: Facts
    inputs: tuple[FileEntry, ...] = ()
    times: UnitTimes | None = None

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Reads a receipt; raises InputError if it is something else."""
        held = _mapping(content, "the receipt")
        return cls(
            unit=_field(held, "unit", str),
            files=_files(held, "files"),
            facts=_field(held, "facts", dict, {}),
            inputs=_entries(held, "inputs"),
            times=UnitTimes.from_json(held["times"]) if "times" in held else None,
        )

    def to_json(self) -> Facts:
        """The receipt as `from_json` reads it."""
        return {name: value for name, value in vars(self).items() if value is not None}


def read(kind: type[_Record], path: str) -> _Record:
    """Reads a record from its file.

    Raises:
      InputError: it is missing, not JSON, or not such a record.
    """
    data = storage.read_bytes(path)
    try:
        return cast(_Record, kind.from_json(json.loads(data)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def to_json(content: object, out: str | None = None) -> bytes:
    """JSON with sorted keys, two spaces, a final newline: the same content gives the same bytes.

    Args:
      content: a record, or something like it.
      out: the output that it is the record of, from which files are named; None names them as they are.
    """
    folder = None if out is None else storage.parent(storage.absolute(out))

    def plain(one: Any) -> object:
        return (one.located(folder) if isinstance(one, FileEntry) and folder is not None else one).to_json()

    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=plain)
    # Names in a tar may not be UTF-8; the surrogates that stand for their bytes are escaped as JSON does it.
    return f"{text}\n".encode(errors="backslashreplace")


def to_lines(lines: Sequence[UnitTimes]) -> bytes:
    """The bytes of a `_run.jsonl` of these lines."""
    return "".join(f"{json.dumps(line.to_json())}\n" for line in lines).encode()


def _mapping(content: object, what: str) -> Mapping[str, object]:
    if not isinstance(content, dict):
        raise InputError(f"{what} is {_shown(content)}, expected an object")
    return content


def _field(content: Mapping[str, object], name: str, kind: type[_T], *default: Any) -> Any:
    if default and (name not in content or content[name] is None):
        return default[0]
    value = content.get(name)
    if kind is float and isinstance(value, (int, float)) and 0 <= value < 1e15:  # NaN is in no range
        return float(value)
    if kind is float or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"its {name!r} is {_shown(value)}, expected {_KINDS[kind]}")
    return value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number of at least 0",
    dict: "an object",
    list: "a list",
}


def _shown(value: object) -> str:
    return "missing" if value is None else f"{value!r:.60}"


def _entries(content: Mapping[str, object], name: str) -> tuple[FileEntry, ...]:
    held = _field(content, name, list, [])
    return tuple(one if isinstance(one, FileEntry) else FileEntry.from_json(one) for one in held)


def _files(content: Mapping[str, object], name: str) -> dict[str, FileEntry]:
    return {file: FileEntry.from_json(entry) for file, entry in _field(content, name, dict).items()}
