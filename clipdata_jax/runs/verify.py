"""Outputs checked against their records: files missing, damaged, changed, foreign or refused.

Records may come from anybody, so no name that they hold is opened before it is checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.runs import manifest, records
from clipdata_jax.runs.records import FileEntry, Manifest, Receipt, RunPlan
from clipdata_jax.runtime import threads

_OWN = (storage.PLAN, manifest.NAME, storage.TIMES, "sizes.json", "entry_counts.csv")
# A run's own folders of no fixed contents: of training its checkpoints and what else it keeps over stops, the logs of
# other tools, traces of the profiler.
_OWN_FOLDERS = ("checkpoints/", "_training/", "tensorboard/", "wandb/", "trace/", "profile/")
_OF_THE_KERNEL = ("/proc/", "/sys/", "/dev/")  # to read there may do something
_Record = TypeVar("_Record", Manifest, Receipt)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A fault of a file: "missing", "damaged", "changed", "foreign" or "refused", and why."""

    kind: str
    path: str
    text: str


@dataclasses.dataclass(frozen=True)
class Check:
    """A file that should be as recorded.

    Attributes:
      paths: where it may be, of which the first that exists counts.
      entry: what is recorded.
      wrong: the kind of problem if it is something else.
      unasked: where else it may be, which may not be opened.
    """

    paths: tuple[str, ...]
    entry: FileEntry
    wrong: str = "damaged"
    unasked: str = ""

    def bytes_to_read(self) -> int:
        """The number of bytes that the check reads."""
        return 0 if self.entry.digest is None else self.entry.bytes or 0

    def run(self) -> Checked:
        """Checks in this order that the file may be opened, is there, and has the recorded size and digest."""
        path = self.paths[0]
        try:
            for path in self.paths:
                if not _may_be_read(path):
                    return Checked(path, Problem("refused", path, "is not a regular file; not opened"))
                if storage.exists(path):
                    break
            else:
                path = self.paths[0]
                others = "".join(f", nor {other}" for other in self.paths[1:])
                others += f"; {self.unasked} is only asked with --stores" if self.unasked else ""
                return Checked(path, Problem("missing", path, f"no such file{others}"))
            text = self._difference(path)
        except (InputError, OSError, ValueError) as error:
            text = str(error).removeprefix(f"{path}: ")
        return Checked(path, Problem(self.wrong, path, text) if text else None)

    def _difference(self, path: str) -> str:
        folder, recorded = storage.is_folder(path), self.entry
        found = manifest.file_entry(path) if folder else FileEntry(path, storage.size(path))
        if recorded.bytes not in (None, found.bytes):
            return f"{found.bytes:,} bytes, recorded are {recorded.bytes:,}"
        # Of a file that has no recorded digest not a byte is read.
        if recorded.digest and recorded.digest != (found.digest if folder else storage.digest(path)):
            return "its digest is not the recorded one"
        return ""


class Checked(NamedTuple):
    """The path at which a file was checked, and what is wrong with it."""

    path: str
    problem: Problem | None

    @property
    def is_missing(self) -> bool:
        """Whether the file is nowhere."""
        return self.problem is not None and self.problem.kind == "missing"


def _may_be_read(path: str) -> bool:
    """Whether a path leads to a store, a regular file, a folder or nothing."""
    at = storage.Folder(path)
    if not at.is_local:
        return True
    try:
        real = os.path.realpath(at.inner)
        is_usual = os.path.isfile(real) or os.path.isdir(real) or not os.path.lexists(real)
        return is_usual and not real.startswith(_OF_THE_KERNEL)
    except ValueError:  # no system has such names
        return False


@dataclasses.dataclass
class CheckedRun:
    """One of the outputs to check, and what its records say at first sight.

    Attributes:
      path: of the folder or file.
      pool: how inputs are compared: by "digest", by "size", or "no".
      stores: buckets and servers besides its own whose files may be opened where records name them.
      moved: folders of inputs, as recorded -> where they are now.
      command: that wrote it.
      units: how many units it has, and how many of them have a receipt.
      checks: of its own files.
      inputs: checks of the files it was made of, by name; None for those that may not be opened.
      problems: found in the records alone.
    """

    path: str
    pool: str
    stores: tuple[str, ...]
    moved: Mapping[str, str]
    command: str = "?"
    units: tuple[int, int] = (0, 0)
    checks: list[Check] = dataclasses.field(default_factory=list)
    inputs: dict[str, Check | None] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def to_facts(self) -> dict[str, object]:
        """What `verify --json` tells of it."""
        count, done = self.units
        numbers = {"units": count, "units_done": done, "files": len(self.checks), "inputs": len(self.inputs)}
        return {"path": self.path, "command": self.command, **numbers}

    def add(self, kind: str, path: str, text: str) -> None:
        """Notes a problem."""
        self.problems.append(Problem(kind, path, text))

    def add_inside(self, kind: str, name: str, text: str) -> None:
        """Notes a problem of a file of the folder."""
        self.add(kind, storage.join(self.path, name), text)

    def add_parts(self, entries: Mapping[str, FileEntry], listed: Iterable[str]) -> None:
        """Adds the checks of the folder's own files."""
        for name, entry in entries.items():
            if not is_inside(name):
                self.add("refused", self.path, f"a record names {name[:200]!r}, which is outside; not opened")
            elif name not in listed:
                self.add_inside("missing", name, "a record says it was written")
            elif _leaves(self.path, name):
                self.add_inside("refused", name, "is a link that leads out of the folder; not opened")
            else:
                self.checks.append(Check((storage.join(self.path, name),), entry))

    def paths_of(self, entry: FileEntry) -> list[str]:
        """Where an input may be: where its folder was moved, on its way from the output, or as recorded."""
        for old, new in self.moved.items():
            if entry.name == old or entry.name.startswith(f"{old}/"):
                return [new + entry.name[len(old) :]]
        return list(map(_shown, entry.paths(storage.parent(storage.absolute(self.path)))))

    def add_inputs(self, entries: Iterable[FileEntry]) -> None:
        """Adds the checks of inputs, each once."""
        for entry in entries if self.pool != "no" else ():
            if entry.name not in self.inputs:
                entry = dataclasses.replace(entry, digest=None) if self.pool == "size" else entry
                paths = self.paths_of(entry)
                if allowed := tuple(filter(self._may_open, paths)):
                    unasked = next((path for path in paths if path not in allowed), "")
                    self.inputs[entry.name] = Check(allowed, entry, "changed", unasked)
                else:
                    self.inputs[entry.name] = None
                    self.refuse(entry.name)

    def _may_open(self, path: str) -> bool:
        """Whether a path that a record names may be opened.

        Reading a file of this machine harms nobody. A request to a store or a server may, in the user's name: these
        get one only where the user named them.
        """
        named = {storage.store_of(one) for one in (self.path, *self.stores, *self.moved.values())}
        store = storage.store_of(path)
        return not store or (store in named and "::" not in path)

    def refuse(self, name: str) -> None:
        """Notes that no request goes to the store that a record names, once a store."""
        store = storage.store_of(name)
        if not any((problem.kind, problem.path) == ("refused", store) for problem in self.problems):
            text = (
                f"the records, which may not be your own, name inputs there ({name[:200]!r} for one); not asked:"
                f" allow it with --stores {store}, or leave inputs out with --pool no"
            )
            self.add("refused", store, text)

    def folder_now(self, held: object) -> str | None:
        """Where a folder that a record names as an option is, if it is there and may be opened."""
        entry = FileEntry.from_json(held)
        allowed = list(filter(self._may_open, self.paths_of(entry)))
        if not allowed:
            self.refuse(entry.name)
        return next(filter(storage.exists, allowed), None)


def read_folder(run: CheckedRun) -> None:
    """Reads the records of a folder that a command filled, or fills.

    Raises:
      InputError: its plan is missing or can't be read, so it is not a run's folder.
    """
    path, listed = storage.join(run.path, storage.PLAN), storage.Folder(run.path).sizes()
    plan = records.read(RunPlan, path)
    receipt_of = {unit: f"_receipts/{unit}.json" for unit in plan.units or ()}
    if not all(map(is_inside, receipt_of)):
        raise InputError(f"{path}: its units are not a list of plain names")
    there = [(unit, name) for unit, name in receipt_of.items() if name in listed]
    read = threads.prefetch(lambda name: _read(run, Receipt, name), [name for _, name in there])
    receipts: dict[str, Receipt] = {}
    for (unit, name), receipt in zip(there, read, strict=True):
        if receipt is not None and receipt.unit != unit:
            run.add_inside("damaged", name, f"is the receipt of unit {receipt.unit[:60]!r}")
        elif receipt is not None:
            receipts[unit] = receipt
    run.problems.sort(key=lambda problem: problem.path)  # threads noted them
    run.command, run.units = plan.command, (len(receipt_of), len(receipts))
    parts = {name: entry for receipt in receipts.values() for name, entry in receipt.files.items()}
    if manifest.NAME in listed:
        for name in receipt_of.values():
            if name not in listed:
                run.add_inside("missing", name, "the run is finished, but lacks this receipt")
        parts |= _check_manifest(run, plan, parts, is_done=len(receipts) == len(receipt_of))
    run.add_parts(parts, listed)
    if len(receipts) == len(receipt_of):  # units that aren't done may have written some of their files
        _find_foreign(run, {*listed} - {*parts, *_OWN, *receipt_of.values()})
    run.add_inputs((*plan.inputs, *(entry for receipt in receipts.values() for entry in receipt.inputs)))
    _find_added(run, plan)


def _read(run: CheckedRun, kind: type[_Record], name: str) -> _Record | None:
    path = storage.join(run.path, name)
    try:
        return records.read(kind, path)
    except InputError as error:
        run.add("damaged", path, str(error).removeprefix(f"{path}: "))
        return None


def _check_manifest(
    run: CheckedRun, plan: RunPlan, parts: Mapping[str, FileEntry], *, is_done: bool
) -> dict[str, FileEntry]:
    """Compares the manifest with the plan and the receipts' files; returns the files that it alone names."""
    found = _read(run, Manifest, manifest.NAME)
    if found is None:
        return {}
    held, planned = found.to_json(), plan.to_json()
    # What was read of the pool has taken the place of the plan's names.
    for key in (key for key in planned if key != "pool" and held.get(key) != planned[key]):
        run.add_inside("damaged", manifest.NAME, f"its {key!r} is not that of {storage.PLAN}")
    # Files that were made of all units have no receipt.
    names = {*parts} if is_done else {*found.outputs} & {*parts}
    for name in sorted(name for name in names if found.outputs.get(name) != parts.get(name)):
        run.add_inside("damaged", manifest.NAME, f"its entry of {name} is not that of the receipt")
    return {name: entry for name, entry in found.outputs.items() if name not in parts}


def _find_foreign(run: CheckedRun, unknown: Iterable[str]) -> None:
    for name in sorted(name for name in unknown if not name.startswith(_OWN_FOLDERS)):
        base = name.rpartition("/")[2]
        temporary = base.startswith(".") and base.endswith(".tmp")
        text = "was left by a process that was killed; delete it" if temporary else "no receipt knows it"
        run.add_inside("foreign", name, text)


def _find_added(run: CheckedRun, plan: RunPlan) -> None:
    """Finds shards that the pool has now and the run doesn't know, unless a --limit left some out."""
    folder, unreadable = plan.options.get("pool"), plan.facts.get("unreadable")
    if run.pool == "no" or folder is None or plan.options.get("limit") is not None:
        return
    known = {path for entry in plan.pool for path in run.paths_of(entry)}
    reasons = [f"/{reason}" for reason in unreadable] if isinstance(unreadable, list) else []
    with contextlib.suppress(InputError):  # what can't be listed is missing
        for path in storage.Folder(now).files((".parquet", ".npz")) if (now := run.folder_now(folder)) else ():
            if path not in known and not any(f"/{path.rpartition('/')[2]}: " in reason for reason in reasons):
                run.add("foreign", path, "is in the pool, but was not when the run began")


def read_file(run: CheckedRun) -> None:
    """Reads the manifest beside a file, which names the file too, but may have been moved with it.

    Raises:
      InputError: the manifest is missing or can't be read.
    """
    path, beside = run.path, manifest.beside(run.path)
    made = records.read(Manifest, beside)
    if len(made.outputs) != 1:
        raise InputError(f"{beside}: names {len(made.outputs)} outputs, expected the file beside it")
    [(name, entry)] = made.outputs.items()
    run.command = made.command
    if name.rpartition("/")[2] != path.rpartition("/")[2]:
        run.add("damaged", beside, f"is the manifest of {name[:200]!r}")
    if storage.exists(path):
        run.checks.append(Check((path,), entry))
    else:
        run.add("missing", path, "its manifest is there, the file is not")
    run.add_inputs(made.read_files())


def is_inside(name: str) -> bool:
    """Whether a recorded name stays in its folder: no absolute path, no way up, no URL, no other system's path."""
    parts = name.split("/")
    return not ({"", ".", ".."} & {*parts} or {"\0", "\\"} & {*name} or ":" in parts[0])


def _leaves(folder: str, name: str) -> bool:
    """Whether a file of a folder is in truth elsewhere: a link that leads out of it."""
    at = storage.Folder(folder)
    if not at.is_local:
        return False
    root = os.path.realpath(at.inner)
    return os.path.commonpath([root, os.path.realpath(os.path.join(root, name))]) != root


def _shown(path: str) -> str:
    """A path as messages name it: in the working folder relative to that."""
    return path.removeprefix(f"{os.getcwd()}/")
