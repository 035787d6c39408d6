"""Units of work: planned up front, written atomically, skipped when complete.

Every command that fills a folder uses this module. A folder of results holds `_plan.json` (the run it belongs to),
the units' own files, one receipt per finished unit under `_receipts/`, `_run.jsonl` (times; on an object store it comes
last, from the receipts) and, when all units are done, `_manifest.json`. A unit's files appear one by one, each whole;
its receipt comes last, so a unit with a receipt whose files are all there in the recorded size is done, and any other
is done again. A folder in which no unit is finished is free for any run, unless a process is at work there; what a
killed process left of its first unit is known from the unit's mark, `_receipts/UNIT.begun`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import BinaryIO

from clipdata_jax import storage
from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.runs import manifest, records, telemetry
from clipdata_jax.runs.records import Facts, FileEntry, Manifest, Receipt, RunPlan, UnitTimes
from clipdata_jax.runtime import console, parallel, threads

_RECEIPTS, _MARK = "_receipts", ".begun"


@dataclasses.dataclass(frozen=True)
class Output:
    """A folder that one run fills, unit by unit, from one or many processes.

    Attributes:
      folder: where the results go.
      units: the names of all units of the run, in order.
      was_finished: whether its manifest was there when it was opened.
    """

    folder: storage.Folder
    units: tuple[str, ...]
    was_finished: bool = False
    _plan: bytes = dataclasses.field(default=b"", repr=False, compare=False)
    _known: dict[str, tuple[int, Receipt]] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def path(self, name: str) -> str:
        """The path of a file in the folder."""
        return self.folder.join(name)

    @functools.cached_property
    def _lies_in(self) -> str:
        return storage.parent(storage.absolute(str(self.folder)))

    def receipts(self) -> dict[str, Receipt]:
        """The receipts of the units that are done, in order: unit -> receipt.

        An object store is asked for listings and the receipts, not for every file.
        """
        read = functools.partial(self._receipt, listed=self.folder.sizes(), inputs=_InputFiles(self._lies_in))
        found = threads.prefetch(read, self.units, threads=self.folder.threads)
        return {unit: receipt for unit, receipt in zip(self.units, found, strict=True) if receipt is not None}

    def _receipt(self, unit: str, listed: Mapping[str, int], inputs: _InputFiles) -> Receipt | None:
        name = f"{_RECEIPTS}/{unit}.json"
        if name not in listed:
            return None
        known = self._known.get(unit)
        if known is not None and known[0] == listed[name] and _is_good(known[1], listed, inputs):
            return known[1]
        with contextlib.suppress(InputError):
            receipt = records.read(Receipt, self.path(name))
            if _is_good(receipt, listed, inputs):
                self._known[unit] = listed[name], receipt
                return receipt
        return None

    def remaining(self, share: parallel.Share) -> list[str]:
        """The units of this process's share that are not done, in order.

        Any number of processes may have done the others: a share only divides what is left. Says how many were done.
        """
        done = self.receipts()
        if 0 < len(done) < len(self.units):
            console.say(f"{len(done):,} of {console.counted(len(self.units), 'unit')} done before, going on", log=True)
        todo = [unit for unit in self.units[share.index :: share.count] if unit not in done]
        if todo and self.folder.exists(manifest.NAME):
            self._remove(manifest.NAME)  # of inputs that are changed now; the last process to finish writes another
        return todo

    def complete(
        self,
        unit: str,
        parts: Mapping[str, bytes | Callable[[BinaryIO], None]],
        facts: Facts,
        *,
        inputs: Sequence[FileEntry] = (),
        undigested: Collection[str] = (),
        times: UnitTimes | None = None,
    ) -> None:
        """Writes a unit's files and then its receipt.

        Args:
          unit: the unit's name.
          parts: file name -> its bytes, or a function that writes them.
          facts: what the manifest sums up: counts, skipped rows; must not depend on time or machine load.
          inputs: the files that the unit was made of, with their fingerprints from before they were read where those
            are known. A unit whose inputs change later is done again.
          undigested: files whose digest would cost more than to write them; they are compared by size alone.
          times: for `_run.jsonl`, see `telemetry.Stopwatch`; the seconds that writing takes are added.
        """
        start = time.monotonic()
        self._check_there()
        mark = f"{_RECEIPTS}/{unit}{_MARK}" if self.folder.is_local and not self._known else ""
        try:
            if mark:
                self.folder.write(mark, records.to_json(sorted(parts)))
            entries = {
                name: FileEntry("", *self.folder.write(name, content, digests=name not in undigested))
                for name, content in parts.items()
            }
        except InputError as error:
            kept = "; the units finished before are kept" if self.receipts() else ""
            raise InputError(f"{error}{kept}") from error
        marked = [
            entry if entry.fingerprint else dataclasses.replace(entry, fingerprint=storage.fingerprint(entry.name))
            for entry in inputs
        ]
        if times is not None:
            times = telemetry.finished_now(times, unit, time.monotonic() - start)
            # The receipt comes last: with it another process may find all done, and take the folder away.
            self.log(times)
        kept_times = None if self.folder.is_local else times
        receipt = Receipt(unit=unit, files=entries, facts=facts, inputs=tuple(marked), times=kept_times)
        written = records.to_json(receipt, str(self.folder))
        self.folder.write(f"{_RECEIPTS}/{unit}.json", written)
        self._known[unit] = len(written), Receipt.from_json(json.loads(written))
        if mark:
            self._remove(mark)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(InputError, OSError):  # another process of the run may be faster
            self.folder.remove(name)

    def _check_there(self) -> None:
        """Makes sure that the folder is the one that was opened: a lost mount leaves an empty one in its place.

        Raises:
          StorageError: the plan is gone.
          InputError: it is another run's, which began while this one had finished nothing.
        """
        if self.folder.is_local and not self.folder.exists(storage.PLAN):
            raise StorageError(
                f"{self.folder}: its {storage.PLAN} is gone; was the disk unmounted? What was finished is kept there:"
                " mount it and give the command again"
            )
        # Where a unit is finished no other run begins.
        if not self._known and self.folder.read_bytes(storage.PLAN) != self._plan:
            raise InputError(
                f"{self.folder}: another run has begun here before this one finished anything; choose another --out"
            )

    def log(self, times: UnitTimes) -> None:
        """Appends one line to `_run.jsonl`, with the time; times are kept out of the manifest.

        Not on an object store, which can't append: there the units' lines are kept in their receipts.
        """
        if self.folder.is_local:
            telemetry.append(self.path(storage.TIMES), times)

    def finish(
        self,
        facts: Callable[[list[Receipt]], Facts],
        share: parallel.Share = parallel.ALONE,
        *,
        files: Callable[[list[Receipt]], Mapping[str, bytes]] | None = None,
    ) -> Manifest | None:
        """Writes `_manifest.json` if every unit is done, and decides which process reports on the run.

        That is the one that writes the manifest; of a run that was finished before, the first.

        Args:
          facts: turns the units' receipts, in order, into the run's own facts (totals, skipped rows).
          share: this process's.
          files: makes files of the receipts, name -> bytes, which every process that gets here writes alike.

        Returns:
          the manifest if this process reports on the run; else None, and the process has printed its one line.

        Raises:
          StorageError: units are missing that no other process does.
        """
        who = f"{self.folder}: process {share.index + 1} of {share.count}"
        receipts = self.receipts()
        if missing := [unit for unit in self.units if unit not in receipts]:
            self._check_there()
            if share.count == 1:
                raise StorageError(
                    f"{self.folder}: {len(missing):,} of {len(self.units):,} units are missing at the end of the run"
                    f" ({missing[0]} for one): files were changed or removed meanwhile; give the same command again"
                )
            console.say(
                f"{who} is done with its units; others are missing ({missing[0]} for one); the last to finish"
                f" writes {manifest.NAME}"
            )
            return None
        plan = records.read(RunPlan, self.path(storage.PLAN))
        outputs = {name: entry for receipt in receipts.values() for name, entry in receipt.files.items()}
        made_of_all = {} if files is None else files(list(receipts.values()))
        for name, content in made_of_all.items():
            outputs[name] = FileEntry("", *self.folder.write(name, content, digests=True))
        made = plan.finished(facts(list(receipts.values())), outputs)
        if not (self.folder.is_local or self.folder.exists(manifest.NAME)):
            # Before the manifest, with which the run is done: one that is stopped between the two is continued.
            lines = [receipt.times for receipt in receipts.values() if receipt.times is not None]
            if lines:
                self.folder.write(storage.TIMES, records.to_lines(lines))
        for path in self.folder.at(_RECEIPTS).files(_MARK) if self.folder.is_local else ():
            self._remove(f"{_RECEIPTS}/{path.rpartition('/')[2]}")  # of processes that were killed
        if self._take_manifest(records.to_json(made, str(self.folder)), share):
            return made
        console.say(f"{who} is done, and so is the run; another process reports on it")
        return None

    def _take_manifest(self, content: bytes, share: parallel.Share) -> bool:
        """Writes the manifest unless it is there; returns whether this process reports on the run."""
        if self.folder.write_new(manifest.NAME, content):
            return True
        if self.folder.read_bytes(manifest.NAME) != content:
            self.folder.write(manifest.NAME, content)
            return True
        return share.count == 1 or (self.was_finished and share.index == 0)


def _is_good(receipt: Receipt, listed: Mapping[str, int], inputs: _InputFiles) -> bool:
    """Whether a unit's files are all there, and its inputs as they were."""
    whole = all(listed.get(part) == entry.bytes for part, entry in receipt.files.items())
    return whole and all(map(inputs.is_unchanged, receipt.inputs))


class _InputFiles:
    """Input files and their fingerprints; in an object store those of a folder come from one listing.

    Args:
      folder: that the output lies in.
    """

    def __init__(self, folder: str) -> None:
        self._lies_in = folder
        self._folders: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def is_unchanged(self, entry: FileEntry) -> bool:
        """Whether an input is the file it was: the same size and time, or at least the same bytes."""
        for path in entry.paths(self._lies_in):
            if (fingerprint := self._fingerprint(path)) is None:
                continue
            if entry.unreadable:  # one that now can be read is as old as it was
                return not _can_be_read(path)
            if fingerprint == entry.fingerprint:
                return True
            return entry.digest is not None and manifest.file_entry(path).digest == entry.digest
        return False

    def _fingerprint(self, path: str) -> str | None:
        at = storage.Folder(path)
        if not at.is_local:
            folder = path.rpartition("/")[0]
            with self._lock:
                if folder not in self._folders:
                    self._folders[folder] = storage.Folder(folder).fingerprints()
            if path in self._folders[folder]:
                return self._folders[folder][path]
        return at.fingerprint() if at.exists() else None


def _can_be_read(path: str) -> bool:
    try:
        storage.digest(path)
    except InputError:
        return False
    return True


def open_output(
    folder: str,
    *,
    plan: RunPlan,
    units: Sequence[str],
    share: parallel.Share = parallel.ALONE,
    together: bool = False,
) -> Output:
    """Opens a folder for a run: new, or one that the same run began before.

    Args:
      folder: local path or URL; made if need be.
      plan: all that decides the results (`manifest.describe`).
      units: names of the units of work, in order, each a plain file name.
      share: this process's; if it has all, a line says whether another process is at work in the folder.
      together: whether the processes of the run work on every step together, so that no other may.

    Raises:
      InputError: the folder holds something else, or another run's results; or another process is at work there.
    """
    plan = dataclasses.replace(plan, units=tuple(units))
    at = storage.Folder(folder)
    if at.inner in _held:
        _held.pop(at.inner)()
    mine = records.to_json(plan, folder)
    _take_over(at, plan, mine)
    was_finished = is_done(folder, plan, mine=mine)
    at.sweep()
    if not was_finished:
        at.write_new(storage.PLAN, mine)
    lock, has_others = _hold(at.at(storage.PLAN).inner) if at.is_local else (None, False)
    written = at.read_bytes(storage.PLAN)
    if written != mine:
        is_done(folder, plan, mine=mine)  # another run may have begun at the same time
    output = Output(at, tuple(units), was_finished=was_finished, _plan=written)
    if lock is not None:
        _held[at.inner] = weakref.finalize(output, storage.release, lock)
    if has_others and share.count == 1 and not was_finished:
        if together:
            raise InputError(f"{at}: another process is at work here; wait until it has ended, or choose another --out")
        does = "the work is done twice, and the result is whole; --worker 0/2 and 1/2 share it"
        console.say(f"{at}: another process is at work here, too: {does}", log=True)
    return output


# By folder. An error that is shown may keep an output of this process alive, but not the run.
_held: dict[str, Callable[[], object]] = {}
_TRIES, _SECONDS = 20, 0.1


def _hold(plan: str) -> tuple[int | None, bool]:
    """Holds a local plan beside other processes of its run, and says whether there are any."""
    alone = storage.hold(plan, alone=True)
    if alone is not None:
        storage.release(alone)
    for _ in range(_TRIES):  # another process may hold it alone for a moment
        if (lock := storage.hold(plan)) is not None:
            return lock, alone is None
        time.sleep(_SECONDS)
    return None, alone is None


def _take_over(at: storage.Folder, plan: RunPlan, mine: bytes) -> None:
    """Replaces the plan of another run that has finished nothing and has no other process on this machine."""
    for _ in range(_TRIES):
        if (left := _left_by_another(at, plan, mine)) is None:
            return
        lock = storage.hold(at.at(storage.PLAN).inner, alone=True) if at.is_local else None
        if lock is not None or (not at.is_local and not left):
            try:
                if _left_by_another(at, plan, mine) == left:
                    for name in left:
                        at.remove(name)
                    at.write(storage.PLAN, mine)
                return
            finally:
                if lock is not None:
                    storage.release(lock)
        time.sleep(_SECONDS)  # perhaps another process of this run is replacing it


def _left_by_another(at: storage.Folder, plan: RunPlan, mine: bytes) -> set[str] | None:
    """The files and folders beside the plan of another run that has finished no unit; None if it is not so.

    They are what its units' marks name, and its times.
    """
    names = at.names()
    if storage.PLAN not in names or manifest.NAME in names:
        return None
    try:
        data = at.read_bytes(storage.PLAN)
        content = None if data == mine else json.loads(data)
        if not content or RunPlan.from_json(content).units is None or not _difference(content, plan, str(at)):
            return None
        there = {name for name in at.sizes() if not name.rpartition("/")[2].startswith(".")}
        known = {name for name in there if name.startswith(f"{_RECEIPTS}/") and name.endswith(_MARK)}
        for mark in sorted(known):
            known |= {str(part) for part in json.loads(at.read_bytes(mark))}
    except (ValueError, RecursionError, InputError, TypeError):
        return None
    if not there <= {storage.PLAN, storage.TIMES, *known}:
        return None
    left = {name.partition("/")[0] for name in there - {storage.PLAN}}
    return None if any(at.is_local and os.path.islink(at.at(name).inner) for name in left) else left


def _difference(content: Facts, plan: RunPlan, out: str, only: Sequence[str] = ()) -> str:
    """The first difference of an output's record from this run's plan, in words; "" if they are of the same run."""
    now = json.loads(records.to_json(plan, out))
    names = only or {*now, *(content if plan.units is not None else ())}
    was = {name: content.get(name) for name in names}
    if plan.units is None and "pool" in was:  # its sizes and digests came when its files were read
        pool = [entry.without_content() for entry in RunPlan.from_json(content).pool]
        was["pool"] = json.loads(records.to_json(pool))
    now = manifest.as_before({name: now.get(name) for name in names}, was)
    return "" if was == now else manifest.first_difference(was, now)


def is_done(out: str, plan: RunPlan, *, ignore_inputs: bool = False, mine: bytes | None = None) -> bool:
    """Whether an output is this very run's, and finished.

    Args:
      out: a file with its manifest beside it, or, for a plan with units, a folder with the plan in it.
      plan: of this run.
      ignore_inputs: compare command and options alone, for a file that is written again whatever its inputs are now.
      mine: the plan as it would be written, if the caller has it.

    Returns:
      False if there is nothing, or what the same run wrote of inputs that have changed, or did not finish: all this
      may be written (again).

    Raises:
      InputError: another run wrote it, or it is not known who did.
    """
    at = storage.Folder(out)
    if not at.exists():
        return False
    folder, is_folder = plan.units is not None, at.is_folder()
    if folder and not is_folder:
        raise InputError(f"{out}: is a file where a folder for the results is expected; choose another --out")
    overwrite = ", add --overwrite," if ignore_inputs else ","
    advice = f"choose another --out{overwrite} or delete the {'folder' if is_folder else 'file'}"
    path = at.join(storage.PLAN) if folder else manifest.beside(out)
    if is_folder != folder or not storage.exists(path):
        # What begins with a dot another process of this run may just be writing, its plan to begin with.
        if folder and all(name.startswith(".") for name in at.names()):
            return False
        what = "is not empty" if folder else "already exists"
        raise InputError(f"{out}: {what} and was not written by this command; {advice}")
    data = storage.read_bytes(path)
    if folder and data == (mine or records.to_json(plan, out)):
        return at.exists(manifest.NAME)
    try:
        content = json.loads(data)
        before = (RunPlan if folder else Manifest).from_json(content)
    except (ValueError, RecursionError, InputError) as error:
        raise InputError(f"{out}: already exists, and {path} doesn't say what it holds ({error}); {advice}") from error
    if difference := _difference(content, plan, out, only=("command", "options") if ignore_inputs else ()):
        what = "the results"
        done = len(at.at(_RECEIPTS).files(".json")) if folder else 0
        if folder and before.units and done < len(before.units):
            what = f"{done:,} of {console.counted(len(before.units), 'unit')}"
            advice = f"give that run's command to go on with it, {advice}"
        raise InputError(f"{out}: already holds {what} of another run ({difference}); {advice}")
    if folder:
        return at.exists(manifest.NAME)
    if ignore_inputs or not isinstance(before, Manifest):
        return False
    if [entry.bytes for entry in before.outputs.values()] != [storage.size(out)]:
        return False
    read = [entry for entry in before.read_files() if entry.bytes is not None]
    return all(map(_InputFiles(storage.parent(storage.absolute(out))).is_unchanged, read))
