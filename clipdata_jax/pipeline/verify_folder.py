"""What a folder that a run fills should hold: from its plan, its receipts and its manifest. Opens no part."""

from __future__ import annotations

import functools
from typing import Any

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import manifest, verify_contents
from clipdata_jax.pipeline.records import Check, Run, entries, input_checks, is_inside, leaves, read_json
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
    listed = storage.sizes(folder)
    receipts = _receipts(run, units, listed)
    run.units = len(units), len(receipts)
    expected = verify_contents.expectations(plan)
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
    expected: verify_contents.Expectations,
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


def _find_doubled(
    run: Run, receipts: _Receipts, parts: dict[str, Any], expected: verify_contents.Expectations
) -> None:
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
    expected: verify_contents.Expectations,
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
        return storage.list_folder(folder, suffix)
    except InputError:
        return []


def _skipped(receipt: dict[str, Any]) -> list[str]:
    facts = receipt.get("facts")
    skipped = facts.get("skipped") if isinstance(facts, dict) else None
    return [str(one.get("shard")) for one in skipped or () if isinstance(one, dict)]


def _repeated(names: list[Any]) -> list[Any]:
    return sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
