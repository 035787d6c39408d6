"""What is told of a training while it runs."""

from __future__ import annotations

import time
from typing import Any

from clipdata_jax.config import Train
from clipdata_jax.runs import profiling
from clipdata_jax.runs.output import Output
from clipdata_jax.runtime import console

_SECONDS_BETWEEN_LINES = 5.0


class Reporter:
    """Shows steps and losses, and logs them every few seconds."""

    def __init__(self, options: Train, output: Output) -> None:
        self.bar = console.bar(total=options.steps, unit="step", name="train")
        self._options, self._output, self._last = options, output, (time.monotonic(), 0)
        self._profiler = profiling.Profiler(options.profile, steps=3)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *stopped: Any) -> None:
        self.bar.close()
        self._profiler.__exit__(*stopped)

    def __call__(self, step: int, loss: float | None) -> None:
        if loss is None:  # where an earlier run stopped
            self.bar.initial = self.bar.n = step
            self._last = (time.monotonic(), step)
            return
        self._profiler.step()
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.bar.update(1)
        now, (then, step_then) = time.monotonic(), self._last
        if now - then >= _SECONDS_BETWEEN_LINES or step in (1, self._options.steps):
            rate = (step - step_then) * self._options.batch_size / max(now - then, 1e-9)
            self._output.log({"step": step, "loss": round(loss, 5), "rows_per_second": round(rate, 1)})
            self._last = (now, step)
