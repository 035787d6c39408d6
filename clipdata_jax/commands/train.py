"""`clipdata train`: pairs in, a trained CLIP in transformers' layout out; all processes of a run work together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipdata_jax import storage
from clipdata_jax.commands import evaluate
from clipdata_jax.config import Evaluate, Train
from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars, uid_files
from clipdata_jax.formats.sources import discovery
from clipdata_jax.runs import input_files, manifest, metric_writers, records, training_log
from clipdata_jax.runs.output import Output, open_output
from clipdata_jax.runs.records import Manifest, RunPlan
from clipdata_jax.runs.training_log import TrainingLog
from clipdata_jax.runtime import console, parallel

if TYPE_CHECKING:
    import jax

    from clipdata_jax.embedding.encoder import Encoder
    from clipdata_jax.models import CLIP, CLIPConfig, ImageTransform, Tokenizer
    from clipdata_jax.training import InputPipeline, PairIndex, Schedule, StepDone, TrainState

_UNIT = "model"
_EVALUATIONS, _SKIPPED = "_training/evaluations", "_training/skipped"


def run(options: Train) -> Manifest | None:
    """Trains a CLIP; returns the manifest, or None in processes other than the first.

    Raises:
      InputError: bad input; the checkpoints so far are kept, and the same command resumes from the last.
    """
    if options.workers.worker is not None:
        raise InputError("--worker: training needs all its processes at once; use --coordinator instead")
    metric_writers.check_writers(options.log, options.out)
    measures = _Measures.of(options)
    share = parallel.start(options.workers)
    found = discovery.find_sources(options.sources, images_only=False, reading=options.reading)
    paths = list(dict.fromkeys(path for source in found.units.values() for path in source.inputs))
    with storage.scratch("clipdata-train-") as folder:
        start = _start(options, Path(folder) / _UNIT)
        plan = manifest.describe(
            "train",
            options,
            inputs=[*start.files, *([] if options.subset is None else [options.subset])],
            pool=paths,
            devices=True,
            settings=dataclasses.asdict(options.settings()),
            **start.facts,
            **({"sources": found.facts} if found.facts else {}),
        )
        output = _open(options.out, plan, share)
        pool = input_files.check_unchanged(output.folder, paths) if share.index == 0 else []
        if _UNIT not in output.receipts():
            _check_batch(options)
            indexes = _index(options, found, f"{folder}/index")
            trained = _train(options, start, indexes, measures, output)
            parallel.meet("trained")
            if share.index == 0:
                _write(trained, Path(folder) / _UNIT, {**_input_facts(options, indexes, output), "pool": pool}, output)
    if share.index:
        print(f"{options.out}: process {share.index + 1} of {share.count} is done; the first one writes the model")
        return None
    result = output.finish(lambda receipts: receipts[0].facts)
    if result is not None:
        _print_summary(result, output, options.settings().steps)
    return result


class _Start(NamedTuple):
    """The model before the first step, with its tokenizer, whose files are copied to where the model will be."""

    model: CLIP
    tokenizer: Tokenizer
    files: list[str]
    facts: dict[str, Any]


def _start(options: Train, folder: Path) -> _Start:
    from flax import nnx

    from clipdata_jax import models

    settings, init, sigmoid = options.settings(), options.model.init, options.optimiser.loss == "sigmoid"
    if init is not None:
        model = models.load_clip(init)
        if model.config.vision is None or model.config.text is None:
            raise InputError(f"--init {init}: its model has one tower, expected two")
        options.model.check_checkpoint(models.sizes_of(model.config))
        if (model.config.logit_bias_init is not None) != sigmoid:
            has, loss = ("no ", "contrastive") if sigmoid else ("a ", "sigmoid")
            raise InputError(f"--init {init}: its model has {has}logit bias; train it with --loss {loss}")
        tokenizer, files = _copy_tokenizer(init, folder, model.config.text.context_length)
        return _Start(model, tokenizer, files, {"model": models.checkpoint_digest(init)})
    if settings.sizes is None or options.tokenizer is None:
        raise TypeError("without --init the options have sizes and a tokenizer")
    tokenizer, files = _copy_tokenizer(options.tokenizer, folder, settings.sizes.context_length)
    config = models.sized_config(
        settings.sizes, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_token_id, sigmoid=sigmoid
    )
    model = models.CLIP(config, rngs=nnx.Rngs(options.seed), initial=settings.initial)
    return _Start(model, tokenizer, files, {})


def _copy_tokenizer(source: str, to: Path, context_length: int) -> tuple[Tokenizer, list[str]]:
    """Copies a tokenizer, for captions as long as the model's; returns it, and the files it consists of."""
    from clipdata_jax import models
    from clipdata_jax.models import checkpoint_files as names

    folder = names.checkpoint_folder(source)
    to.mkdir()
    parts = (names.TOKENIZER, names.VOCABULARY, names.MERGES, names.TOKENIZER_CONFIG, names.SPECIAL_TOKENS)
    found = [folder / name for name in (*parts, *names.SENTENCES) if (folder / name).is_file()]
    for file in found:
        shutil.copyfile(file, to / file.name)
    settings = to / names.TOKENIZER_CONFIG
    before = names.read_json(settings) if settings.is_file() else {"tokenizer_class": "CLIPTokenizer"}
    names.write_json(settings, {**before, "model_max_length": context_length})
    try:
        return models.load_tokenizer(to), [str(file) for file in found]
    except InputError as error:  # it knows the copy only
        raise InputError(str(error).replace(str(to), source)) from error


def _open(folder: str, plan: RunPlan, share: parallel.Share) -> Output:
    """Opens the output; the first process goes first, so that the others find what it made."""
    if share.count == 1:
        return open_output(folder, plan=plan, units=[_UNIT], share=share, together=True)
    if share.index == 0:
        open_output(folder, plan=plan, units=[_UNIT], share=share)
    parallel.meet("the output is open")
    return open_output(folder, plan=plan, units=[_UNIT], share=share)


def _check_batch(options: Train) -> None:
    import jax

    devices, batch_size, part = jax.device_count(), options.settings().batch_size, options.compute.microbatch
    for flag, size in (("batch-size", batch_size), ("microbatch", part)):
        if size is not None and size % devices:
            raise InputError(f"--{flag} is {size}, expected a multiple of the {devices} devices of the run")


def _index(options: Train, found: discovery.Sources, folder: str) -> list[PairIndex]:
    """Indexes the pairs: all together or, to be weighted, those of each of the sources that were given."""
    from clipdata_jax import training

    subset = None if options.subset is None else uid_files.read_multiset(options.subset)
    groups = [list(found.units.values())]
    if options.input.weights:
        each = [discovery.find_sources((one,), images_only=False, reading=options.reading) for one in options.sources]
        groups = [list(part.units.values()) for part in each]
    with console.bar(total=sum(map(len, groups)), unit="source", name="index") as bar:
        return [
            training.build_index(
                group,
                names=found.names,
                folder=f"{folder}-{number}",
                on_bad=options.on_bad,
                subset=subset,
                progress=lambda: bar.update(1),
            )
            for number, group in enumerate(groups)
        ]


def _train(
    options: Train, start: _Start, indexes: Sequence[PairIndex], measures: _Measures | None, output: Output
) -> CLIP:
    """Trains; returns the model, whose parameters are on the host."""
    import jax

    from clipdata_jax import training

    settings, compute, mesh = options.settings(), options.compute, parallel.data_mesh()
    optimizer = training.adamw(
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        steps=settings.steps,
        weight_decay=options.optimiser.weight_decay,
        beta2=settings.beta2,
        clip_norm=options.optimiser.clip_norm,
    )
    params, merge = training.split_model(start.model)
    step_function = training.make_step(
        merge,
        optimizer,
        mesh,
        precision=settings.precision,
        remat=compute.remat,
        microbatch=compute.microbatch,
        shard_params=compute.fsdp,
    )
    schedule = training.Schedule(
        steps=settings.steps,
        checkpoint_every=options.checkpoint_every,
        keep_every=options.keep_interval(),
        evaluate_every=options.evaluation.eval_every,
        stop_after=options.stop_after,
    )
    skipped = _Skipped(output)

    def batches(first: int) -> Generator[tuple[jax.Array, jax.Array, jax.Array]]:
        pipeline = _pipeline(options, indexes, start, steps=schedule.last(first), first=first)
        with pipeline, training.DeviceBatches(pipeline, mesh) as placed:
            skipped.pipeline = pipeline
            yield from placed

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            training.Checkpoints(output.path("checkpoints"), keep_every=schedule.keep_every)
        )
        log = None
        if jax.process_index() == 0:
            log = stack.enter_context(_open_log(options, output, start.model.config, schedule, checkpoints.latest))

        def report(done: StepDone) -> None:
            skipped.save()
            if log is not None:
                log.step(done.step, done.metrics, done.idle_seconds)

        state = training.train(
            training.init_state(params, optimizer, mesh, shard_params=compute.fsdp),
            step_function,
            batches,
            schedule=schedule,
            checkpoints=checkpoints,
            report=report,
            evaluate=_Evaluation(measures, start, output, log, lambda state: _whole(state, merge, mesh)),
        )
        return _whole(state, merge, mesh)


def _whole(state: TrainState, merge: Callable[[Any], CLIP], mesh: jax.sharding.Mesh) -> CLIP:
    from clipdata_jax import training

    return merge(training.whole_params(state.params, mesh))


def _pipeline(options: Train, indexes: Sequence[PairIndex], start: _Start, *, steps: int, first: int) -> InputPipeline:
    import jax

    from clipdata_jax import training

    settings, given = options.settings(), options.input
    return training.InputPipeline(
        indexes,
        start.tokenizer,
        batch_size=settings.batch_size,
        image_size=start.model.config.image_size,
        seed=options.seed,
        steps=steps,
        start=first,
        weights=given.weights,
        sampling=settings.sampling,
        shuffle_window=given.shuffle_window,
        min_crop=given.min_crop,
        workers=given.input_workers,
        on_bad=options.on_bad,
        share=parallel.Share(jax.process_index(), jax.process_count()),
    )


def _open_log(options: Train, output: Output, config: CLIPConfig, schedule: Schedule, first: int) -> TrainingLog:
    import jax

    from clipdata_jax import training

    settings, devices = options.settings(), jax.devices()
    peak = training.peak_flops(devices[0].device_kind)

    def learning_rate(step: int) -> float:
        peak, warmup, steps = settings.learning_rate, settings.warmup, settings.steps
        return float(training.learning_rate_at(step - 1, peak=peak, warmup=warmup, steps=steps))

    return TrainingLog(
        output,
        steps=schedule.steps,
        first=first,
        last=schedule.last(first),
        batch_size=settings.batch_size,
        learning_rate=learning_rate,
        flops_per_pair=training.flops_per_pair(config, settings.batch_size),
        peak=None if peak is None else peak * len(devices),
        writers=options.log,
        options=json.loads(records.to_json(manifest.plain_options(options))),
        profile=options.profile,
    )


class _Measures(NamedTuple):
    """What a model is evaluated on while it is trained."""

    retrieval: list[str]
    labelled: list[str]
    names: list[str]
    templates: list[str]

    @classmethod
    def of(cls, options: Train) -> _Measures | None:
        """The tars and words of the options; None if they ask for no evaluation."""
        given = options.evaluation
        if given.eval_every is None:
            return None
        return cls(
            tars.find_tars(given.eval_retrieval) if given.eval_retrieval else [],
            tars.find_tars(given.eval_classification) if given.eval_classification else [],
            evaluate.read_strings(given.classnames, "class names") if given.classnames else [],
            evaluate.read_templates(given.templates),
        )


class _Evaluation:
    """Evaluates the model of a step in the first process, as `clipdata evaluate` does, while the others wait."""

    def __init__(
        self,
        measures: _Measures | None,
        start: _Start,
        output: Output,
        log: TrainingLog | None,
        whole: Callable[[TrainState], CLIP],
    ) -> None:
        self._measures, self._start, self._output, self._log, self._whole = measures, start, output, log, whole
        self._encoder: Encoder | None = None

    def __call__(self, step: int, state: TrainState) -> None:
        name = f"{_EVALUATIONS}/{step:09d}.json"
        model = self._whole(state)
        if self._log is not None and self._measures is not None and not self._output.folder.exists(name):
            with self._log.pause():
                figures = self._figures(model, self._measures)
            self._output.folder.write(name, records.to_json(figures))
            self._log.evaluation(step, figures)
        parallel.meet(f"evaluated {step}")

    def _figures(self, model: CLIP, measures: _Measures) -> dict[str, Any]:
        from clipdata_jax.embedding.encoder import Encoder
        from clipdata_jax.evaluation.evaluator import Evaluator

        if self._encoder is None:
            self._encoder = Encoder(model, Evaluate.batch_size, parallel.local_mesh())
        self._encoder.update(model)
        evaluator = Evaluator(self._encoder, self._start.tokenizer, _transform(model.config))
        figures: dict[str, Any] = {}
        if measures.labelled:
            figures["classification"] = evaluator.classify(measures.labelled, measures.names, measures.templates)
        if measures.retrieval:
            figures["retrieval"] = evaluator.retrieve(measures.retrieval)
        return figures


def _transform(config: CLIPConfig) -> ImageTransform:
    """The image transform that the model will have once it is written."""
    from clipdata_jax import models
    from clipdata_jax.models.transformers_config import is_siglip

    layout = models.layouts_of(config)[0]
    return models.ImageTransform(
        size=config.image_size, convention=layout, fit="squash" if is_siglip(config) else "crop"
    )


class _Skipped:
    """The pairs that this process's part of the input has skipped, kept over the run's stops."""

    def __init__(self, output: Output) -> None:
        import jax

        self.pipeline: InputPipeline | None = None
        self._folder, self._name = output.folder, f"{_SKIPPED}/{jax.process_index()}.json"
        before = json.loads(output.folder.read_bytes(self._name)) if output.folder.exists(self._name) else []
        self._before: list[list[str]] = before
        self._saved = 0

    def save(self) -> None:
        """Writes what was skipped, if there is more of it than last time."""
        if self.pipeline is None:
            return
        found = [list(one) for one in self.pipeline.skipped]
        found += [[reason] for reason in self.pipeline.skipped_tars]
        if len(found) > self._saved:
            self._saved = len(found)
            self._folder.write(self._name, records.to_json([*self._before, *found]))


def _input_facts(options: Train, indexes: Sequence[PairIndex], output: Output) -> dict[str, Any]:
    """The manifest's entries of the pairs, and of what was skipped by all processes since the run began."""
    found = [tuple(sample) for index in indexes for sample in index.skipped]
    found += [(reason,) for index in indexes for reason in index.skipped_tars]
    for path in output.folder.at(_SKIPPED).files(".json"):
        found += map(tuple, json.loads(storage.read_bytes(path)))
    once = sorted(set(found))
    facts: dict[str, Any] = {
        "pairs": sum(map(len, indexes)),
        "repeated_uids": sum(index.repeated_uids() for index in indexes),
        "skipped_samples": [dict(zip(("tar", "key", "reason"), one, strict=True)) for one in once if len(one) == 3],
        "skipped_tars": [one[0] for one in once if len(one) == 1],
    }
    if options.subset is not None:
        uids = len(uid_files.read_subset(options.subset))
        # An index has the uids of its own sources only.
        missing = max(0, sum(index.not_found for index in indexes) - (len(indexes) - 1) * uids)
        facts |= {"subset_uids": uids, "subset_uids_not_found": missing}
    if options.evaluation.eval_every is not None:
        paths = output.folder.at(_EVALUATIONS).files(".json")
        steps = {int(Path(path).stem): json.loads(storage.read_bytes(path)) for path in paths}
        facts["evaluations"] = [{"step": step, **figures} for step, figures in sorted(steps.items())]
    return facts


def _write(model: CLIP, folder: Path, facts: dict[str, Any], output: Output) -> None:
    from clipdata_jax import models, training

    for layout in models.layouts_of(model.config):
        models.save_clip(model, folder, layout=layout)
    parts: dict[str, bytes | Callable[..., None]] = {
        f"{_UNIT}/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())
    }
    facts |= {
        "temperature": float(np.asarray(model.temperature)),
        "digest": models.checkpoint_digest(folder),
        "parameters": sum(value.size for value in training.split_model(model)[0].values()),
    }
    training_log.finish_log(output.folder)
    output.complete(_UNIT, parts, facts)


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
