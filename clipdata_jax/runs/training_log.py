"""The log of a training run: a bar with the time left, lines of `_run.jsonl`, figures for other tools, a trace."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from clipdata_jax import storage
from clipdata_jax.runs import metric_writers, profiling, telemetry
from clipdata_jax.runs.output import Output
from clipdata_jax.runs.records import UnitTimes
from clipdata_jax.runtime import console

_SECONDS_BETWEEN_LINES = 5.0
# In an object store, which can't append, several lines make a file.
_SECONDS_BETWEEN_FILES = 60.0
_LINES = "_training/log"


class TrainingLog:
    """Shows and logs the steps of a training run, averaged over a few seconds.

    Args:
      output: of the run.
      steps: in all.
      first: done before.
      last: the last one of this run.
      batch_size: pairs in a step.
      learning_rate: of a step, counted from 1.
      flops_per_pair: operations for a pair, see `training.flops_per_pair`.
      peak: operations a second of all devices; None if not known.
      writers: names of `metric_writers`.
      options: of the run, shown by the writers.
      profile: folder for a trace of a few steps.
    """

    def __init__(
        self,
        output: Output,
        *,
        steps: int,
        first: int,
        last: int,
        batch_size: int,
        learning_rate: Callable[[int], float],
        flops_per_pair: float,
        peak: float | None,
        writers: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        profile: str | None = None,
    ) -> None:
        self._output, self._first, self._last, self._batch_size = output, first, last, batch_size
        self._learning_rate, self._flops_per_pair, self._peak = learning_rate, flops_per_pair, peak
        self._bar = console.bar(total=steps, unit="step", name="train", done=first)
        self._profiler = profiling.Profiler(profile, steps=3)
        self._writers = [
            metric_writers.open_writer(name, str(output.folder), first=first, options=options or {}) for name in writers
        ]
        self._since, self._step, self._idle = time.monotonic(), first, 0.0
        self._lines: list[str] = []
        self._written = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.set_postfix_str("compiling the first step")
        return self

    def __exit__(self, *stopped: Any) -> None:
        self._bar.close()
        self._write_lines(self._step)
        self._profiler.__exit__(*stopped)
        for writer in self._writers:
            writer.close()

    def step(self, step: int, metrics: Mapping[str, float], idle_seconds: float) -> None:
        """Takes a step that is done.

        Args:
          step: its number, from 1.
          metrics: "loss" and others.
          idle_seconds: for which the devices waited for its batch.
        """
        self._profiler.step()
        self._bar.set_postfix_str(f"loss {metrics['loss']:.3f}", refresh=False)
        if step == self._first + 1:  # it was compiled: the time left counts from here
            self._bar.n = self._bar.initial = self._bar.last_print_n = step
            self._bar.start_t = self._bar.last_print_t = time.time()
            self._bar.refresh()
        else:
            self._bar.update(1)
        self._idle += idle_seconds
        if time.monotonic() - self._since >= _SECONDS_BETWEEN_LINES or step in (1, self._first + 1, self._last):
            self._write(step, metrics)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        seconds, steps = max(now - self._since, 1e-9), step - self._step
        rate = steps * self._batch_size / seconds
        figures: dict[str, float | None] = {
            **{name: round(value, 5) for name, value in metrics.items()},
            "learning_rate": float(f"{self._learning_rate(step):.6g}"),
            "peak_share": None if self._peak is None else round(rate * self._flops_per_pair / self._peak, 4),
            "input_wait_share": round(min(1.0, self._idle / seconds), 4),
        }
        rows = steps * self._batch_size
        self._append(step, UnitTimes(step=step, rows=rows, rows_per_second=round(rate, 1), metrics=figures).to_json())
        shown = {f"train/{name}": value for name, value in figures.items() if value is not None}
        for writer in self._writers:
            writer.write(step, {**shown, "train/images_per_second": rate})
        self._since, self._step, self._idle = now, step, 0.0

    def _append(self, step: int, line: Mapping[str, object]) -> None:
        dated = {**line, "time": telemetry.now()}
        if self._output.folder.is_local:
            telemetry.append_line(self._output.path(storage.TIMES), dated)
            return
        self._lines.append(f"{json.dumps(dated)}\n")
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_FILES:
            self._write_lines(step)

    def _write_lines(self, step: int) -> None:
        if self._lines:
            self._output.folder.write(f"{_LINES}/{step:09}.jsonl", "".join(self._lines).encode())
        self._lines, self._written = [], time.monotonic()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the block's time out of the rates: an evaluation's."""
        begun = time.monotonic()
        yield
        took = time.monotonic() - begun
        self._since += took
        self._bar.start_t += took

    def evaluation(self, step: int, figures: Mapping[str, Any]) -> None:
        """Takes the figures of an evaluation after a step."""
        flat = dict(_numbers(figures))
        self._append(step, {"step": step, "evaluation": figures})
        for writer in self._writers:
            writer.write(step, {f"eval/{name}": value for name, value in flat.items()})


def finish_log(folder: storage.Folder) -> None:
    """Makes one `_run.jsonl` of the lines that a run has written to an object store."""
    if not folder.is_local:
        lines = [storage.read_bytes(path) for path in folder.at(_LINES).files(".jsonl")]
        folder.write(storage.TIMES, b"".join(lines))


def _numbers(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{name}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield f"{before}{name}", value
