"""What `plan` asks of a process that has jax about `train`: the model's size, and how long its steps take."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from clipdata_jax import parallel, stopping
from clipdata_jax.config import Train
from clipdata_jax.data import files, sources
from clipdata_jax.pipeline import plan_model, plan_probe, plan_probe_embed
from clipdata_jax.pipeline import train as training_command

_SECONDS = 10.0  # that trying steps may take
_FEW = 8  # pairs a device, tried where the true batch would take longer
_SLOWER = 3.0  # how much longer a step takes than plain products of as many operations
_COMPILING = 0.8  # seconds a layer, where no step is tried
_TRIES = 3
_PRODUCT = 1_024  # rows a side of the product that tells a large model's rate
_STATE = 12  # bytes of a parameter and its two moments
_SAVED = 1 << 28  # bytes of the largest state that is saved to see how long that takes


@dataclasses.dataclass(frozen=True)
class TrainFacts:
    """The model's parameters, the numbers a pair keeps for the way back, operations a pair, tokens of the longest of
    some captions, and seconds a sample to decode.
    """

    parameters: int
    kept: int
    operations: float
    length: int
    decode: float


@dataclasses.dataclass(frozen=True)
class TrainRates:
    """Seconds a step, a byte to digest, a checkpoint, and until the first tar can be read."""

    step: float
    digest: float
    checkpoint: float
    start: float


def sizes(options: Train, source: sources.Tar) -> TrainFacts:
    """The model's sizes; forward and twice as much backward; the logits, of the whole batch, too."""
    from clipdata_jax import models

    tokenizer = models.load_tokenizer(options.tokenizer)
    config = training_command.model_config(options, tokenizer)
    transform = models.ImageTransform(size=options.image_size)
    decode, found = plan_probe_embed.decode_seconds(source, [transform], need_caption=True)
    ids, tokens = plan_probe.timed(lambda: tokenizer([sample.caption for sample in found]))
    longest = (ids == tokenizer.eos_token_id).argmax(axis=1).max(initial=0)
    length = int(longest) + 1 if found else options.context_length
    towers = plan_model.picture_operations(config) + plan_model.caption_operations(config, length)
    return TrainFacts(
        parameters=plan_model.parameters(config),
        kept=plan_model.kept(config, length),
        operations=3 * (towers + 2.0 * options.batch_size * config.embed_dim),
        length=length,
        decode=decode + tokens / max(len(found), 1),
    )


def rates(options: Train, source: sources.Tar, facts: TrainFacts, each: int) -> TrainRates:
    """How long the true step takes.

    Args:
      options: of the command.
      source: a tar of it.
      facts: the model's sizes.
      each: pairs of a batch that a device takes.
    """
    start = plan_probe.start_seconds("clipdata_jax.training")
    trial, making = plan_probe.timed(lambda: _Trial(options, facts.length))
    step, compiling = trial.step_seconds(each, facts.operations)
    return TrainRates(
        step=step,
        digest=plan_probe.timed(lambda: files.digest(source.path))[1] / files.size(source.path),
        checkpoint=trial.checkpoint_seconds(_STATE * facts.parameters),
        start=start + making + compiling,
    )


class _Trial:
    """A model like the run's, to take steps with."""

    def __init__(self, options: Train, length: int) -> None:
        from flax import nnx

        from clipdata_jax import models, training

        config = training_command.model_config(options, models.load_tokenizer(options.tokenizer))
        self._mesh, self._length, self._size = parallel.local_mesh(), length, options.image_size
        self._layers = config.vision.layers + config.text.layers
        self._optimizer = training.adamw(
            learning_rate=options.learning_rate,
            warmup=options.warmup,
            steps=options.steps,
            weight_decay=options.weight_decay,
        )
        params, merge = training.split_model(models.CLIP(config, rngs=nnx.Rngs(options.seed)))
        self._state = training.init_state(params, self._optimizer, self._mesh)
        self._step: Callable[..., Any] = training.make_step(merge, self._optimizer, self._mesh)

    def step_seconds(self, each: int, operations: float) -> tuple[float, float]:
        """Seconds of a step, and to compile it: of the true batch if that is quick, else of a small one in proportion.

        Where even that would take long, the rate of a plain product tells.
        """
        of_pair, pairs = operations * _product_seconds(), each * self._mesh.size
        for tried in (pairs, min(each, _FEW) * self._mesh.size):
            if (_TRIES + 1) * _SLOWER * of_pair * tried < _SECONDS:
                seconds, compiling = self._try(tried)
                return seconds * pairs / tried, compiling
        return _SLOWER * of_pair * pairs, _COMPILING * self._layers

    def _try(self, pairs: int) -> tuple[float, float]:
        import jax

        pixels = np.zeros((pairs, self._size, self._size, 3), np.uint8)
        batch = [
            parallel.to_global(part, self._mesh)
            for part in (pixels, np.zeros((pairs, self._length), np.int32))
        ]

        def once() -> None:
            self._state, loss = self._step(self._state, *batch)
            jax.block_until_ready(loss)

        first = plan_probe.timed(once)[1]
        seconds = statistics.median(plan_probe.timed(once)[1] for _ in range(_TRIES))
        return seconds, first - seconds

    def checkpoint_seconds(self, size: int) -> float:
        """Seconds to save a state of so many bytes; of a large one by the disk's rate."""
        from clipdata_jax.training import loop

        with stopping.scratch("clipdata-plan-") as folder:
            if size > _SAVED:
                content = np.random.default_rng(0).bytes(_SAVED // 4)
                written = plan_probe.timed(lambda: files.write_bytes(files.join(folder, "sample"), content))[
                    1
                ]
                return written / len(content) * size
            with loop.open_checkpoints(files.join(folder, "checkpoints")) as manager:
                loop.save(manager, 1, self._state)
                return plan_probe.timed(lambda: loop.save(manager, 2, self._state))[1]


def _product_seconds() -> float:
    """Seconds of an operation of a plain float32 product."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((_PRODUCT, _PRODUCT))
    product = jax.jit(lambda x: jnp.einsum("ij,jk->ik", x, x, precision="highest"))
    return plan_probe.steady(lambda: product(square)) / (2 * _PRODUCT**3)
