"""Estimates of what each command reads, holds and writes, from listings, footers and headers. Imports no jax."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from clipdata_jax import config, storage
from clipdata_jax.commands import norm_sim_d, score
from clipdata_jax.config.model_sizes import ModelSizes
from clipdata_jax.embedding import single_file
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, external_columns, metadata, score_tables, tars, uid_files
from clipdata_jax.formats.embedding_shards import EmbeddingPool, open_pool, target_array
from clipdata_jax.formats.sources import discovery
from clipdata_jax.formats.sources.image_folders import ImageFolder
from clipdata_jax.formats.sources.source import RowRange, Source, TarSource
from clipdata_jax.runtime import threads
from clipdata_jax.runtime.console import counted
from clipdata_jax.scoring import target_sets, units
from clipdata_jax.scoring.columns import neg_clip_loss_columns
from clipdata_jax.scoring.duplicate_search import BLOCK, search_units
from clipdata_jax.scoring.norm_sim_d_steps import rows_scored
from clipdata_jax.selection import parsing

_LOOKED_AT = 100  # samples of a source, to estimate how many it holds
_BASE = 250 << 20  # the interpreter, jax, pyarrow
_UID, _SCORE = 16, 4
_COLUMNS = 60  # bytes of a pair's uid, size, tar and key in parquet
_DECODED = 3 * 4_000_000  # an image of a few megapixels
_STATES = 3  # of training: parameters and two moments
_BATCHES = 6  # of the input of training that are in work, or on the devices
_TOKENS = 50_000  # in the vocabulary of a CLIP
_ENTRY, _ENTRIES = 4, 8  # bytes of a number in a list, and how many a caption has
_AUTOMATON, _DECODED_TEXT = 100, 8  # bytes of memory for one of a list of entries, and for one of parquet
_OF_DEDUP = 50  # bytes of memory a pair
_CAPTIONS, _PROMPTS = 5, 80_000  # of an image to retrieve, of the classes: COCO's, ImageNet's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The needs of a command: bytes of all processes together, memory of one.

    Attributes:
      work: rows, shards and units, in words.
      read: bytes to read.
      written: bytes to write.
      fixed: bytes of memory, whatever the options below.
      each: bytes of memory for each of `count` items, such as the pairs of a unit.
      count: how many items are held.
      advice: the number of items that fit -> what to change.
      units: how many the processes deal out; None if they don't.
      rows_timed: rows that the lines of its `_run.jsonl` add up to; 0 if it writes none.
      notes: what else there is to know.
    """

    work: str
    read: int
    written: int
    fixed: int
    each: int = 0
    count: int = 0
    advice: Callable[[int], str]
    units: int | None = None
    rows_timed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        """An upper bound of the bytes that a process holds."""
        return self.fixed + self.each * self.count


def estimate(command: str, options: Any, memory: int) -> Estimate:
    """Estimates a command.

    Args:
      command: its name, one of `PLANNED`.
      options: its dataclass.
      memory: bytes of a machine.

    Raises:
      InputError: an input is missing or wrong, or does not fit in memory.
    """
    found = _ESTIMATORS[command](options)
    if found.memory > memory:
        advice = found.advice((memory - found.fixed) // found.each if found.each else 0)
        needed, there = size_text(found.memory), size_text(memory)
        raise InputError(f"{command}: needs {needed} of memory, and there are {there}; {advice}")
    return found


def size_text(size: float) -> str:
    """Formats bytes: "1.5 GB"."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.2g} {unit}"
        size /= 1000
    return f"{size:,.1f} PB"


def _at_most(fewer: str, otherwise: str) -> Callable[[int], str]:
    return lambda fits: fewer.format(fits) if fits > 0 else otherwise


def _bytes(paths: Iterable[str]) -> int:
    return sum(storage.size(path) for path in set(paths))


def _samples(found: Sequence[Source]) -> tuple[list[int], float]:
    """The samples in each source, and the bytes of one; of tars estimates, by the first samples of up to three."""
    in_tars = [source for source in found if isinstance(source, TarSource)]
    others = [source for source in found if not isinstance(source, TarSource)]
    count = weight = 0
    sizes: list[int] = []
    for source in in_tars[:: max(1, len(in_tars) // 3)][:3]:
        read = [_size(sample) for sample in itertools.islice(source.samples(), _LOOKED_AT)]
        count, sizes = count + len(read), sizes + read
        weight += storage.size(source.path) if len(read) < _LOOKED_AT else sum(read)
    sizes += [_size(sample) for one in others[:1] for sample in itertools.islice(one.samples(), _LOOKED_AT)]
    if found and not sizes:
        raise InputError(f"{found[0].path}: holds no sample, nor do others that were looked into")

    def samples_in(source: Source) -> int:
        if isinstance(source, RowRange):
            return source.stop - source.start
        is_folder = isinstance(source, ImageFolder)
        return len(source.image_files()) if is_folder else round(_bytes(source.inputs) * count / max(weight, 1))

    return list(map(samples_in, found)), sum(sizes) / max(len(sizes), 1)


def _size(sample: tars.RawSample) -> int:
    """The bytes of a sample; in a tar a member takes a header, and whole blocks of 512 bytes."""
    if isinstance(sample, tars.ImageFileSample):
        return storage.size(sample.path) if storage.exists(sample.path) else 0
    return sum(512 * (1 + -(-len(data) // 512)) for data in sample.members.values())


def _stored(found: Sequence[Source], rows: Sequence[int], each: float) -> int:
    """The bytes of sources, of which a sample has so many where it is not in a tar."""
    return round(
        sum(_bytes(one.inputs) if isinstance(one, TarSource) else rows[i] * each for i, one in enumerate(found))
    )


def _sources(options: config.Reshard | config.Train) -> list[Source]:
    found = discovery.find_sources(options.sources, images_only=False, reading=options.reading)
    return list(found.units.values())


def _tars(patterns: Sequence[str]) -> list[TarSource]:
    return [TarSource(path) for path in (tars.find_tars(patterns) if patterns else ())]


def _model(folder: str) -> tuple[int, int, int]:
    """A checkpoint's embedding dimension, image size and bytes of weights; a ViT-B/32's if it isn't a local folder."""
    for path in (Path(folder, "open_clip_config.json"), Path(folder, "config.json")):
        if path.is_file():
            try:
                content = json.loads(path.read_bytes())
                content = content.get("model_cfg", content)
                vision = content.get("vision_cfg", content.get("vision_config", content))
                dim = content.get("embed_dim", content.get("projection_dim", vision.get("hidden_size", 512)))
                weights = sum(file.stat().st_size for file in path.parent.glob("*.safetensors"))
                return int(dim), int(vision.get("image_size", 224)), weights
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"{path}: not the config of a CLIP ({error}); check the checkpoint") from error
    return 512, 224, 600_000_000


def _embed(options: config.Embed) -> Estimate:
    sources = discovery.find_sources(options.sources, images_only=options.images_only, reading=options.reading)
    found = list(sources.units.values())
    rows, stored = _samples(found)
    if options.limit is not None:
        ends = list(itertools.accumulate(rows, initial=0))
        cut = [
            (one, min(n, options.limit - start)) for one, n, start in zip(found, rows, ends) if start < options.limit
        ]
        found, rows = [one for one, _ in cut], [n for _, n in cut]
    dims, sizes, weights = zip(*map(_model, options.models().values()), strict=True)
    row = 2 * (1 if options.images_only else 2) * sum(dims)
    in_unit = 2 * max(rows) * (row + 4 * _COLUMNS)
    decoding = round((options.decoders or threads.cores()) * (4 * stored + _DECODED))
    return Estimate(
        work=f"about {counted(sum(rows), 'pair')}, {counted(len(found), 'unit')}",
        read=_stored(found, rows, stored),
        written=sum(rows) * (row + (0 if single_file.is_file(options.out) else _COLUMNS)),
        fixed=_BASE + 2 * sum(weights) + in_unit + decoding,
        each=9 * sum(size**2 for size in sizes),
        count=options.batch_size,
        advice=_at_most("use --batch-size {:,} or less", "use a smaller model, or shorter tars"),
        units=len(found),
        rows_timed=sum(rows),
    )


def _pool(
    options: config.Score | config.Dedup | config.NormSimD, *, texts: bool, text_key: str | None = None
) -> tuple[EmbeddingPool, str, int, int]:
    """A pool of embeddings, its tag, and the bytes of an embedding in its files and in float32."""
    pool = open_pool(
        options.pool,
        on_bad=options.on_bad,
        texts=texts,
        keys=(options.image_key, text_key),
        uid_column=options.uid_column,
    )
    tag = pool.tag(options.tag)
    dim = units.dimension(pool, tag)
    first = next(shard for shard in pool.shards if shard.rows)
    row = dim * max(2, min(4, storage.size(first.images) // (first.rows * dim)))
    if isinstance(options, config.Score) and options.limit is not None:
        pool = pool.first(options.limit)
    return pool, tag, row, 4 * dim


def _score(options: config.Score) -> Estimate:
    pool, tag, row, row_float32 = _pool(options, texts=options.by_text, text_key=options.text_key)
    chosen, settings = options.chosen(), options.neg_clip_loss
    norm_sim, named = options.norm_sim, options.norm_sim.targets()
    temperatures, _ = units.choose_temperatures(settings.temperatures(), target_sets.made_by_model(options.pool, tag))
    in_unit = [sum(shard.rows for shard in unit) for unit in score.plan_units(pool, settings)]
    columns, targets, notes = int("clip_score" in chosen), 0, []
    if "neg_clip_loss" in chosen:
        columns += 4 * len(neg_clip_loss_columns(settings, tag, temperatures))
        if max(settings.batch_sizes()) > len(pool):
            notes.append(f"--batch-size is more than the pool's {len(pool):,} pairs, which make one batch")
    columns += len(options.head) if "head" in chosen else 0
    if "norm_sim" in chosen:
        columns += len(norm_sim.p) * (len(named) + (norm_sim.union is not None))
        columns += len(named) * (norm_sim.nearest and math.inf in norm_sim.p)
        targets = _target_rows(named.values(), tag, notes)
    # One unit is scored, one is read, images and captions each; they are mapped or, where scaled, float32 copies, which
    # are copied again where a unit has several shards and where a group is laid out for its device.
    sides = 12 * row_float32 if options.normalize else 4 * row
    return Estimate(
        work=f"{counted(len(pool), 'pair')}, {counted(len(pool.shards), 'shard')}, {counted(len(in_unit), 'unit')}",
        read=_bytes(path for shard in pool.shards for path in units.shard_files(shard)),
        written=len(pool) * (_UID + _SCORE * columns),
        fixed=_BASE + targets * row_float32,
        each=sides + 3 * _UID + 2 * _SCORE * columns,
        count=max(in_unit),
        advice=functools.partial(_smaller_unit, settings, [shard.rows for shard in pool.shards if shard.rows]),
        units=len(in_unit),
        rows_timed=len(pool),
        notes=tuple(notes),
    )


def _target_rows(paths: Iterable[str], tag: str, notes: list[str]) -> int:
    """The rows of target sets; takes note of those that aren't embedded yet."""
    ready = {path for path in paths if target_sets.is_embedded(path)}
    parts = (storage.Folder(path).files(".npz") if storage.is_folder(path) else [path] for path in ready)
    if left := sorted({*paths} - ready):
        notes.append(f"not counted, for their images aren't embedded yet: {', '.join(left[:3])}")
    return sum(arrays.array_shape(part, target_array(part, tag))[0] for part in itertools.chain(*parts))


def _smaller_unit(settings: config.NegClipLoss, shards: Sequence[int], fits: int) -> str:
    """The advice that makes units of at most `fits` pairs of shards of these sizes."""
    if max(shards) > fits or settings.division == "shard":
        return f"write shards of at most {max(0, fits):,} pairs"
    if settings.mix_shards and settings.mix_shards > 1:
        return f"use a smaller --mix-shards: {max(1, fits // max(shards))} or less"
    # Shards that don't fill a group make a unit of nearly two groups and a shard.
    most = max((fits - max(shards)) // 2, min(shards))
    return f"use a smaller --batch-size or --group: together at most {most:,} pairs"


def _entries(options: config.Entries) -> Estimate:
    parts = metadata.list_parts(options.pool, metadata.Skipped(), options.uid_column)
    rows, size = sum(part.rows for part in parts), storage.size(options.list)
    return Estimate(
        work=f"{counted(rows, 'caption')}, {counted(len(parts), 'shard')}, {size_text(size)} of entries",
        read=sum(part.bytes for part in parts) + size,
        written=rows * (_UID + _ENTRY * _ENTRIES),
        fixed=_BASE + _AUTOMATON * size + _DECODED_TEXT * max((part.bytes for part in parts), default=0),
        advice=lambda _: "use smaller files of metadata, or a shorter list",
        units=len(parts),
        rows_timed=rows,
        notes=(f"of each file only uids and captions are read; {_ENTRIES} entries a caption are counted as written",),
    )


def _dedup(options: config.Dedup) -> Estimate:
    by_text = options.by != "image"
    pool, tag, row, row_float32 = _pool(options, texts=by_text, text_key=options.text_key)
    rows, notes, clustered = len(pool), list[str](), options.is_clustered
    kinds = 2 if options.by == "both" or (by_text and options.against) else 1
    targets = _target_rows(options.sets().values(), tag, notes)
    units = 1 + clustered + len(searches := search_units(rows, options.clusters, is_clustered=clustered))
    work = f"{options.clusters or 'given'} clusters" if clustered else f"{rows * (rows - 1) // 2:,} comparisons"
    # Of all pairs, each search has the cosines of its own and all later rows.
    own = rows * kinds * row_float32 // 2 + (2 * rows if clustered else rows * (len(searches) + 1))
    if not clustered:
        notes.append("the first searches compare the most rows: the time left is less than they make it")
    notes.append(f"{size_text(own)} of it are work files beside the output, removed at the end")
    files = [path for shard in pool.shards for path in (shard.metadata, shard.images, by_text and shard.texts) if path]
    sample, block = 2 * 128 * (options.clusters or 0), 4 * BLOCK  # rows in float32
    return Estimate(
        work=f"{counted(rows, 'pair')}, {work}, {counted(units, 'unit')}",
        read=_bytes(files) + targets * row + (_UID + _SCORE if options.column else 0) * rows,
        written=own + 2 * _UID * rows,
        fixed=_BASE + (2 * targets + sample + kinds * (block + max(one.rows for one in pool.shards))) * row_float32,
        each=_OF_DEDUP,
        count=rows,
        advice=_at_most("dedup at most {:,} pairs at a time", "use smaller shards, fewer --clusters or --against"),
        units=units,
        rows_timed=rows,
        notes=tuple(notes),
    )


def _select(options: config.Select) -> Estimate:
    table = score_tables.open_tables(options.scores)
    more = external_columns.open_columns(options.columns, options.on)
    names = [*table.columns, *(name for one in more for name in one.names)]
    columns = len(parsing.parse(options.rule, names).columns())
    rows, beside = len(table), _bytes(part for one in more for part in one.parts)
    part = max(table.rows) * (2 * _UID + 3 * _SCORE * max(1, columns))
    return Estimate(
        work=f"{counted(rows, 'pair')}, {counted(len(table.parts), 'part')}, {counted(columns, 'column')}",
        read=rows * (_UID + _SCORE * columns) + beside,
        written=0 if options.out is None else _UID * rows,
        fixed=_BASE + round(min(options.memory_gb * 2**30, rows * _SCORE * columns)) + 2 * beside + part,
        advice=lambda _: "use a smaller --memory-gb or fewer --columns",
        notes=("how much is written depends on the rule: at most every uid",),
    )


def _filter(options: config.Filter) -> Estimate:
    parts = metadata.list_parts(options.metadata, metadata.Skipped(options.on_bad))
    rows, images, row = sum(part.rows for part in parts), [], 0
    if not rows:
        raise InputError(f"{options.metadata}: the metadata holds no pairs, so there is nothing to select from")
    if options.by_image:
        pool = open_pool(options.metadata, on_bad=options.on_bad, texts=False, keys=(options.image_key, None))
        tag = pool.tag(options.image_key or options.tag)
        images, row = [shard.images for shard in pool.shards], 4 * units.dimension(pool, tag)
    largest = max(2 * 3 * part.bytes + 2 * part.rows * row for part in parts)  # one is filtered, one is read, decoded
    return Estimate(
        work=f"{counted(rows, 'pair')}, {counted(len(parts), 'file')}",
        read=sum(part.bytes for part in parts) + (2 if options.clusters else 1) * _bytes(images),
        written=_UID * rows,
        fixed=_BASE + (64 << 20) + largest,
        each=row + 64,
        count=min(options.sample, rows) if options.clusters else 0,
        advice=_at_most("use a --sample of {:,} or less", "use smaller files of metadata"),
        notes=("how much is read and written depends on the preset: at most every column and uid",),
    )


def _norm_sim_d(options: config.NormSimD) -> Estimate:
    pool, _, row, row_float32 = _pool(options, texts=False)
    survivors = None if options.survivors is None else uid_files.read_subset(options.survivors)
    rows, keep = len(pool) if survivors is None else len(survivors), options.keep(len(pool))
    drop = norm_sim_d.check_steps(options, rows, keep)
    scored = list(rows_scored(rows, keep, drop))
    largest = max(shard.rows for shard in pool.shards)
    again = size_text(rows * row_float32 // 2)
    return Estimate(
        work=f"{counted(rows, 'pair')} to {keep:,}, in {counted(len(scored), 'step')} of {drop:,}",
        read=_bytes(path for shard in pool.shards for path in (shard.metadata, shard.images)),
        written=rows * (row_float32 // 2 + _UID) + _UID * keep,
        # Embeddings are mapped from their file, which the system keeps in memory if it can.
        fixed=_BASE + 2 * largest * row + 60 * rows + (0 if survivors is None else survivors.nbytes),
        advice=lambda _: "use smaller shards, or fewer --survivors",
        rows_timed=sum(scored),
        notes=(f"every step reads {again} or less again, from memory if that has room for it",),
    )


def _reshard(options: config.Reshard) -> Estimate:
    found = _sources(options)
    rows, stored = _samples(found)
    whole, total = _stored(found, rows, stored), sum(rows)
    noun = "tar" if all(isinstance(source, TarSource) for source in found) else "source"
    there = storage.exists(options.subset)
    selected = len(uid_files.read_multiset(options.subset)[0]) if there else total
    share = min(1.0, selected / max(total, 1))
    to_write = f"about {round(total * share):,} to write" if there else "all to write, for the subset isn't there yet"
    return Estimate(
        work=f"about {counted(total, 'sample')}, {counted(len(found), noun)}; {to_write}",
        read=round(whole * share) + 512 * 4 * total,
        written=round(whole * share + _UID * total * share),
        fixed=_BASE + round(8 * stored) * threads.cores(),
        each=3 * _UID,
        count=selected,
        advice=_at_most("use a --subset of at most {:,} uids", "use tars of smaller samples"),
        units=-(-len(found) // (options.tars_per_unit if options.samples_per_tar else 1)),
        rows_timed=total,
    )


def _train(options: config.Train) -> Estimate:
    found = _sources(options)
    rows, stored = _samples(found)
    settings = options.settings()
    pairs, batch, steps = sum(rows), settings.batch_size, settings.steps
    part = options.compute.microbatch or batch
    if options.subset is not None and storage.exists(options.subset):
        pairs = min(pairs, len(uid_files.read_subset(options.subset)))
    if pairs < batch:
        found_pairs = f"train: there are about {pairs:,} pairs to train on, fewer than one batch of {batch:,}"
        raise InputError(f"{found_pairs}; give more, or a smaller --batch-size")
    image_size, context_length, parameters = _trained_model(options, settings.sizes)
    image, state = 3 * image_size**2, 4 * _STATES * parameters
    checkpoints = -(-steps // options.checkpoint_every)
    every = options.keep_interval()
    kept = min(2, checkpoints) + (steps // every if every else 0)
    return Estimate(
        work=f"about {counted(pairs, 'pair')}, {counted(steps, 'step')} of {batch:,} pairs",
        read=_stored(found, rows, stored),
        written=kept * state + 2 * state // _STATES,
        # The state, the gradients and a checkpoint being written; batches in work, as bytes and as floats.
        fixed=_BASE + 3 * state + _BATCHES * batch * (image + 4 * context_length) + 4 * part * image,
        advice=lambda fits: "use a smaller model or --batch-size, or --microbatch",
        rows_timed=steps * batch,
        notes=(
            "every process reads the headers of all sources",
            f"{counted(checkpoints, 'checkpoint')} of {size_text(state)}",
        ),
    )


def _trained_model(options: config.Train, sizes: ModelSizes | None) -> tuple[int, int, int]:
    """The image size, the context length and the number of parameters of the model that is trained."""
    if sizes is not None:
        return sizes.image_size, sizes.context_length, sizes.parameters(_TOKENS)
    _, image_size, weights = _model(str(options.model.init))
    return image_size, 77, weights // 2  # float16 at the least


def _evaluate(options: config.Evaluate) -> Estimate:
    if options.data is not None:
        return _evaluate_suite(options, options.data)
    captioned, labelled = _tars(options.retrieval), _tars(options.classification)
    captions, labels = (sum(_samples(found)[0]) for found in (captioned, labelled))
    texts = _CAPTIONS * captions + (_PROMPTS if labelled else 0)
    dim, size, weights = _model(options.model)
    return Estimate(
        work=f"about {counted(captions + labels, 'image')}, {counted(len(captioned) + len(labelled), 'tar')}",
        read=_bytes(source.path for source in (*captioned, *labelled)),
        written=2_000,
        fixed=_BASE + 2 * weights + 2 * 4 * dim * (captions + labels + texts),
        each=9 * size**2,
        count=options.batch_size,
        advice=_at_most("use --batch-size {:,} or less", "use a smaller model, or fewer images"),
    )


def _evaluate_suite(options: config.Evaluate, data: str) -> Estimate:
    from clipdata_jax.evaluation import task_files  # brings jax

    found, missing = task_files.locate_all(data, options.task_words())
    opened = [task_files.open_task(task, folder) for task, folder in found.items()]
    images = sum(task.images for task in found)
    texts = max((len(one.names.get("", ())) * len(one.templates.get("", ())) for one in opened), default=0)
    dim, size, weights = _model(options.model)
    largest = max(task.images for task in found)
    return Estimate(
        work=f"{counted(len(found), 'task')} of about {counted(images, 'image')}, {len(missing)} missing",
        read=_bytes(path for one in opened for path in one.inputs),
        written=4_000 * len(found),
        fixed=_BASE + 2 * weights + 2 * 4 * dim * (largest + texts),
        each=9 * size**2,
        count=options.batch_size,
        advice=_at_most("use --batch-size {:,} or less", "use a smaller model"),
        units=len(found),
        rows_timed=images,
    )


_ESTIMATORS: dict[str, Callable[[Any], Estimate]] = {
    "embed": _embed,
    "score": _score,
    "entries": _entries,
    "dedup": _dedup,
    "select": _select,
    "filter": _filter,
    "norm-sim-d": _norm_sim_d,
    "reshard": _reshard,
    "train": _train,
    "evaluate": _evaluate,
}
