"""`clipdata train`: pairs in, a trained CLIP in transformers' layout out; all processes of a run work together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Train
from clipdata_jax.config.model_sizes import ModelSizes
from clipdata_jax.embedding.samples import Bad, Decoded, decoded_samples
from clipdata_jax.errors import InputError
from clipdata_jax.formats import uid_files, uids
from clipdata_jax.formats.sources import discovery
from clipdata_jax.formats.sources.source import Source, TarSource
from clipdata_jax.runs import manifest, metric_writers
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import FileEntry, Manifest, RunPlan
from clipdata_jax.runs.training_log import TrainingLog
from clipdata_jax.runtime import console, parallel

if TYPE_CHECKING:
    from clipdata_jax.models import CLIPConfig, Tokenizer
    from clipdata_jax.training import Schedule, StepDone

_UNIT = "model"
# Every process holds all images, decoded.
MEMORY_BOUND = 16 << 30


def run(options: Train) -> Manifest | None:
    """Trains a CLIP; returns the manifest, or None in processes other than the first.

    Raises:
      InputError: bad input; the checkpoints so far are kept, and the same command resumes from the last.
    """
    if options.workers.worker is not None:
        raise InputError("--worker: training needs all its processes at once; use --coordinator instead")
    metric_writers.check_writers(options.log, options.out)
    share = parallel.start(options.workers)
    found = discovery.find_sources(options.sources, images_only=False, reading=options.reading)
    paths = dict.fromkeys(path for source in found.units.values() for path in source.inputs)
    subset = None if options.subset is None else uid_files.read_subset(options.subset)
    with storage.scratch("clipdata-train-") as folder:
        token_files = _copy_tokenizer(options, Path(folder))
        tokenizer = _load_tokenizer(options, folder)
        inputs = [*token_files, *([] if options.subset is None else [options.subset])]
        # A resumed run must see the same pairs, so the sources' digests belong to the plan.
        others: dict[str, Any] = {"sources": found.facts} if found.facts else {}
        others["settings"] = dataclasses.asdict(options.settings())
        plan = manifest.describe("train", options, inputs=[*inputs, *paths], devices=True, **others)
        output = _open(options.out, plan, share)
        if _UNIT not in output.receipts():
            _train(options, _Pool(options, found, tokenizer, subset), tokenizer, Path(folder), output)
    if share.index:
        print(f"{options.out}: process {share.index + 1} of {share.count} is done; the first one writes the model")
        return None
    result = output.finish(lambda receipts: receipts[0].facts)
    if result is not None:
        _print_summary(result, output, options.settings().steps)
    return result


def _copy_tokenizer(options: Train, to: Path) -> list[str]:
    """Copies the tokenizer, for captions as long as this model's; returns the files it consists of."""
    from clipdata_jax.models import checkpoint_files as names

    source = names.checkpoint_folder(_tokenizer_folder(options))
    parts = (names.TOKENIZER, names.VOCABULARY, names.MERGES, names.TOKENIZER_CONFIG, names.SPECIAL_TOKENS)
    found = [source / name for name in parts if (source / name).is_file()]
    for file in found:
        shutil.copyfile(file, to / file.name)
    settings = to / names.TOKENIZER_CONFIG
    before = names.read_json(settings) if settings.is_file() else {"tokenizer_class": "CLIPTokenizer"}
    names.write_json(settings, {**before, "model_max_length": _sizes(options).context_length})
    return [str(file) for file in found]


def _load_tokenizer(options: Train, copy: str) -> Tokenizer:
    from clipdata_jax import models

    try:
        return models.load_tokenizer(copy)
    except InputError as error:  # it knows the copy only
        raise InputError(str(error).replace(copy, _tokenizer_folder(options))) from error


def _tokenizer_folder(options: Train) -> str:
    folder = options.tokenizer or options.model.init
    assert folder is not None
    return folder


def _sizes(options: Train) -> ModelSizes:
    sizes = options.settings().sizes
    assert sizes is not None
    return sizes


def _open(folder: str, plan: RunPlan, share: parallel.Share) -> Output:
    """Opens the output; the first process goes first, so that the others find what it made."""
    if share.count == 1:
        return open_output(folder, plan=plan, units=[_UNIT], share=share, together=True)
    from jax.experimental import multihost_utils

    if share.index == 0:
        open_output(folder, plan=plan, units=[_UNIT], share=share)
    multihost_utils.sync_global_devices("the output is open")
    return open_output(folder, plan=plan, units=[_UNIT], share=share)


def _train(options: Train, pool: _Pool, tokenizer: Tokenizer, folder: Path, output: Output) -> None:
    """Reads the pairs, trains, and writes the unit "model" of the output."""
    import jax
    from flax import nnx

    from clipdata_jax import models, training

    pool.read()
    pairs, settings = pool.pairs(), options.settings()
    first, mesh = jax.process_index() == 0, parallel.data_mesh()
    _check_batch(len(pairs.ids), settings.batch_size, mesh.size)
    optimizer = training.adamw(
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        steps=settings.steps,
        weight_decay=options.optimiser.weight_decay,
        beta2=settings.beta2,
        clip_norm=options.optimiser.clip_norm,
    )
    config = model_config(_sizes(options), tokenizer)
    params, merge = training.split_model(models.CLIP(config, rngs=nnx.Rngs(options.seed), initial=settings.initial))
    step_function = training.make_step(merge, optimizer, mesh)

    def batches(start: int) -> Generator[training.Batch]:
        for step in itertools.count(start):
            rows = training.batch_rows(
                seed=options.seed, step=step, pairs=len(pairs.ids), batch_size=settings.batch_size
            )
            each = len(rows) // jax.process_count()
            own = rows[jax.process_index() * each :][:each]
            parts = np.stack([pairs.pixels[row] for row in own]), pairs.ids[own], np.ones(each, bool)
            yield training.Batch(*(parallel.to_global(part, mesh) for part in parts))

    schedule = training.Schedule(
        steps=settings.steps,
        checkpoint_every=options.checkpoint_every,
        keep_every=options.keep_interval(),
        stop_after=options.stop_after,
    )
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            training.Checkpoints(output.path("checkpoints"), keep_every=schedule.keep_every)
        )
        log = None
        if first:
            log = stack.enter_context(_open_log(options, output, config, schedule, checkpoints.latest))
        state = training.train(
            training.init_state(params, optimizer, mesh),
            step_function,
            batches,
            schedule=schedule,
            checkpoints=checkpoints,
            report=functools.partial(_report, log),
        )
    model = merge(jax.device_get(state.params))
    if not first:
        return
    models.save_clip(model, folder)
    parts: dict[str, bytes | Callable[..., None]] = {
        f"{_UNIT}/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())
    }
    facts = {
        **pool.facts(),
        "temperature": float(np.asarray(model.temperature)),
        "digest": models.checkpoint_digest(folder),
        "parameters": sum(value.size for value in training.split_model(model)[0].values()),
    }
    output.complete(_UNIT, parts, facts)


def model_config(sizes: ModelSizes, tokenizer: Tokenizer) -> Any:
    """The model's shape."""
    from clipdata_jax import models

    return models.sized_config(sizes, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_token_id)


def _check_batch(pairs: int, batch_size: int, devices: int) -> None:
    if batch_size % devices:
        raise InputError(f"--batch-size is {batch_size}, expected a multiple of the {devices} devices of the run")
    if pairs < batch_size:
        raise InputError(
            f"found {pairs} pairs to train on, expected at least a batch of {batch_size}; give more pairs, or a smaller"
            " --batch-size"
        )


def _open_log(options: Train, output: Output, config: CLIPConfig, schedule: Schedule, first: int) -> TrainingLog:
    import jax

    from clipdata_jax import training

    settings, devices = options.settings(), jax.devices()
    peak = training.peak_flops(devices[0].device_kind)
    return TrainingLog(
        output,
        steps=schedule.steps,
        first=first,
        last=schedule.last(first),
        batch_size=settings.batch_size,
        learning_rate=lambda step: float(
            training.learning_rate_at(
                step - 1, peak=settings.learning_rate, warmup=settings.warmup, steps=settings.steps
            )
        ),
        flops_per_pair=training.flops_per_pair(config, settings.batch_size),
        peak=None if peak is None else peak * len(devices),
        writers=options.log,
        options=manifest.plain_options(options),
        profile=options.profile,
    )


def _report(log: TrainingLog | None, done: StepDone) -> None:
    if log is not None:
        log.step(done.step, done.metrics, done.idle_seconds)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    pixels: list[np.ndarray]
    ids: np.ndarray


class _Pool:
    """Reads the pairs into memory, and records what was skipped."""

    def __init__(
        self, options: Train, found: discovery.Sources, tokenizer: Tokenizer, subset: np.ndarray | None
    ) -> None:
        from clipdata_jax.models import ImageTransform

        self._options, self._found, self._tokenizer, self._subset = options, found, tokenizer, subset
        self._names = found.names
        self._transform = ImageTransform(size=_sizes(options).image_size)
        self._pixels: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._uids: list[str] = []
        self._bad: list[Bad] = []
        self._skipped_tars: list[str] = []
        self._inputs: list[FileEntry] = []

    def read(self) -> None:
        """Reads all sources, in order.

        Raises:
          InputError: bad input that `on_bad` says to stop at, or more pairs than fit into memory.
        """
        sources = list(self._found.units.values())
        of_tars = all(isinstance(source, TarSource) for source in sources)
        sizes = [max(storage.size(source.path), 1) if of_tars else 1 for source in sources]
        entries: dict[str, FileEntry] = {}
        with console.bar(total=len(sizes), unit="tar" if of_tars else "unit", name="read") as bar:
            for number, source in enumerate(sources, start=1):
                try:
                    self._read_source(source)
                except InputError as error:
                    if self._options.on_bad == "stop":
                        raise
                    self._skipped_tars.append(str(error))
                entries |= {path: manifest.file_entry(path) for path in source.inputs if path not in entries}
                self._check_memory(sum(sizes) / sum(sizes[:number]))
                bar.update(1)
        self._inputs = list(entries.values())
        if self._subset is not None and not self._pixels:
            raise InputError(f"none of the {len(self._subset)} uids of {self._options.subset} is in the pool")

    def _read_source(self, source: Source) -> None:
        good: list[Decoded] = []
        bad: list[Bad] = []
        keep = None if self._subset is None else self._is_wanted
        for item in decoded_samples(
            source.samples(),
            [self._transform],
            path=source.path,
            on_bad=self._options.on_bad,
            keep=keep,
            name=self._names[source.path],
        ):
            if isinstance(item, Bad):
                bad.append(item)
            else:
                good.append(item)
        self._bad += bad
        self._pixels += [item.pixels[0] for item in good]
        self._uids += [item.uid for item in good]
        self._ids.append(self._tokenizer([item.caption for item in good]))

    def _is_wanted(self, uid: str) -> bool:
        return self._subset is not None and bool(uids.find(self._subset, uids.from_hex([uid]))[0] >= 0)

    def _check_memory(self, grows: float) -> None:
        """Raises once what was read so far shows that the images won't fit in memory."""
        expected = len(self._pixels) * grows
        if self._subset is not None:
            expected = min(expected, max(len(self._subset), len(self._pixels)))
        check_memory(expected, _sizes(self._options).image_size)

    def pairs(self) -> _Pairs:
        """The pairs, their rows of tokens cut to the longest caption: what follows an end token is never read."""
        ids = np.concatenate(self._ids) if self._ids else self._tokenizer([])
        ends = (ids == self._tokenizer.eos_token_id).argmax(axis=1)
        return _Pairs(self._pixels, ids[:, : int(ends.max(initial=0)) + 1])

    def facts(self) -> dict[str, Any]:
        """The pairs' entries in the manifest."""
        found = uids.sort_unique(uids.from_hex(self._uids))
        facts = {
            "pairs": len(self._pixels),
            "repeated_uids": len(self._uids) - len(found),
            "skipped_samples": [{"tar": bad.tar, "key": bad.key, "reason": bad.reason} for bad in self._bad],
            "skipped_tars": self._skipped_tars,
            "pool": self._inputs,
        }
        if self._subset is None:
            return facts
        return {**facts, "subset_uids": len(self._subset), "subset_uids_not_found": len(self._subset) - len(found)}


def check_memory(images: float, image_size: int) -> None:
    """Raises InputError if that many images are more than this trainer holds in memory."""
    each = 3 * image_size**2
    if images * each > MEMORY_BOUND:
        raise InputError(
            f"about {images:,.0f} images of {each:,} bytes need {images * each / 2**30:.0f} GiB of memory, more than"
            f" the {MEMORY_BOUND >> 30} GiB that this trainer holds; use a --subset of at most"
            f" {MEMORY_BOUND // each:,} pairs, or a smaller --image-size"
        )


def _print_summary(made: Manifest, output: Output, steps: int) -> None:
    result = made.facts
    print(
        f"Trained on {result['pairs']:,} pairs for {steps:,} steps, temperature"
        f" {result['temperature']:.4g}: {output.path(_UNIT)}"
    )
    print(parallel.computed_on())
    bad = console.skipped_samples(result["skipped_samples"])
    if line := console.skipped(manifest.NAME, tar=result["skipped_tars"], sample=bad):
        print(line)
