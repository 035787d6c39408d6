"""From uids to what the metadata has of them: the owner's ids, or whole rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from clipdata_jax import storage
from clipdata_jax.errors import InputError
from clipdata_jax.formats import ids, metadata, parquet, row_files, uids
from clipdata_jax.formats.uid_files import UidFile
from clipdata_jax.runtime.console import counted

_EXAMPLES = 3


@dataclasses.dataclass
class IdCounts:
    """Counts of a subset that is written in its owner's ids.

    Attributes:
      written: ids written.
      missing: uids of the subset that the metadata lacks.
      missing_examples: the first few of these.
      repeated: rows of the metadata that repeat a uid of the subset; it counts once.
      other: ids written of which their uids are not made.
    """

    written: int = 0
    missing: int = 0
    missing_examples: tuple[str, ...] = ()
    repeated: int = 0
    other: int = 0


def write_ids(source: UidFile, folder: str, out: str, *, uid_column: str, multiset: bool) -> IdCounts:
    """Writes the ids of a subset's pairs, in the order of the metadata.

    Memory holds the subset, nine bytes more for each uid of it, and a block of the metadata.

    Args:
      source: the subset.
      folder: the pool's metadata: a folder or .parquet file with a column uid and perhaps id.
      out: the .txt, .csv or .parquet file to write.
      uid_column: the metadata's column of ids.
      multiset: whether an id is written as often as the subset has its uid.

    Raises:
      InputError: the metadata can't be read or lacks all of the uids, or two ids have the same uid.
    """
    starts = np.flatnonzero(uids.first_of_each(source.rows))
    times = np.diff(np.append(starts, len(source.rows))) if multiset else np.ones(len(starts), np.int64)
    wanted = np.asarray(source.rows[starts])
    index, counts = uids.UidIndex(wanted), IdCounts()
    met, seen = np.zeros(len(wanted), bool), np.zeros(len(wanted), np.int64)

    def blocks() -> Iterator[list[str]]:
        for path in metadata.files_of(folder):
            for block in metadata.iterate_ids(path, uid_column):
                at = index.find(block.uid)
                rows = np.flatnonzero(at >= 0)
                texts = [block.texts[row] for row in rows.tolist()]
                if texts:
                    made = ids.from_column(texts, path, block.first_row, "id").uid
                    counts.other += int(np.count_nonzero(made != block.uid[rows]))
                yield list(_first(at[rows], texts, path))
        if not met.any() and len(wanted):
            raise InputError(f"{source.path}: none of its {len(wanted):,} uids is in {folder}; is it another pool's?")

    def _first(positions: np.ndarray, texts: list[str], path: str) -> Iterator[str]:
        for position, text in zip(positions.tolist(), texts, strict=True):
            if not met[position]:
                met[position], seen[position] = True, hash(text)
                yield from [text] * int(times[position])
            elif seen[position] == hash(text):
                counts.repeated += 1
            else:
                uid = uids.to_hex(wanted[position : position + 1])[0]
                raise InputError(f"{path}: the id {text!r:.80} has the uid {uid}, as another id before; rename one")

    if out.endswith(".txt"):
        counts.written = _write_lines(out, blocks())
    else:
        schema = pa.schema([("id", pa.string())])
        counts.written = row_files.write(out, schema, (pa.table([texts], schema) for texts in blocks()))
    missing = np.flatnonzero(~met)
    counts.missing = len(missing)
    counts.missing_examples = tuple(uids.to_hex(wanted[missing[:_EXAMPLES]]))
    return counts


def _write_lines(path: str, blocks: Iterable[list[str]]) -> int:
    count = 0
    with storage.open_write(path) as file:
        for texts in blocks:
            for text in texts:
                if text != text.strip() or len(text.splitlines()) > 1:
                    raise InputError(
                        f"{path}: the id {text!r:.80} doesn't fit on a line; write a .csv or .parquet file"
                    )
            file.write("".join(f"{text}\n" for text in texts).encode())
            count += len(texts)
    return count


def ids_text(counts: IdCounts, folder: str, out: str) -> str:
    """Formats what `write_ids` counted; "" if there is nothing to say."""
    lines = []
    if counts.missing:
        examples = ", ".join(counts.missing_examples)
        lines.append(f"{counted(counts.missing, 'uid')} not in {folder}, e.g. {examples}")
    if counts.repeated:
        lines.append(f"{folder} repeats uids in {counted(counts.repeated, 'row')}; each counts once")
    if counts.other:
        lines.append(
            f"{counted(counts.other, 'row')} of {folder}: the uid is not made of the id beside it, so that {out}"
            " can't be given back as a subset"
        )
    return "\n".join(lines)


def find_rows(given: Iterable[str], folder: str, uid_column: str) -> tuple[list[dict[str, str]], list[str]]:
    """Finds the rows of metadata that have some uids.

    Args:
      given: uids, or ids that uids were made of.
      folder: the pool's metadata.
      uid_column: its column of ids.

    Returns:
      Of each row column -> value as text, "file" and "row" among them; and what no row has.

    Raises:
      InputError: the metadata can't be read.
    """
    wanted = {ids.uid_of_id(one): one for one in given}
    index = uids.UidIndex(uids.sort_unique(uids.from_hex(list(wanted))))
    found = [row for path in metadata.files_of(folder) for row in _rows_of(path, index, uid_column)]
    there = {row["uid"] for row in found}
    return found, [one for uid, one in wanted.items() if uid not in there]


def _rows_of(path: str, index: uids.UidIndex, uid_column: str) -> Iterator[dict[str, str]]:
    at: dict[int, tuple[str, str]] = {}
    for block in metadata.iterate_ids(path, uid_column):
        rows = np.flatnonzero(index.find(block.uid) >= 0).tolist()
        for row, uid in zip(rows, uids.to_hex(block.uid[rows]), strict=True):
            at[block.first_row + row] = uid, block.texts[row]
    if not at:
        return
    names = [
        name for name, kind in parquet.rows_and_types(path)[1].items() if _is_shown(name, kind) and name != uid_column
    ]
    table = parquet.read(path, names).take(pa.array(list(at)))
    for (row, (uid, text)), values in zip(at.items(), table.to_pylist(), strict=True):
        own = {} if text.replace("-", "").lower() == uid else {"id": text}
        rest = {name: str(value) for name, value in values.items() if value is not None}
        yield {"uid": uid, **own, **rest, "file": path, "row": f"{row:,}"}


def _is_shown(name: str, kind: pa.DataType) -> bool:
    checks = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return name not in ("uid", "id") and not any(check(kind) for check in checks)
