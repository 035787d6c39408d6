"""Outputs checked against their records: files missing, damaged, changed, foreign or refused.

Records may come from anybody, so no name that they hold is opened before it is checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import posixpath
from collections.abc import Iterable

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.runs import manifest, records
from clipdata_jax.runs.records import FileEntry, Manifest, Receipt, RunPlan
from clipdata_jax.runtime import threads

_OWN = (storage.PLAN, manifest.NAME, storage.TIMES, "sizes.json")
# A run's own folders of no fixed contents: checkpoints while training, traces of the profiler.
_OWN_FOLDERS = ("checkpoints/", "trace/", "profile/")
_OF_THE_KERNEL = ("/proc/", "/sys/", "/dev/")  # to read there may do something


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with a file: "missing", "damaged", "changed", "foreign" or "refused", and why."""

    kind: str
    path: str
    text: str


@dataclasses.dataclass(frozen=True)
class Check:
    """A file that should be as recorded; if it isn't, that is a problem of the kind `wrong`."""

    path: str
    entry: FileEntry
    wrong: str = "damaged"

    def bytes_to_read(self) -> int:
        """How many bytes the check reads."""
        return 0 if self.entry.digest is None else self.entry.bytes or 0

    def problem(self) -> Problem | None:
        """What is wrong with the file: whether it is there, its size, its digest, in this order."""
        try:
            if not storage.exists(self.path):
                return Problem("missing", self.path, "no such file")
            if not _is_regular(storage.Folder(self.path)):
                return Problem("refused", self.path, "is not a regular file; not opened")
            text = self._difference()
        except (InputError, OSError, ValueError) as error:
            text = str(error).removeprefix(f"{self.path}: ")
        return Problem(self.wrong, self.path, text) if text else None

    def _difference(self) -> str:
        if storage.is_folder(self.path):
            found = manifest.file_entry(self.path)
        else:
            found = FileEntry(self.path, storage.size(self.path))
        if self.entry.bytes not in (None, found.bytes):
            return f"{found.bytes:,} bytes, recorded are {self.entry.bytes:,}"
        digest = self.entry.digest
        if digest is not None and digest != (found.digest or storage.digest(self.path)):
            return "its digest is not the recorded one"
        return ""


@dataclasses.dataclass
class CheckedRun:
    """One of the outputs to check, and what its records say at first sight.

    Attributes:
      path: of the folder or file.
      pool: how inputs are compared: by "digest", by "size", or "no".
      stores: buckets and servers besides its own whose files may be opened where records name them.
      command: that wrote it.
      units: how many units it has, and how many of them have a receipt.
      checks: of its own files.
      inputs: checks of the files it was made of.
      problems: found in the records alone.
    """

    path: str
    pool: str = "digest"
    stores: tuple[str, ...] = ()
    command: str = "?"
    units: tuple[int, int] = (0, 0)
    checks: list[Check] = dataclasses.field(default_factory=list)
    inputs: list[Check] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    _named: set[str] = dataclasses.field(default_factory=set)

    def add(self, kind: str, path: str, text: str) -> None:
        """Notes a problem."""
        self.problems.append(Problem(kind, path, text))

    def add_inside(self, kind: str, name: str, text: str) -> None:
        """Notes a problem of a file of the folder."""
        self.add(kind, storage.join(self.path, name), text)

    def add_inputs(self, entries: Iterable[FileEntry]) -> None:
        """Adds the checks of inputs, each once."""
        for entry in entries if self.pool != "no" else ():
            if self._is_new(entry.name) and self.may_open(entry.name):
                if self.pool == "size":
                    entry = dataclasses.replace(entry, digest=None)
                self.inputs.append(Check(entry.name, entry, "changed"))

    def may_open(self, name: str) -> bool:
        """Whether an input that a record names may be opened; if not, a problem says so.

        Reading a file of this machine harms nobody. A request to a store or a server may, in the user's name: these
        get one only where the user named them.
        """
        store = _store(name)
        if not store:
            if _is_file_name(name):
                return True
            text = f"a record names {name[:200]!r}, which is not a file; not opened"
            self.add("refused", self.path, text)
        elif store in {_store(self.path), *map(_store, self.stores)} and "::" not in name:
            return True
        elif self._is_new(store):
            text = (
                f"the records, which may not be your own, name inputs there ({name[:200]!r} for one); not asked:"
                f" allow it with --stores {store}, or leave inputs out with --pool no"
            )
            self.add("refused", store, text)
        return False

    def _is_new(self, name: str) -> bool:
        before = len(self._named)
        self._named.add(name)
        return len(self._named) > before


def open_folder(folder: str, *, pool: str, stores: tuple[str, ...] = ()) -> CheckedRun:
    """Reads a folder's records.

    Args:
      folder: that a command filled, or fills.
      pool: how inputs are compared, see `CheckedRun`.
      stores: where they may lie, see `CheckedRun`.

    Raises:
      InputError: there is no plan, or it can't be read: this is not a run.
    """
    plan = records.read(RunPlan, storage.join(folder, storage.PLAN))
    units = list(dict.fromkeys(plan.units or ()))
    if not all(map(is_inside, units)):
        raise InputError(f"{storage.join(folder, storage.PLAN)}: its units are not a list of plain names")
    run, listed = CheckedRun(folder, pool, stores, plan.command), storage.Folder(folder).sizes()
    receipts = _read_receipts(run, units, listed)
    run.units = len(units), len(receipts)
    parts = {name: entry for receipt in receipts.values() for name, entry in receipt.files.items()}
    undone = [unit for unit in units if unit not in receipts]
    parts |= _check_manifest(run, plan, undone, parts, listed)
    for name, entry in parts.items():
        if not is_inside(name):
            text = f"a record names {name[:200]!r}, which is outside; not opened"
            run.add("refused", folder, text)
        elif name not in listed:
            run.add_inside("missing", name, "a record says it was written")
        elif _leaves(folder, name):
            run.add_inside("refused", name, "is a link that leads out of the folder; not opened")
        else:
            run.checks.append(Check(storage.join(folder, name), entry))
    _find_foreign(run, plan, {*parts, *_OWN, *map(_receipt_name, units)}, undone, listed)
    run.add_inputs(plan.inputs)
    for receipt in receipts.values():
        run.add_inputs(receipt.inputs)
    _find_added(run, plan)
    return run


def _receipt_name(unit: str) -> str:
    return f"receipts/{unit}.json"


def _read_receipts(run: CheckedRun, units: list[str], listed: dict[str, int]) -> dict[str, Receipt]:
    def read(unit: str) -> Receipt | InputError:
        try:
            return records.read(Receipt, storage.join(run.path, _receipt_name(unit)))
        except InputError as error:
            return error

    there = [unit for unit in units if _receipt_name(unit) in listed]
    found: dict[str, Receipt] = {}
    for unit, receipt in zip(there, threads.prefetch(read, there), strict=True):
        name = _receipt_name(unit)
        if isinstance(receipt, InputError):
            run.add_inside("damaged", name, str(receipt).removeprefix(f"{storage.join(run.path, name)}: "))
        elif receipt.unit != unit:
            run.add_inside("damaged", name, f"is the receipt of unit {receipt.unit[:60]!r}")
        else:
            found[unit] = receipt
    return found


def _check_manifest(
    run: CheckedRun, plan: RunPlan, undone: list[str], parts: dict[str, FileEntry], listed: dict[str, int]
) -> dict[str, FileEntry]:
    """Compares the manifest with plan and receipts; returns the files that it alone names."""
    if manifest.NAME not in listed:
        return {}
    path = storage.join(run.path, manifest.NAME)
    try:
        found = records.read(Manifest, path)
    except InputError as error:
        run.add_inside("damaged", manifest.NAME, str(error).removeprefix(f"{path}: "))
        return {}
    held, planned = found.to_json(), plan.to_json()
    # What was read of the pool has taken the place of the plan's names.
    for key in (key for key in planned if key != "pool" and held.get(key) != planned[key]):
        run.add_inside("damaged", manifest.NAME, f"its {key!r} is not that of {storage.PLAN}")
    for unit in undone:
        if _receipt_name(unit) not in listed:
            run.add_inside("missing", _receipt_name(unit), "the run is finished, but lacks this receipt")
    names = {*found.outputs} & {*parts} if undone else {*found.outputs} | {*parts}
    for name in sorted(name for name in names if found.outputs.get(name) != parts.get(name)):
        run.add_inside("damaged", manifest.NAME, f"its entry of {name} is not that of the receipt")
    return {name: entry for name, entry in found.outputs.items() if name not in parts}


def _find_foreign(run: CheckedRun, plan: RunPlan, known: set[str], undone: list[str], listed: dict[str, int]) -> None:
    # An undone unit may have written some of its files; those of `score` are named after its shards.
    shards = plan.facts.get("plan")
    unwritten = {str(shards.get(unit)) for unit in undone} if isinstance(shards, dict) else set()
    for name in sorted(set(listed) - known):
        base = name.rpartition("/")[2]
        stem = name.removeprefix("uids/").rpartition(".")[0]
        temporary = base.startswith(".") and base.endswith(".tmp")
        if (
            name.startswith(_OWN_FOLDERS)
            or (temporary and undone)
            or any(f"{stem}_/".startswith((f"{unit}_", f"{unit}/")) for unit in undone)
            or any(repr(stem) in text for text in unwritten)
        ):
            continue
        text = "was left by a process that was killed; delete it" if temporary else "no receipt knows it"
        run.add_inside("foreign", name, text)


def _find_added(run: CheckedRun, plan: RunPlan) -> None:
    """Shards that the pool has now and the run doesn't know."""
    folder, unreadable = plan.options.get("pool"), plan.facts.get("unreadable")
    if run.pool == "no" or not isinstance(folder, str) or not run.may_open(folder):
        return
    known = {entry.name for entry in plan.pool}
    reasons = tuple(map(str, unreadable)) if isinstance(unreadable, list) else ()
    with contextlib.suppress(InputError):  # what can't be listed is missing
        for path in storage.Folder(folder).files((".parquet", ".npz")):
            if path not in known and not any(reason.startswith(path) for reason in reasons):
                run.add("foreign", path, "is in the pool, but was not when the run began")


def open_file(path: str, *, pool: str, stores: tuple[str, ...] = ()) -> CheckedRun:
    """Reads the manifest beside a file.

    Args:
      path: of the file. (The manifest names it too, but a file may be moved with its manifest, and a name that
        a record holds is not to be opened.)
      pool: how inputs are compared, see `CheckedRun`.
      stores: where they may lie, see `CheckedRun`.

    Raises:
      InputError: the manifest is missing or can't be read.
    """
    beside = f"{path}.{manifest.NAME}"
    made = records.read(Manifest, beside)
    run = CheckedRun(path, pool, stores, made.command)
    if len(made.outputs) != 1:
        raise InputError(f"{beside}: names {len(made.outputs)} outputs, expected the file beside it")
    [(name, entry)] = made.outputs.items()
    if name.rpartition("/")[2] != path.rpartition("/")[2]:
        run.add("damaged", beside, f"is the manifest of {name[:200]!r}")
    if storage.exists(path):
        run.checks.append(Check(path, entry))
    else:
        run.add("missing", path, "its manifest is there, the file is not")
    run.add_inputs(made.read_files())
    return run


def is_inside(name: str) -> bool:
    """Whether a recorded name stays in its folder: no absolute path, no way up, no URL, no other system's path."""
    if not name or "\0" in name or "\\" in name or "://" in name:
        return False
    parts = name.split("/")
    return not posixpath.isabs(name) and not (set(parts) & {"", ".", ".."}) and ":" not in parts[0]


def _leaves(folder: str, name: str) -> bool:
    """Whether a file of a folder is in truth elsewhere: a link that leads out of it."""
    at = storage.Folder(folder)
    if not at.is_local:
        return False
    root = os.path.realpath(at.inner)
    target = os.path.realpath(os.path.join(root, name))
    return os.path.commonpath([root, target]) != root


def _store(path: str) -> str:
    """The bucket or server of an address, "s3://bucket/"; "" for a path of this machine."""
    if "://" not in path and "::" not in path:
        return ""
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/"


def _is_file_name(name: str) -> bool:
    try:
        return not os.path.realpath(name).startswith(_OF_THE_KERNEL)
    except ValueError:  # no system has such names
        return False


def _is_regular(at: storage.Folder) -> bool:
    return not at.is_local or os.path.isfile(at.inner) or os.path.isdir(at.inner)
