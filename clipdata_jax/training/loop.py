"""The training loop: steps over batches, checkpoints, exact resumption, and stops that lose nothing."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from clipdata_jax.errors import InputError, StoppedEarly
from clipdata_jax.runtime import parallel, stopping
from clipdata_jax.training.checkpoints import Checkpoints
from clipdata_jax.training.step import TrainState

Metrics = Mapping[str, Any]

# Steps dispatched before the first one's loss is read: keeps the devices busy, and bounds what is in flight.
_IN_FLIGHT = 2
# What a scheduler gives a process that it stops is often less, and nothing is lost then but these steps.
_SECONDS_TO_SAVE = 120.0


@dataclasses.dataclass(frozen=True)
class StepDone:
    """A step that has been computed.

    Attributes:
      step: its number, from 1.
      metrics: the step function's: "loss", "grad_norm" and others.
      idle_seconds: for which the devices were idle before it because its batch wasn't there.
    """

    step: int
    metrics: Mapping[str, float]
    idle_seconds: float


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When the loop does what else it does.

    Attributes:
      steps: total number of steps.
      checkpoint_every: steps between checkpoints; the last step has one too.
      keep_every: steps between checkpoints that `Checkpoints` never removes; None for none.
      evaluate_every: steps between evaluations, each after a checkpoint; the last step has one too. None for none.
      stop_after: steps to do now; None for all.
    """

    steps: int
    checkpoint_every: int = 200
    keep_every: int | None = None
    evaluate_every: int | None = None
    stop_after: int | None = None

    def last(self, first: int) -> int:
        """The last step to do now, after `first` steps were done before."""
        return self.steps if self.stop_after is None else min(self.steps, first + self.stop_after)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows the step."""
        return self.evaluate_every is not None and (step == self.steps or step % self.evaluate_every == 0)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows the step."""
        kept = self.keep_every is not None and step % self.keep_every == 0
        return kept or step % self.checkpoint_every == 0 or step == self.steps or self.evaluates(step)


def train(
    state: TrainState,
    step_function: Callable[[TrainState, Any, Any, Any], tuple[TrainState, Metrics]],
    batches: Callable[[int], Generator[tuple[Any, Any, Any]]],
    *,
    schedule: Schedule,
    checkpoints: Checkpoints | None = None,
    report: Callable[[StepDone], None] = lambda done: None,
    evaluate: Callable[[int, TrainState], None] = lambda step, state: None,
) -> TrainState:
    """Trains from a state, or from the newest checkpoint if there is one.

    On the same devices the parameters after the last step are the same bits whether or not the run was stopped in
    between. Every process of a run calls this with the same arguments. When a signal asks one of them to stop, they
    agree on a step, write its checkpoint and stop together.

    Args:
      state: the initial state, from `init_state`; donated.
      step_function: from `make_step`.
      batches: from a step, counted from 0, to the batches from that step on, as the step function takes them.
      schedule: steps in all, and between checkpoints and evaluations.
      checkpoints: where the state is saved; None saves nothing.
      report: called after each step, some steps late.
      evaluate: called after the checkpoint of a step that `schedule` evaluates, with the step and its state. It may be
        called again for the same step, in a run that was stopped in between; a signal raises `Stopped` in it.

    Returns:
      The state after the last step.

    Raises:
      InputError: a loss or gradient is not finite, or the checkpoint is of another model.
      StorageError: a checkpoint can't be written.
      StoppedEarly: the steps of `stop_after` are done.
      KeyboardInterrupt: a signal asked a process of the run to stop.

    >>> import jax.numpy as jnp
    >>> from clipdata_jax.training import Batch, Schedule, TrainState, train
    >>> def step(state, pixels, ids, mask):  # in place of a real one
    ...     return state._replace(step=state.step + 1), {"loss": jnp.float32(1 / (state.step + 1))}
    >>> def batches(start):
    ...     while True:
    ...         yield Batch(jnp.zeros((4, 8, 8, 3), jnp.uint8), jnp.zeros((4, 4), jnp.int32), jnp.ones(4, bool))
    >>> start, schedule = TrainState({}, (), jnp.int32(0)), Schedule(steps=2)
    >>> _ = train(start, step, batches, schedule=schedule, report=lambda done: print(done.metrics))
    {'loss': 1.0}
    {'loss': 0.5}
    """
    if checkpoints is not None:
        state = checkpoints.restore(state)
    first = step = int(state.step)
    if first and schedule.evaluates(first):
        _evaluate(evaluate, first, state)
    stop: int | None = None
    with contextlib.closing(batches(first)) as source, contextlib.ExitStack() as stack, _Pending() as pending:
        while step < schedule.last(first):
            stop = stop or parallel.stop_step(step, ahead=_IN_FLIGHT + 1)
            if stop is not None and step >= stop:
                break
            asked = time.monotonic()
            batch = next(source)
            got = time.monotonic()
            state, metrics = step_function(state, *batch)
            step += 1
            pending.add(step, metrics, asked, got)
            saves = checkpoints is not None and schedule.saves(step)
            # A checkpoint must not hold parameters that a step has made infinite.
            settled = saves or schedule.evaluates(step) or step == first + 1
            _settle(pending, 0 if settled else _IN_FLIGHT, report, checkpoints)
            if step == first + 1 and checkpoints is not None:
                # From here on a signal is answered with a checkpoint; before, there is nothing to save.
                stack.enter_context(stopping.deferred(_SECONDS_TO_SAVE))
            if saves and checkpoints is not None:
                checkpoints.save(step, state)
            if schedule.evaluates(step):
                if checkpoints is not None:
                    checkpoints.wait()
                _evaluate(evaluate, step, state)
        _settle(pending, 0, report, checkpoints)
        if checkpoints is not None:
            if step > checkpoints.latest:
                checkpoints.save(step, state)
            checkpoints.wait()
    if stop is not None or stopping.asked():
        raise stopping.Stopped
    if step < schedule.steps:
        raise StoppedEarly(step - first, schedule.steps - first, "step")
    return state


def _evaluate(evaluate: Callable[[int, TrainState], None], step: int, state: TrainState) -> None:
    """Evaluates; since the step's checkpoint is written, a signal may end it at once."""
    with stopping.deferred(0.0):
        if stopping.asked():
            raise stopping.Stopped
        evaluate(step, state)


class _Pending:
    """Steps that are dispatched; a thread takes their metrics from the devices, and sees when they are done."""

    def __init__(self) -> None:
        self._steps: collections.deque[tuple[int, float, float, Future[tuple[dict[str, float], float]]]] = (
            collections.deque()
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._done = 0.0

    def __enter__(self) -> _Pending:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, metrics: Metrics, asked: float, got: float) -> None:
        """Adds a step whose batch was asked for and got at these times."""
        self._steps.append((step, asked, got, self._thread.submit(_fetch, metrics)))

    def take(self) -> StepDone:
        """Waits for the first of them."""
        step, asked, got, future = self._steps.popleft()
        metrics, done = future.result()
        idle, self._done = max(0.0, got - max(asked, self._done)), done
        return StepDone(step, metrics, idle)


def _fetch(metrics: Metrics) -> tuple[dict[str, float], float]:
    found = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return found, time.monotonic()


def _settle(pending: _Pending, most: int, report: Callable[[StepDone], None], checkpoints: Checkpoints | None) -> None:
    """Reports steps until at most so many are pending."""
    while len(pending) > most:
        done = pending.take()
        for name in ("loss", "grad_norm"):
            if not math.isfinite(value := done.metrics.get(name, 0.0)):
                what = "the loss" if name == "loss" else "the gradient's norm"
                raise InputError(
                    f"{what} is {value} at step {done.step}: training diverged; lower --learning-rate, and choose"
                    f" another --out{_kept(checkpoints)}"
                )
        report(done)


def _kept(checkpoints: Checkpoints | None) -> str:
    if checkpoints is None or not checkpoints.latest:
        return ""
    checkpoints.wait()
    return f"; the checkpoint of step {checkpoints.latest} is kept in {checkpoints.folder}"
