"""What each command reads, holds and writes, from listings, footers and headers. Imports no jax."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipdata_jax import config, storage
from clipdata_jax.commands import norm_sim_d, score, train
from clipdata_jax.commands.evaluate import read_strings
from clipdata_jax.embedding import samples, single_file
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, external_columns, metadata, score_tables, sources, tars, uids
from clipdata_jax.formats.embedding_shards import EmbeddingPool, open_pool
from clipdata_jax.runtime import threads
from clipdata_jax.runtime.console import counted
from clipdata_jax.scoring import target_sets, units
from clipdata_jax.scoring.columns import neg_clip_loss_columns
from clipdata_jax.scoring.norm_sim_d_steps import rows_scored
from clipdata_jax.selection import parsing

_LOOKED_AT = 100  # samples of a source, to estimate how many it holds
_BASE = 250 << 20  # the interpreter, jax, pyarrow
_UID, _SCORE = 16, 4
_COLUMNS = 60  # bytes of a pair's uid, size, tar and key in parquet
_STATES = 3  # of training: parameters and two moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a command takes: bytes of all processes together, memory of one.

    Attributes:
      work: rows, shards and units, in words.
      units: how many there are to deal out.
      rows_timed: rows that the lines of its `run.jsonl` add up to; 0 if it writes none.
      read: bytes to read.
      written: bytes to write.
      out: where to.
      memory: an upper bound of the bytes that a process holds.
      dealt: whether the processes share out the units.
      steps: whether it works in steps, all processes together.
      notes: what else there is to know.
    """

    work: str
    units: int = 1
    rows_timed: int = 0
    read: int
    written: int
    out: str
    memory: int
    dealt: bool = False
    steps: bool = False
    notes: tuple[str, ...] = ()


def estimate(options: object, memory: int) -> Estimate:
    """Estimates a command.

    Args:
      options: of the command.
      memory: bytes of a machine.

    Raises:
      InputError: an input is missing or wrong, or something can't fit.
    """
    if isinstance(options, config.Embed):
        return _embed(options, memory)
    if isinstance(options, config.Score):
        return _score(options, memory)
    if isinstance(options, config.Select):
        return _select(options, memory)
    if isinstance(options, config.Filter):
        return _filter(options, memory)
    if isinstance(options, config.NormSimD):
        return _norm_sim_d(options, memory)
    if isinstance(options, config.Reshard):
        return _reshard(options, memory)
    if isinstance(options, config.Train):
        return _train(options, memory)
    assert isinstance(options, config.Evaluate)
    return _evaluate(options, memory)


def size_text(size: float) -> str:
    """Formats bytes: "1.5 GB"."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.2g} {unit}"
        size /= 1000
    return f"{size:,.1f} PB"


def _check_memory(command: str, what: str, needed: float, there: int, advice: str) -> None:
    if needed > there:
        raise InputError(f"{command}: {what} takes {size_text(needed)}, and there are {size_text(there)}; {advice}")


def _bytes(paths: Iterable[str]) -> int:
    return sum(storage.size(path) for path in set(paths))


def _look(found: Sequence[sources.Source]) -> tuple[float, float]:
    """Samples in a byte of tar (or in a source of rows: 1), and the bytes of one, by the first of some sources."""
    count = weight = stored = 0.0
    for unit in found[:: max(1, len(found) // 3)][:3]:
        # A member takes a header, and whole blocks of 512 bytes.
        blocks = [
            sum(512 * (1 + -(-len(data) // 512)) for data in sample.members.values())
            for sample in itertools.islice(unit.samples(), _LOOKED_AT)
        ]
        count, stored = count + len(blocks), stored + sum(blocks)
        weight += _weight(unit) if len(blocks) < _LOOKED_AT or not unit.inputs else sum(blocks)
    if not count:
        raise InputError(f"{found[0].path}: holds no sample, nor do others that were looked into")
    return count / weight, stored / count


def _weight(unit: sources.Source) -> float:
    """What samples are counted by: a tar's bytes; else the samples themselves."""
    if isinstance(unit, sources.ImageFolder):
        return len(unit.names)
    return unit.stop - unit.start if isinstance(unit, sources.RowRange) else _bytes(unit.inputs)


def _rows(found: Sequence[sources.Source]) -> tuple[list[int], float]:
    """About how many samples each source holds, and the bytes of one."""
    each, stored = _look(found)
    return [
        round(each * _weight(unit)) if isinstance(unit, sources.TarSource) else round(_weight(unit)) for unit in found
    ], stored


def _tars(patterns: Sequence[str]) -> list[sources.TarSource]:
    return [sources.TarSource(path) for path in (tars.find_tars(patterns) if patterns else ())]


def _model(folder: str) -> tuple[int, int, int]:
    """A checkpoint's embedding dimension, image size and bytes of weights; usual ones if it isn't a local folder."""
    path = Path(folder)
    dim, image = 512, 224
    for name, at in (("open_clip_config.json", "model_cfg"), ("config.json", "")):
        if not (path / name).is_file():
            continue
        try:
            content = json.loads((path / name).read_bytes())
            whole = content[at] if at else content
            vision = whole.get("vision_cfg", whole.get("vision_config", {}))
            dim = int(whole.get("embed_dim", whole.get("projection_dim", vision.get("hidden_size", dim))))
            image = int(vision.get("image_size", image))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path / name}: not the config of a CLIP ({error}); check the checkpoint") from error
    return dim, image, sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _embed(options: config.Embed, memory: int) -> Estimate:
    found = sources.find_sources(
        options.sources,
        images_only=options.images_only,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )
    units = list(found.units.values())
    rows, stored = _rows(units)
    models = [_model(path) for path in options.models().values()]
    sides = 1 if options.images_only else 2
    row = 2 * sides * sum(dim for dim, _, _ in models)
    decoders = options.decoders or threads.cores()
    fixed = _BASE + 2 * sum(weights for _, _, weights in models) + 2 * max(rows) * (row + 4 * _COLUMNS)
    fixed += round(decoders * (4 * stored + 3 * 4_000_000))  # a few megapixels, decoded
    of_batch = 3 * 3 * sum(image**2 for _, image, _ in models)
    fits = int((memory - fixed) // of_batch)
    advice = f"use --batch-size {fits:,} or less" if fits > 0 else "use a smaller model, or shorter tars"
    needed = fixed + of_batch * options.batch_size
    _check_memory("embed", "models, batches and units", needed, memory, advice)
    is_tar = all(isinstance(unit, sources.TarSource) for unit in units)
    return Estimate(
        work=f"about {counted(sum(rows), 'pair')}, {counted(len(units), 'unit')}",
        units=len(units),
        rows_timed=sum(rows),
        read=_bytes(path for unit in units for path in unit.inputs) if is_tar else round(sum(rows) * stored),
        written=sum(rows) * (row + (0 if single_file.is_file(options.out) else _COLUMNS)),
        out=options.out,
        memory=needed,
        dealt=True,
    )


def _pool(
    folder: str, options: config.Score | config.NormSimD | config.Filter, texts: bool
) -> tuple[EmbeddingPool, int, int]:
    """A pool of embeddings, its dimension and the bytes of a number."""
    pool = open_pool(folder, on_bad=options.on_bad, texts=texts)
    tag = pool.tag(options.tag)
    dim = units.dimension(pool, tag)
    first = next(shard for shard in pool.shards if shard.rows)
    return pool, dim, max(2, min(4, storage.size(first.images) // (first.rows * dim)))


def _score(options: config.Score, memory: int) -> Estimate:
    pool, dim, itemsize = _pool(options.pool, options, texts=True)
    settings, chosen, named = options.neg_clip_loss, options.chosen(), options.norm_sim.targets()
    tag = pool.tag(options.tag)
    temperatures, _ = units.choose_temperatures(settings.temperatures(), target_sets.made_by_model(options.pool, tag))
    planned = score.plan_units(pool, settings)
    rows = [sum(shard.rows for shard in unit) for unit in planned]
    columns = int("clip_score" in chosen)
    columns += 4 * len(neg_clip_loss_columns(settings, tag, temperatures)) if "neg_clip_loss" in chosen else 0
    targets, notes = 0, []
    if "norm_sim" in chosen:
        columns += len(options.norm_sim.p) * (len(named) + (options.norm_sim.union is not None))
        columns += len(named) * (math.inf in options.norm_sim.p) if options.norm_sim.nearest else 0
        ready = [path for path in named.values() if target_sets.is_embedded(path)]
        targets = sum(_target_rows(path, tag) for path in ready)
        if left := sorted(set(named.values()) - set(ready)):
            notes.append(f"not counted, for their images aren't embedded yet: {', '.join(left[:3])}")
    if "neg_clip_loss" in chosen and max(settings.batch_sizes()) > len(pool):
        notes.append(f"--batch-size is more than the pool's {len(pool):,} pairs, which make one batch")
    of_row = 2 * (2 * dim * itemsize) + 3 * _UID + 2 * _SCORE * columns  # one unit is scored, one is read
    fixed = _BASE + targets * dim * 4
    fits = max(0, (memory - fixed) // of_row)
    largest = max(shard.rows for shard in pool.shards)
    if largest > fits or settings.division == "shard":
        advice = f"write shards of at most {fits:,} pairs"
    elif settings.mix_shards and settings.mix_shards > 1:
        advice = f"use a smaller --mix-shards: {max(1, fits // largest)} or less"
    else:  # shards that don't fill a group make a unit of nearly two groups and a shard
        most = max((fits - largest) // 2, min(shard.rows for shard in pool.shards if shard.rows))
        advice = f"use a smaller --batch-size or --group: together at most {most:,} pairs"
    _check_memory("score", f"a unit of {max(rows):,} pairs", fixed + max(rows) * of_row, memory, advice)
    return Estimate(
        work=f"{counted(len(pool), 'pair')}, {counted(len(pool.shards), 'shard')}, {counted(len(rows), 'unit')}",
        units=len(rows),
        rows_timed=len(pool),
        read=_bytes(path for shard in pool.shards for path in units.shard_files(shard)),
        written=len(pool) * (_UID + _SCORE * columns),
        out=options.out,
        memory=fixed + max(rows) * of_row,
        dealt=True,
        notes=tuple(notes),
    )


def _target_rows(path: str, tag: str) -> int:
    parts = storage.Folder(path).files(".npz") if storage.is_folder(path) else [path]
    return sum(arrays.array_shape(part, f"{tag}_img")[0] for part in parts)


def _select(options: config.Select, memory: int) -> Estimate:
    table = score_tables.open_tables(options.scores)
    more = external_columns.open_columns(options.columns)
    names = [*table.columns, *(name for one in more for name in one.names)]
    columns = len(parsing.parse(options.rule, names).columns())
    rows, beside = len(table), _bytes(part for one in more for part in one.parts)
    kept = round(min(options.memory_gb * 2**30, rows * _SCORE * columns))
    part = max(table.rows) * (2 * _UID + 3 * _SCORE * max(1, columns))
    needed = _BASE + kept + 2 * beside + part
    _check_memory("select", "what is held at a time", needed, memory, "use a smaller --memory-gb or fewer --columns")
    return Estimate(
        work=f"{counted(rows, 'pair')}, {counted(len(table.parts), 'part')}, {counted(columns, 'column')}",
        read=rows * (_UID + _SCORE * columns) + beside,
        written=0 if options.out is None else _UID * rows,
        out=options.out or ".",
        memory=needed,
        notes=("how much is written depends on the rule: at most every uid",),
    )


def _filter(options: config.Filter, memory: int) -> Estimate:
    parts = metadata.list_parts(options.metadata, metadata.Skipped(options.on_bad))
    rows = sum(part.rows for part in parts)
    if not rows:
        raise InputError(f"{options.metadata}: the metadata holds no pairs, so there is nothing to select from")
    read, needed = sum(part.bytes for part in parts), _BASE + (64 << 20)
    needed += 2 * 3 * max(part.bytes for part in parts)  # one is filtered, one is read, decoded
    advice = "use smaller files of metadata"
    if options.by_image:
        pool, dim, itemsize = _pool(options.metadata, options, texts=False)
        passes = 2 if options.clusters else 1
        read += passes * _bytes(shard.images for shard in pool.shards)
        needed += 2 * max(shard.rows for shard in pool.shards) * dim * itemsize
        drawn = min(options.sample, rows) if options.clusters else 0
        needed += drawn * (4 * dim + 64)
        advice = f"use a smaller --sample than {options.sample:,}" if drawn else advice
    _check_memory("filter", "what is held at a time", needed, memory, advice)
    return Estimate(
        work=f"{counted(rows, 'pair')}, {counted(len(parts), 'file')}",
        read=read,
        written=_UID * rows,
        out=options.out,
        memory=needed,
        notes=("how much is read and written depends on the preset: at most every column and uid",),
    )


def _norm_sim_d(options: config.NormSimD, memory: int) -> Estimate:
    pool, dim, itemsize = _pool(options.pool, options, texts=False)
    survivors = None if options.survivors is None else uids.read_subset(options.survivors)
    rows, keep = len(pool) if survivors is None else len(survivors), options.keep(len(pool))
    drop = norm_sim_d.check_steps(options, rows, keep)
    scored = list(rows_scored(rows, keep, drop))
    largest = max(shard.rows for shard in pool.shards)
    # Embeddings are mapped from their file, which the system keeps in memory if it can.
    needed = _BASE + 2 * largest * dim * itemsize + 60 * rows + (0 if survivors is None else survivors.nbytes)
    _check_memory("norm-sim-d", "what is held at a time", needed, memory, "use smaller shards, or fewer --survivors")
    return Estimate(
        work=f"{counted(rows, 'pair')} to {keep:,}, in {counted(len(scored), 'step')} of {drop:,}",
        rows_timed=sum(scored),
        read=_bytes(path for shard in pool.shards for path in (shard.metadata, shard.images)),
        written=rows * (2 * dim + _UID) + _UID * keep,
        out=options.out,
        memory=needed,
        steps=True,
        notes=(f"every step reads {size_text(2 * dim * rows)} or less again, from memory if that has room for it",),
    )


def _reshard(options: config.Reshard, memory: int) -> Estimate:
    found = _tars(options.tars)
    rows, stored = _rows(found)
    whole, total = _bytes(unit.path for unit in found), sum(rows)
    there = storage.exists(options.subset)
    selected = len(uids.read_multiset(options.subset)[0]) if there else total
    share = min(1.0, selected / max(total, 1))
    needed = _BASE + 3 * _UID * selected + round(8 * stored) * threads.cores()
    _check_memory("reshard", "the subset", needed, memory, "use a smaller --subset")
    to_write = f"about {round(total * share):,} to write" if there else "all to write, for the subset isn't there yet"
    in_unit = options.tars_per_unit if options.samples_per_tar else 1
    return Estimate(
        work=f"about {counted(total, 'sample')}, {counted(len(found), 'tar')}; {to_write}",
        units=-(-len(found) // in_unit),
        rows_timed=total,
        read=round(whole * share) + 512 * 4 * total,
        written=round(whole * share + _UID * total * share),
        out=options.out,
        memory=needed,
        dealt=True,
    )


def _train(options: config.Train, memory: int) -> Estimate:
    found = _tars(options.tars)
    pairs = sum(_rows(found)[0])
    if options.subset is not None and storage.exists(options.subset):
        pairs = min(pairs, len(uids.read_subset(options.subset)))
    if pairs < options.batch_size:
        raise InputError(
            f"train: there are about {pairs:,} pairs to train on, fewer than one batch of {options.batch_size:,}; give"
            " more, or a smaller --batch-size"
        )
    state = 4 * _parameters(options)
    image = 3 * options.image_size**2
    of_pair = image + 8 * options.context_length + 400
    fixed = _BASE + 3 * _STATES * state + 3 * options.batch_size * 4 * image
    shorter = "use a --subset of at most {:,} pairs, or a smaller --image-size"
    bound = train.MEMORY_BOUND
    _check_memory("train", f"{pairs:,} images, all in memory,", pairs * image, bound, shorter.format(bound // image))
    fits = (memory - fixed) // of_pair
    advice = shorter.format(fits) if fits > 0 else "use a smaller --width, fewer --layers or a smaller --batch-size"
    _check_memory("train", f"training with {pairs:,} pairs in memory", fixed + pairs * of_pair, memory, advice)
    checkpoints = -(-options.steps // options.checkpoint_every)
    return Estimate(
        work=f"about {counted(pairs, 'pair')}, {counted(options.steps, 'step')} of {options.batch_size:,} pairs",
        rows_timed=options.steps * options.batch_size,
        read=_bytes(unit.path for unit in found),
        written=min(2, checkpoints) * _STATES * state + state,
        out=options.out,
        memory=fixed + pairs * of_pair,
        steps=True,
        notes=(
            "every process reads all tars",
            f"{counted(checkpoints, 'checkpoint')} of {size_text(_STATES * state)}",
        ),
    )


def _parameters(options: config.Train) -> int:
    """Numbers in the matrices and tables of the model."""
    width, vocabulary = options.width, 50_000
    file = Path(options.tokenizer) / "vocab.json"
    if file.is_file():
        vocabulary = len(json.loads(file.read_bytes()))
    layers = 2 * options.layers * 12 * width**2
    patches = (options.image_size // options.patch_size) ** 2
    tables = vocabulary + options.context_length + patches + 3 * options.patch_size**2
    return layers + (tables + 2 * options.embed_dim) * width


def _evaluate(options: config.Evaluate, memory: int) -> Estimate:
    captioned, labelled = _tars(options.retrieval), _tars(options.classification)
    images = [sum(_rows(found)[0]) if found else 0 for found in (captioned, labelled)]
    read = list(itertools.islice(captioned[0].samples(), _LOOKED_AT)) if captioned else []
    captions = round(images[0] * sum(map(_captions, read)) / max(len(read), 1))
    prompts = len(read_strings(options.classnames, "class names")) if options.classnames else 0
    prompts *= len(read_strings(options.templates, "prompts")) if options.templates else 1
    dim, size, weights = _model(options.model)
    of_batch = 3 * 3 * size**2
    fixed = _BASE + 2 * weights + 2 * 4 * dim * (sum(images) + captions + prompts)
    fits = (memory - fixed) // of_batch
    advice = f"use --batch-size {fits:,} or less" if fits > 0 else "use a smaller model, or fewer images"
    needed = fixed + of_batch * options.batch_size
    _check_memory("evaluate", "the model, batches and embeddings", needed, memory, advice)
    return Estimate(
        work=f"about {counted(sum(images), 'image')}, {counted(captions, 'caption')} and {counted(prompts, 'prompt')}",
        read=_bytes(unit.path for unit in (*captioned, *labelled)),
        written=2_000,
        out=options.out,
        memory=needed,
    )


def _captions(sample: tars.RawSample) -> int:
    try:
        return len(samples.captions_of(sample))
    except InputError:
        return 0
