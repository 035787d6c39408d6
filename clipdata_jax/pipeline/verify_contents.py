"""What parts should hold: rows by the plan, arrays by their metadata, uids in order."""

from __future__ import annotations

import dataclasses
import zipfile
from typing import Any

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, parquet, uid_sets, uids


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
