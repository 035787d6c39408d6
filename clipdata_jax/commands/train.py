"""`clipdata train`: pairs in, a trained CLIP in transformers' layout out; all processes of a run work together."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Train
from clipdata_jax.config.model_sizes import ModelSizes
from clipdata_jax.embedding.samples import Bad, Decoded, decoded_samples
from clipdata_jax.errors import InputError, StoppedEarly
from clipdata_jax.formats import uid_files, uids
from clipdata_jax.formats.sources import discovery
from clipdata_jax.formats.sources.source import Source, TarSource
from clipdata_jax.runs import manifest, profiling
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import FileEntry, Manifest, RunPlan, UnitTimes
from clipdata_jax.runtime import console, parallel

if TYPE_CHECKING:
    from clipdata_jax.models import Tokenizer
    from clipdata_jax.training import TrainingPairs

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
    first = jax.process_index() == 0
    checkpoints = output.path("checkpoints")
    begun = training.last_checkpoint(checkpoints)
    settings = options.settings()
    steps = settings.steps if options.stop_after is None else min(settings.steps, begun + options.stop_after)
    reporter = Reporter(options, output, steps, together=jax.process_count() > 1) if first else None
    with reporter or contextlib.nullcontext():
        model = training.train(
            models.CLIP(
                model_config(_sizes(options), tokenizer), rngs=nnx.Rngs(options.seed), initial=settings.initial
            ),
            pool.pairs(),
            optimizer=training.adamw(
                learning_rate=settings.learning_rate,
                warmup=settings.warmup,
                steps=settings.steps,
                weight_decay=options.optimiser.weight_decay,
                beta2=settings.beta2,
                clip_norm=options.optimiser.clip_norm,
            ),
            steps=steps,
            batch_size=settings.batch_size,
            seed=options.seed,
            mesh=parallel.data_mesh(),
            checkpoints=checkpoints,
            checkpoint_every=options.checkpoint_every,
            report=reporter or (lambda step, loss: None),
        )
    if steps < settings.steps:
        raise StoppedEarly(steps - begun, settings.steps - begun, "step")
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

    def pairs(self) -> TrainingPairs:
        """The pairs, their rows of tokens cut to the longest caption: what follows an end token is never read."""
        from clipdata_jax.training import TrainingPairs

        ids = np.concatenate(self._ids) if self._ids else self._tokenizer([])
        ends = (ids == self._tokenizer.eos_token_id).argmax(axis=1)
        return TrainingPairs(self._pixels, ids[:, : int(ends.max(initial=0)) + 1])

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


_SECONDS_BETWEEN_LINES = 5.0


class Reporter:
    """Shows steps and losses, and logs them every few seconds."""

    def __init__(self, options: Train, output: Output, last: int, *, together: bool) -> None:
        self._together = together
        self.bar = console.bar(total=options.settings().steps, unit="step", name="train")
        self._options, self._output, self._last = options, output, (time.monotonic(), 0)
        self._batch_size = options.settings().batch_size
        self._logged = (1, last)
        self._is_compiling = True
        self._profiler = profiling.Profiler(options.profile, steps=3)

    def __enter__(self) -> Reporter:
        self.bar.set_postfix_str("compiling the first step")
        return self

    def __exit__(self, *stopped: Any) -> None:
        self.bar.close()
        kind, lost = stopped[0], self.bar.n % self._options.checkpoint_every
        if lost and self._together and kind is not None and issubclass(kind, KeyboardInterrupt):
            console.say(f"{console.counted(lost, 'step')} since the last checkpoint are done again", log=True)
        self._profiler.__exit__(*stopped)

    def __call__(self, step: int, loss: float | None) -> None:
        if loss is None:  # where an earlier run stopped
            self.bar.initial = self.bar.n = step
            self._last = (time.monotonic(), step)
            return
        self._profiler.step()
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        if self._is_compiling:  # the time left counts from here
            self._is_compiling = False
            self.bar.n = self.bar.initial = self.bar.last_print_n = step
            self.bar.start_t = self.bar.last_print_t = time.time()
            self.bar.refresh()
        else:
            self.bar.update(1)
        now, (then, step_then) = time.monotonic(), self._last
        if now - then >= _SECONDS_BETWEEN_LINES or step in self._logged:
            rate = (step - step_then) * self._batch_size / max(now - then, 1e-9)
            rows = (step - step_then) * self._batch_size
            times = UnitTimes(step=step, loss=round(loss, 5), rows=rows, rows_per_second=round(rate, 1))
            self._output.log(times)
            self._last = (now, step)
