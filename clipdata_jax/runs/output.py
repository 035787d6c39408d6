"""What a unit of work is: planned before it begins, written whole or not at all, recognised when done.

Every command that fills a folder uses this module. A folder of results holds `plan.json` (what run it
belongs to), the units' own files, one receipt per finished unit under `receipts/`, `run.jsonl` (times; on an
object store it comes last, from the receipts) and, when all units are done, `manifest.json`. A unit's files appear
one by one, each whole; its receipt comes last, so a unit with a receipt whose files are all there in the recorded
size is done, and any other is done again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

from clipdata_jax import storage
from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.runs import manifest, telemetry
from clipdata_jax.runtime import parallel, threads

_RECEIPTS = "receipts"


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
    _known: dict[str, tuple[int, dict[str, Any]]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def path(self, name: str) -> str:
        """The path of a file in the folder."""
        return self.folder.join(name)

    def receipt(self, unit: str) -> dict[str, Any] | None:
        """The receipt of a unit, or None if the unit is not done."""
        return self._receipt(unit, self.folder.sizes(), _Fingerprints())

    def receipts(self) -> dict[str, dict[str, Any]]:
        """The receipts of the units that are done, in order: unit -> receipt.

        An object store is asked for listings and the receipts, not for every file.
        """
        read = functools.partial(self._receipt, listed=self.folder.sizes(), fingerprints=_Fingerprints())
        found = threads.in_order(read, self.units, self.folder.threads)
        return {unit: receipt for unit, receipt in zip(self.units, found, strict=True) if receipt is not None}

    def _receipt(
        self, unit: str, listed: Mapping[str, int], fingerprints: _Fingerprints
    ) -> dict[str, Any] | None:
        name = f"{_RECEIPTS}/{unit}.json"
        if name not in listed:
            return None
        known = self._known.get(unit)
        if known is not None and known[0] == listed[name] and _is_good(known[1], listed, fingerprints):
            return known[1]
        try:
            receipt = json.loads(self.folder.read_bytes(name))
            if not _is_good(receipt, listed, fingerprints):
                return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        self._known[unit] = listed[name], receipt
        return dict(receipt)

    def remaining(self, share: parallel.Share) -> list[str]:
        """The units of this process's share that are not done, in order.

        Whatever number of processes did the others: a share only says who does what is left.
        """
        done = self.receipts()
        todo = [unit for unit in self.units[share.index :: share.count] if unit not in done]
        if todo and self.folder.exists(manifest.NAME):
            # Of inputs that are changed now; whoever finishes writes another.
            with contextlib.suppress(InputError, OSError):  # another process of the run may be faster
                self.folder.remove(manifest.NAME)
        return todo

    def complete(
        self,
        unit: str,
        parts: Mapping[str, bytes | Callable[[BinaryIO], None]],
        facts: dict[str, Any],
        *,
        inputs: Sequence[dict[str, Any]] = (),
        undigested: Collection[str] = (),
        **times: Any,
    ) -> None:
        """Writes a unit's files and then its receipt.

        Args:
          unit: the unit's name.
          parts: file name -> its bytes, or a function that writes them.
          facts: what the manifest sums up: counts, skipped rows; must not depend on time or machine load.
          inputs: the files that the unit was made of (`manifest.file_entry`, with their "fingerprint" from before
            they were read where that is known). A unit whose inputs change later is done again.
          undigested: files whose digest would cost more than to write them; told by their size alone.
          times: for `run.jsonl` only, see `telemetry.Stopwatch`; the seconds that writing takes are added.
        """
        start = time.monotonic()
        self._check_there()
        entries = {
            name: self.folder.write(name, content, digests=name not in undigested)
            for name, content in parts.items()
        }
        marked = [
            entry if "fingerprint" in entry else {**entry, "fingerprint": storage.fingerprint(entry["name"])}
            for entry in inputs
        ]
        receipt = {"unit": unit, "files": entries, "facts": facts, "inputs": marked}
        # The receipt comes last: with it another process may find all done, and take the folder away.
        line = {"unit": unit, **times, "write_seconds": round(time.monotonic() - start, 3)}
        self.log(line)
        if not self.folder.is_local:
            receipt["times"] = telemetry.timed(line)
        written = manifest.to_json(receipt)
        self.folder.write(f"{_RECEIPTS}/{unit}.json", written)
        self._known[unit] = len(written), json.loads(written)

    def _check_there(self) -> None:
        """Makes sure that the folder is the one that was opened: a lost mount leaves an empty one in its place.

        Raises:
          StorageError: the plan is gone.
        """
        if self.folder.is_local and not self.folder.exists(storage.PLAN):
            raise StorageError(
                f"{self.folder}: its {storage.PLAN} is gone; was the disk unmounted? What was finished is kept there:"
                " mount it and give the command again"
            )

    def log(self, line: dict[str, Any]) -> None:
        """Appends one line to `run.jsonl`, with the time; times are kept out of the manifest.

        Not on an object store, which can't append: there the units' lines are kept in their receipts.
        """
        if self.folder.is_local:
            telemetry.append(self.path(storage.TIMES), line)

    def finish(
        self,
        facts: Callable[[list[dict[str, Any]]], dict[str, Any]],
        share: parallel.Share = parallel.ALONE,
    ) -> dict[str, Any] | None:
        """Writes `manifest.json` if every unit is done, whoever did it, and says who is to tell of the run.

        That is who writes the manifest; of a run that was finished before, its first process.

        Args:
          facts: turns the units' receipts, in order, into the run's own facts (totals, skipped rows).
          share: this process's.

        Returns:
          the manifest if it is for this process to tell; else None, and the process has said its one line.
        """
        who = f"{self.folder}: process {share.index + 1} of {share.count}"
        receipts = self.receipts()
        if missing := [unit for unit in self.units if unit not in receipts]:
            self._check_there()
            print(
                f"{who} is done with its units; others are missing ({missing[0]} for one), and who finishes last"
                f" writes {manifest.NAME}"
            )
            return None
        plan = json.loads(self.folder.read_bytes(storage.PLAN))
        outputs = {name: entry for receipt in receipts.values() for name, entry in receipt["files"].items()}
        content = {**plan, **facts(list(receipts.values())), "outputs": outputs}
        if not (self.folder.is_local or self.folder.exists(manifest.NAME)):
            # Before the manifest, with which the run is done: who is stopped between the two comes again.
            lines = [receipt["times"] for receipt in receipts.values() if "times" in receipt]
            self.folder.write(storage.TIMES, telemetry.to_lines(lines))
        if self._take_manifest(manifest.to_json(content), share):
            return content
        print(f"{who} is done, and so is the run; another process tells of it")
        return None

    def _take_manifest(self, content: bytes, share: parallel.Share) -> bool:
        """Makes sure of the manifest; whether it is for this process to tell of it."""
        if self.folder.write_new(manifest.NAME, content):
            return True
        if self.folder.read_bytes(manifest.NAME) != content:
            self.folder.write(manifest.NAME, content)
            return True
        return share.count == 1 or (self.was_finished and share.index == 0)


def _is_good(receipt: dict[str, Any], listed: Mapping[str, int], fingerprints: _Fingerprints) -> bool:
    """Whether a unit's files are all there, and its inputs as they were."""
    whole = all(listed.get(part) == entry["bytes"] for part, entry in receipt["files"].items())
    return whole and all(_is_unchanged(entry, fingerprints) for entry in receipt.get("inputs", ()))


class _Fingerprints:
    """What tells whether inputs are as they were; of an object store a folder's by one listing."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def of(self, path: str) -> str | None:
        """The fingerprint of a file or folder; None if there is none."""
        at = storage.Folder(path)
        if not at.is_local:
            folder = path.rpartition("/")[0]
            with self._lock:
                if folder not in self._folders:
                    self._folders[folder] = storage.Folder(folder).fingerprints()
            if path in self._folders[folder]:
                return self._folders[folder][path]
        return at.fingerprint() if at.exists() else None


def _is_unchanged(entry: dict[str, Any], fingerprints: _Fingerprints) -> bool:
    """Whether an input is the file it was: the same size and time, or at least the same bytes."""
    name = entry["name"]
    fingerprint = fingerprints.of(name)
    if fingerprint is None:
        return False
    if entry.get("digest", "") is None:  # it couldn't be read; one that now can be is as old as it was
        return not _can_be_read(name)
    if fingerprint == entry["fingerprint"]:
        return True
    return "digest" in entry and manifest.file_entry(name)["digest"] == entry["digest"]


def _can_be_read(path: str) -> bool:
    try:
        storage.digest(path)
    except InputError:
        return False
    return True


def open_output(folder: str, *, plan: dict[str, Any], units: Sequence[str]) -> Output:
    """Opens a folder for a run: new, or one that the same run began before.

    Args:
      folder: local path or URL; made if need be.
      plan: all that decides the results (`manifest.describe`), JSON-able.
      units: names of the units of work, in order, each a plain file name.

    Raises:
      InputError: the folder holds something else, or another run's results.
    """
    content = manifest.to_json({**plan, "units": list(units)})
    at = storage.Folder(folder)
    if at.exists() and not at.is_folder():
        raise InputError(
            f"{folder}: is a file where a folder for the results is expected; choose another --out"
        )
    # What begins with a dot another process of this run may just be writing, its plan to begin with.
    found = [name for name in at.names() if not name.startswith(".")]
    if storage.PLAN in found:
        _check_plan(at, content)
    elif found:
        raise InputError(f"{folder}: is not empty and holds no run of this command; choose another --out")
    at.sweep()
    if storage.PLAN not in found and not at.write_new(storage.PLAN, content):
        _check_plan(at, content)  # of one that began at the same time
    return Output(at, tuple(units), was_finished=manifest.NAME in found)


def _check_plan(folder: storage.Folder, content: bytes) -> None:
    """Makes sure that the plan in a folder is this run's.

    Raises:
      InputError: it is another's.
    """
    before = folder.read_bytes(storage.PLAN)
    if before == content:
        return
    try:
        difference = manifest.first_difference(json.loads(before), json.loads(content))
    except (ValueError, RecursionError):
        difference = f"its {storage.PLAN} is no JSON"
    raise InputError(
        f"{folder}: already holds the results of another run ({difference});"
        " choose another --out, or delete the folder"
    )


def read_receipts(receipts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The facts of receipts, in order."""
    for receipt in receipts:
        yield receipt["facts"]


_WAITING = 2  # units that it may be behind


class Writer:
    """Completes units in a thread of its own, in the order they come, while the next ones are worked on.

    Leaving the block waits for all of them, after an error too: what is worked out is not thrown away. Only
    who interrupts it waits for one unit and no more.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: collections.deque[Future[None]] = collections.deque()

    def complete(self, *args: Any, **named: Any) -> None:
        """`Output.complete`, later.

        Raises:
          InputError: a unit before this one could not be written.
        """
        self._pending.append(self._thread.submit(self._output.complete, *args, **named))
        while len(self._pending) > _WAITING or self._pending[0].done():
            self._pending.popleft().result()
            if not self._pending:
                return

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self._thread.shutdown(cancel_futures=interrupted)
        if kind is None:
            for one in self._pending:
                one.result()
