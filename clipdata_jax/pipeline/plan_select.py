"""What `select` and `reshard` will take. Imports no jax."""

from __future__ import annotations

import time

from clipdata_jax import stopping
from clipdata_jax.config import Reshard, Select
from clipdata_jax.data import files, joined, sources, tables, tars, threads, uids
from clipdata_jax.pipeline import plan_embed, reshard_processes
from clipdata_jax.pipeline.plan_estimates import Estimate, Machine, Times
from clipdata_jax.pipeline.progress import counted
from clipdata_jax.selection import parsing

_BASE = 50 << 20  # the interpreter and pyarrow
_UID, _SCORE = 16, 4
_START = 0.3
_PARTS = 3
_SAMPLE = 64 << 20


def select(options: Select, machine: Machine) -> Estimate:
    """What a selection takes: always one process.

    Raises:
      InputError: a table or the rule is wrong.
    """
    table = tables.open_tables(options.scores)
    more = joined.open_columns(options.columns)
    names = [*table.columns, *(name for one in more for name in one.names)]
    columns = parsing.parse(options.rule, names).columns()
    joined.refuse_shared(more, table.columns, columns)
    rows, largest = len(table), max(table.rows)
    read = rows * (_UID + _SCORE * len(columns))
    beside = sum(files.size(part) for one in more for part in one.parts)
    kept = min(options.memory_gb * 2**30, rows * _SCORE * len(columns))
    own = [name for name in columns if name in table.columns]
    reading = _part_seconds(table, own) * rows if machine.calibrate else 0.0
    return Estimate(
        command="select",
        rows=rows,
        work=f"{counted(rows, 'pair')}, {counted(len(table.parts), 'part')}, {counted(len(columns), 'column')}",
        read=read + beside,
        written=0 if options.out is None else _UID * rows,
        out=options.out or ".",
        memory=_BASE + round(kept) + 2 * beside + largest * (2 * _UID + 3 * _SCORE * max(1, len(columns))),
        times=Times.one_by_one(_START, read=reading) if machine.calibrate else None,
        alone=True,
        notes=("how much is written depends on the rule: at most every uid",),
    )


def _part_seconds(table: tables.ScoreTable, columns: list[str]) -> float:
    """Seconds a row to read columns and uids, by some parts."""
    start, rows = time.monotonic(), 0
    for part in table.parts[:_PARTS]:
        rows += len(table.read_part(part, columns)[0])
    return (time.monotonic() - start) / max(rows, 1)


def reshard(options: Reshard, machine: Machine) -> Estimate:
    """What writing the selected samples takes.

    Args:
      options: of the command.
      machine: that does it.

    Raises:
      InputError: a tar is missing or broken.
    """
    units = [sources.Tar(path, files.size(path)) for path in tars.find_tars(options.tars)]
    per_byte, stored = plan_embed.look(units)
    whole = sum(unit.bytes for unit in units)
    rows = round(whole * per_byte)
    selected = len(uids.read_multiset(options.subset)[0]) if files.exists(options.subset) else None
    share = 1.0 if selected is None else min(1.0, selected / max(rows, 1))
    kept = round(rows * share)
    in_unit = options.tars_per_unit if options.samples_per_tar else 1
    paths = [unit.path for unit in units[:: machine.processes]]
    of_units = [paths[start : start + in_unit] for start in range(0, len(paths), in_unit)]
    processes = reshard_processes.how_many(of_units, options)
    written = round(whole * share) + _UID * kept
    to_write = (
        "all to write, for the subset isn't there yet" if selected is None else f"about {kept:,} to write"
    )
    return Estimate(
        command="reshard",
        rows=rows,
        work=f"about {counted(rows, 'sample')}, {counted(len(units), 'tar')}; {to_write}",
        read=round(whole * share) + 512 * 4 * rows,
        written=written,
        out=options.out,
        memory=processes * _BASE + 3 * _UID * (selected or rows) + round(8 * stored) * threads.cores(),
        times=_copy_times(units[0].path, written / machine.processes) if machine.calibrate else None,
    )


def _copy_times(path: str, written: float) -> Times:
    """Seconds to read and to write so many bytes, by a sample of a tar."""
    start = time.monotonic()
    with files.open_read(path) as file:
        data = file.read(_SAMPLE)
    read = (time.monotonic() - start) / max(len(data), 1)
    with stopping.scratch("clipdata-plan-") as folder:
        start = time.monotonic()
        files.write_bytes(files.join(folder, "sample"), data)
        write = (time.monotonic() - start) / max(len(data), 1)
    return Times.one_by_one(_START, read=read * written, write=write * written)
