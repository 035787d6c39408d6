"""What a folder that a run fills should hold: from its plan, its receipts and its manifest. Opens no part."""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Callable
from typing import Any

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, parquet, uid_sets, uids
from clipdata_jax.runs import manifest
from clipdata_jax.runs.records import Check, Run, entries, input_checks, is_inside, leaves, read_json
from clipdata_jax.runtime import threads

_OWN = (storage.PLAN, manifest.NAME, "run.jsonl", "sizes.json")
# A run's own folders of no fixed contents: checkpoints while training, traces of the profiler.
_OWN_FOLDERS = ("checkpoints/", "trace/", "profile/")
_Receipts = dict[str, dict[str, Any]]


def open_folder(folder: str, *, inputs: bool, digests: bool, stores: tuple[str, ...] = ()) -> Run:
    """Reads a folder's records.

    Args:
      folder: that a command filled, or fills.
      inputs: whether the run's inputs are to be checked.
      digests: whether they are to be read whole for it.
      stores: where they may lie, see `Run.stores`.

    Raises:
      InputError: there is no plan, or it can't be read: this is no run.
    """
    plan = read_json(storage.join(folder, storage.PLAN))
    names = plan.get("units")
    run = Run(folder, str(plan.get("command", "?")), stores=stores)
    if not isinstance(names, list) or not all(is_inside(name) and "/" not in name for name in names):
        raise InputError(f"{storage.join(folder, storage.PLAN)}: its units are no list of plain names")
    for name in _repeated(names):
        run.add("doubled", storage.join(folder, storage.PLAN), f"names unit {name} twice")
    units = list(dict.fromkeys(names))
    listed = storage.Folder(folder).sizes()
    receipts = _receipts(run, units, listed)
    run.units = len(units), len(receipts)
    expected = expectations(plan)
    parts = _parts(run, receipts)
    held = _check_manifest(run, plan, receipts, parts, listed)
    for name, (size, digest) in {**held, **parts}.items():
        _add_part(run, name, size, digest, listed, expected)
    _find_doubled(run, receipts, parts, expected)
    _find_foreign(run, units, receipts, {*parts, *held}, listed, expected)
    if inputs:
        input_checks(run, plan.get("inputs"), digests=digests)
        for receipt in receipts.values():
            input_checks(run, receipt.get("inputs"), digests=digests)
        _find_added(run, plan)
    return run


def _receipts(run: Run, units: list[str], listed: dict[str, int]) -> _Receipts:
    """The receipts that can be read, by unit."""

    def read(unit: str) -> dict[str, Any] | InputError:
        try:
            receipt = read_json(storage.join(run.path, f"receipts/{unit}.json"))
            entries(receipt.get("files"))
            return receipt
        except InputError as error:
            return error

    there = [unit for unit in units if f"receipts/{unit}.json" in listed]
    found: _Receipts = {}
    for unit, receipt in zip(there, threads.in_order(read, there), strict=True):
        path = storage.join(run.path, f"receipts/{unit}.json")
        if isinstance(receipt, InputError):
            run.add("damaged", path, str(receipt).removeprefix(f"{path}: "))
        elif receipt.get("unit") != unit:
            run.add("damaged", path, f"is the receipt of unit {str(receipt.get('unit'))[:60]!r}")
        else:
            found[unit] = receipt
    return found


def _parts(run: Run, receipts: _Receipts) -> dict[str, tuple[int, str | None]]:
    """The parts that receipts name, each once."""
    owner: dict[str, str] = {}
    parts: dict[str, tuple[int, str | None]] = {}
    for unit, receipt in receipts.items():
        for name, entry in entries(receipt["files"]).items():
            if name in owner:
                run.add(
                    "doubled",
                    storage.join(run.path, name),
                    f"is named by the receipts of {owner[name]} and {unit}",
                )
                continue
            owner[name], parts[name] = unit, entry
    return parts


def _check_manifest(
    run: Run, plan: dict[str, Any], receipts: _Receipts, parts: dict[str, Any], listed: dict[str, int]
) -> dict[str, tuple[int, str | None]]:
    """Compares the manifest with plan and receipts; returns what it names and no receipt does."""
    if manifest.NAME not in listed:
        return {}
    path = storage.join(run.path, manifest.NAME)
    try:
        content = read_json(path)
        outputs = entries(content.get("outputs"))
    except InputError as error:
        run.add("damaged", path, str(error).removeprefix(f"{path}: "))
        return {}
    # Receipts replace the plan's "pool" by what was read of it.
    for key in (key for key in plan if key != "pool" and content.get(key) != plan[key]):
        run.add("damaged", path, f"its {key!r} is not that of {storage.PLAN}")
    for unit in (unit for unit in plan["units"] if f"receipts/{unit}.json" not in listed):
        run.add(
            "missing",
            storage.join(run.path, f"receipts/{unit}.json"),
            "the run is finished, but lacks this receipt",
        )
    for name in sorted({*outputs} & {*parts}):
        if outputs[name] != parts[name]:
            run.add("damaged", path, f"its entry of {name} is not that of the receipt")
    if len(receipts) == len(set(plan["units"])):
        for name in sorted({*outputs} ^ {*parts}):
            where = "the manifest, but no receipt" if name in outputs else "a receipt, but not the manifest"
            run.add("damaged", path, f"{name} is named by {where}")
    return {name: entry for name, entry in outputs.items() if name not in parts}


def _add_part(
    run: Run,
    name: str,
    size: int,
    digest: str | None,
    listed: dict[str, int],
    expected: Expectations,
) -> None:
    path = storage.join(run.path, name)
    if not is_inside(name):
        run.add("refused", run.path, f"a record names {name[:200]!r}, which is outside; not opened")
    elif name not in listed:
        run.add("missing", path, "its receipt says it was written")
    elif leaves(run.path, name):
        run.add("refused", path, "is a link that leads out of the folder; not opened")
    else:
        look = functools.partial(expected.look, run.path, name)
        run.checks.append(Check(path, size, digest, look=look))


def _find_doubled(run: Run, receipts: _Receipts, parts: dict[str, Any], expected: Expectations) -> None:
    """The same rows under two names, and rows that a plan deals out twice; what a receipt lacks of its plan."""
    first: dict[str, str] = {}
    skipped = {f"{name}.parquet" for receipt in receipts.values() for name in _skipped(receipt)}
    for name, (_, digest) in sorted(parts.items()):
        # Parts without rows, and of shards that couldn't be read, are all alike.
        if (
            digest is None
            or not name.endswith(".parquet")
            or name in skipped
            or not expected.rows.get(name, 1)
        ):
            continue
        if digest in first:
            run.add("doubled", storage.join(run.path, name), f"holds the very bytes of {first[digest]}")
        first.setdefault(digest, name)
    for name in expected.repeated:
        run.add("doubled", storage.join(run.path, storage.PLAN), f"deals out {name} twice")
    for unit, receipt in receipts.items():
        lacking = expected.of_unit.get(unit, set()) - set(receipt["files"])
        for name in sorted(lacking):
            run.add(
                "missing", storage.join(run.path, name), f"is of unit {unit}, whose receipt doesn't name it"
            )


def _find_foreign(
    run: Run,
    units: list[str],
    receipts: _Receipts,
    known: set[str],
    listed: dict[str, int],
    expected: Expectations,
) -> None:
    undone = [unit for unit in units if unit not in receipts]
    waiting = {name for unit in undone for name in expected.of_unit.get(unit, ())}
    known = known | waiting | {*_OWN} | {f"receipts/{unit}.json" for unit in units}
    for name in sorted(set(listed) - known):
        if name.startswith(_OWN_FOLDERS) or any(expected.may_write(unit, name) for unit in undone):
            continue
        base = name.rpartition("/")[2]
        left = base.startswith(".") and base.endswith(".tmp")
        if left and undone:  # perhaps just being written; who goes on with the run removes what is not
            continue
        text = "was left by a process that was killed; delete it" if left else "no receipt knows it"
        run.add("foreign", storage.join(run.path, name), text)


def _find_added(run: Run, plan: dict[str, Any]) -> None:
    """Shards that the pool has now and the run doesn't know."""
    options, pool = plan.get("options"), plan.get("pool")
    folder = options.get("pool") if isinstance(options, dict) else None
    if not isinstance(folder, str) or not isinstance(pool, list) or "\0" in folder:
        return
    if not run.may_open(folder):
        return
    known = {name for name in pool if isinstance(name, str)}
    unreadable = plan.get("unreadable") or []
    for suffix in (".parquet", ".npz"):
        for path in _list(folder, suffix):
            if path not in known and not any(str(reason).startswith(path) for reason in unreadable):
                run.add("foreign", path, "is in the pool, but was not when the run began")


def _list(folder: str, suffix: str) -> list[str]:
    try:
        return storage.Folder(folder).files(suffix)
    except InputError:
        return []


def _skipped(receipt: dict[str, Any]) -> list[str]:
    facts = receipt.get("facts")
    skipped = facts.get("skipped") if isinstance(facts, dict) else None
    return [str(one.get("shard")) for one in skipped or () if isinstance(one, dict)]


def _repeated(names: list[Any]) -> list[Any]:
    return sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []


@dataclasses.dataclass(frozen=True)
class Expectations:
    """What a plan says of parts.

    Attributes:
      command: that wrote them.
      rows: part -> rows, as far as the plan knows.
      of_unit: unit -> its parts, as far as the plan knows.
      repeated: parts that the plan deals out twice.
    """

    command: str
    rows: dict[str, int]
    of_unit: dict[str, set[str]]
    repeated: tuple[str, ...]

    def may_write(self, unit: str, name: str) -> bool:
        """Whether a file may be of a unit that isn't done yet; what the plan doesn't tell, the name does."""
        if unit in self.of_unit:
            return False
        stem = name.removeprefix("uids/").rpartition(".")[0]
        return stem == unit or stem.startswith(f"{unit}_") or name.startswith(f"{unit}/")

    def look(self, folder: str, name: str) -> str:
        """What is wrong with a part whose bytes are right, "" if nothing."""
        path = storage.join(folder, name)
        try:
            if name.endswith(".parquet"):
                return _rows_differ(parquet_rows(path), self.rows.get(name))
            if name.endswith(".npz") and self.command == "embed":
                return npz_differs(path, parquet_rows(f"{path.removesuffix('.npz')}.parquet"))
        except InputError as error:
            return str(error).removeprefix(f"{path}: ")
        return ""


def expectations(plan: dict[str, Any]) -> Expectations:
    """What the plan of a folder says of its parts; a plan that makes no sense says nothing."""
    rows: dict[str, int] = {}
    of_unit: dict[str, set[str]] = {}
    repeated: list[str] = []
    dealt = plan.get("plan") if plan.get("command") == "score" else None
    for unit, shards in dealt.items() if isinstance(dealt, dict) else ():
        for shard in shards if isinstance(shards, list) else ():
            if not (isinstance(shard, list) and len(shard) == 2 and isinstance(shard[1], int)):
                continue
            name = f"{shard[0]}.parquet"
            repeated += [name] if name in rows else []
            rows[name] = shard[1]
            of_unit.setdefault(unit, set()).add(name)
    return Expectations(str(plan.get("command", "?")), rows, of_unit, tuple(repeated))


def parquet_rows(path: str) -> int:
    """The rows of a parquet file, from its footer.

    Raises:
      InputError: it is none.
    """
    return parquet.rows_and_types(path)[0]


def _rows_differ(rows: int, planned: int | None) -> str:
    return "" if planned in (None, rows) else f"has {rows:,} rows, the plan says {planned:,}"


def npz_differs(path: str, rows: int) -> str:
    """What of the arrays of embeddings doesn't have the rows that it should, "" if nothing."""
    with storage.open_read(path) as file:
        try:
            names = [name.removesuffix(".npy") for name in zipfile.ZipFile(file).namelist()]
        except (zipfile.BadZipFile, OSError) as error:
            return f"not a .npz file, or cut short ({error})"
    shapes = {name: arrays.array_shape(path, name) for name in names}
    wrong = [f"{name} of shape {shape}" for name, shape in shapes.items() if shape[0] != rows]
    if names and not wrong:
        return ""
    return f"holds {', '.join(wrong) or 'no array'}, expected {rows:,} rows"


def subset_differs(path: str, *, rows: int | None, multiset: bool) -> str:
    """What is wrong with a file of uids: its number of rows, their order, repeats; "" if nothing."""
    try:
        found = arrays.read_npy(path, "of uids")
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    if found.dtype != uids.DTYPE or found.ndim != 1:
        return "holds no uids of dtype u8,u8 in one dimension"
    if rows is not None and len(found) != rows:
        return f"holds {len(found):,} uids, its manifest says {rows:,}"
    order = uid_sets.look_at_order(found)
    if order.unsorted_at is not None:
        return f"is not sorted: row {order.unsorted_at:,}"
    if order.repeats and not multiset:
        return f"holds {order.repeats:,} uids twice, the first in row {order.repeated_at:,}"
    return ""


def open_file(path: str, *, inputs: bool, digests: bool, stores: tuple[str, ...] = ()) -> Run:
    """Reads the manifest beside a file.

    Args:
      path: of the file. (The manifest names it too, but a file may be moved with its manifest, and a name that a
        stranger wrote is not to be opened.)
      inputs: whether the run's inputs are to be checked.
      digests: whether they are to be read whole for it.
      stores: where they may lie, see `Run.stores`.

    Raises:
      InputError: the manifest is missing or can't be read.
    """
    beside = f"{path}.{manifest.NAME}"
    content = read_json(beside)
    run = Run(path, str(content.get("command", "?")), stores=stores)
    outputs = list(entries(content.get("outputs")).items())
    if len(outputs) != 1:
        raise InputError(f"{beside}: names {len(outputs)} outputs, expected the file beside it")
    name, (size, digest) = outputs[0]
    if name.rpartition("/")[2] != path.rpartition("/")[2]:
        run.add("damaged", beside, f"is the manifest of {name[:200]!r}")
    if storage.exists(path):
        run.checks.append(Check(path, size, digest, look=_look(path, content)))
    else:
        run.add("missing", path, "its manifest is there, the file is not")
    if inputs:
        for key in ("inputs", "pool", "pool_files"):
            input_checks(run, content.get(key), digests=digests)
    return run


def _look(path: str, content: dict[str, Any]) -> Callable[[], str] | None:
    """What to look at in a file whose bytes are right."""
    options = content.get("options")
    multiset = bool(options.get("multiset")) if isinstance(options, dict) else False
    count = content.get("uids")
    command = content.get("command")
    if command in ("select", "filter", "norm-sim-d", "uids") and path.endswith(".npy"):
        rows = count if isinstance(count, int) else None
        return functools.partial(subset_differs, path, rows=rows, multiset=multiset)
    if command == "embed" and path.endswith(".npz") and isinstance(content.get("pairs"), int):
        return functools.partial(npz_differs, path, content["pairs"])
    if command == "evaluate":
        return functools.partial(_figures_differ, path, content.get("figures"))
    return None


def _figures_differ(path: str, figures: object) -> str:
    try:
        found = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return "" if found == figures else "its figures are not those of its manifest"
