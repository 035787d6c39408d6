"""What `embed` will take. Imports no jax."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from clipdata_jax.config import Embed
from clipdata_jax.data import sources, threads
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import plan_probe_embed, targets
from clipdata_jax.pipeline.plan_estimates import Estimate, Machine, Times, idle_note, size_text
from clipdata_jax.pipeline.plan_probe_embed import EmbedFacts
from clipdata_jax.pipeline.progress import counted

_LOOKED_AT = 100  # samples of a source, to tell how many it holds
_SOURCES = 3
_BASE = 220 << 20  # the interpreter, jax and what it compiled
_COLUMNS = 60  # bytes of a pair's uid, sizes, tar and key in parquet


def estimate(options: Embed, machine: Machine) -> Estimate:
    """What embedding takes.

    Raises:
      InputError: a source or a model is missing, or a batch can't fit in memory.
    """
    found = sources.find_sources(
        options.sources,
        images_only=options.images_only,
        picture_column=options.picture_column,
        caption_column=options.caption_column,
    )
    units = list(found.units.values())
    each, stored = look(units)
    rows = [round(each * _weight(unit)) for unit in units]
    facts: EmbedFacts = machine.probe.ask(plan_probe_embed.embed, options, machine.calibrate)
    units_in_memory = 2 * max(rows) * (2 * facts.numbers + 4 * _COLUMNS)
    memory = host_memory(options, facts, stored, machine) + units_in_memory
    refuse_large("embed", options, facts, memory, machine)
    total_rows = sum(rows)
    return Estimate(
        command="embed",
        rows=total_rows,
        work=f"about {counted(total_rows, 'pair')}, {counted(len(units), 'unit')}",
        read=sum(
            unit.bytes if isinstance(unit, sources.Tar) else round(n * stored)
            for unit, n in zip(units, rows, strict=True)
        ),
        written=total_rows * (2 * facts.numbers + (0 if targets.is_file(options.out) else _COLUMNS)),
        out=options.out,
        memory=memory,
        device_memory=device_memory(facts),
        operations=total_rows * (facts.of_picture + facts.of_caption),
        times=_times(facts, rows, machine) if machine.calibrate else None,
        notes=idle_note(machine.processes, len(units)),
    )


def look(units: Sequence[sources.Source]) -> tuple[float, float]:
    """Samples in a source of weight 1, and bytes of one, by the first samples of some sources.

    Raises:
      InputError: a source can't be read, or they hold nothing.
    """
    count, weight, stored = 0, 0.0, 0
    for unit in units[:: max(1, len(units) // _SOURCES)][:_SOURCES]:
        # A member takes a header, and whole blocks of 512 bytes.
        blocks = [
            sum(512 * (1 + -(-len(data) // 512)) for data in sample.members.values())
            for sample in itertools.islice(unit.samples(), _LOOKED_AT)
        ]
        count, stored = count + len(blocks), stored + sum(blocks)
        if len(blocks) < _LOOKED_AT:
            weight += _weight(unit)
        else:
            weight += sum(blocks) if isinstance(unit, sources.Tar) else len(blocks)
    if not count:
        raise InputError(f"{units[0].path}: holds no sample, nor do others that were looked into")
    return count / weight, stored / count


def _weight(unit: sources.Source) -> float:
    """What samples are counted by: a tar's bytes, or 1 for a source that says what share of it a sample is."""
    if isinstance(unit, sources.Tar):
        return unit.bytes
    if isinstance(unit, sources.Pictures):
        return len(unit.names)
    return unit.stop - unit.start if isinstance(unit, sources.Rows) else 1.0


def device_memory(facts: EmbedFacts) -> int:
    """Bytes of a device: the models, and two batches."""
    return facts.parameters + 2 * facts.batch


def host_memory(options: Embed, facts: EmbedFacts, stored: float, machine: Machine) -> int:
    """Bytes of a process without embeddings: models, batches of pixels, samples on their way to decoders."""
    pixels = 3 * options.batch_size * machine.devices.count * facts.pixels
    decoders = options.decoders or threads.cores()
    decoded = 4 * decoders * (stored + 3 * 4 * 1_000_000) / 4  # a megapixel or so, decoded, in one of four
    on_devices = machine.devices.count * (facts.parameters + facts.batch) if machine.shares_memory else 0
    return round(_BASE + pixels + decoded + on_devices)


def refuse_large(command: str, options: Embed, facts: EmbedFacts, memory: int, machine: Machine) -> None:
    """Raises InputError if models and batches can't fit, and says what would."""
    on_device, own = device_memory(facts), machine.devices.memory
    for needed, there, what in ((on_device, own, "a device"), (memory, machine.memory, "the machine")):
        if there is None or needed <= there:
            continue
        each = max(
            1, facts.batch * (2 if what == "a device" else machine.devices.count) // options.batch_size
        )
        fits = (there - needed) // each + options.batch_size
        advice = f"use --batch-size {fits}" if fits >= 1 else "use a smaller model, or --dtype bfloat16"
        raise InputError(
            f"{command}: models and batches take {size_text(needed)}, and {what} has {size_text(there)}; {advice}"
        )


def _times(facts: EmbedFacts, rows: Sequence[int], machine: Machine) -> Times:
    n = machine.processes
    most = max(sum(rows[index::n]) for index in range(min(n, len(rows))))
    parts = {"decode": most * facts.decode, "encode": most * (facts.picture + facts.caption)}
    # A CPU's cores do both; elsewhere decoding runs beside the devices.
    work = sum(parts.values()) if machine.devices.platform == "cpu" else max(parts.values())
    return Times(parts, facts.start, work)
