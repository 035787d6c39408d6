"""The steps of NormSim_2-D over rows on disk: score the remaining rows, drop the lowest, subtract them from S.

The selection doesn't depend on the number of devices or processes, or on restarts: scores are computed in blocks of
one shape, each by one device; S is summed block by block in float64 on the host. Memory is about 40 bytes per row and
a few blocks; the embeddings stay in their file, and dropped rows are not read again.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from clipdata_jax.runs import telemetry
from clipdata_jax.runtime import parallel, threads
from clipdata_jax.selection import ranking

BLOCK = 8_192  # rows per step of a device, or of the host's sum: 8 MiB of float16 at d = 512
_EIGENVALUES = 8  # in a line of the trace
_ALONE = parallel.Share()


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows to select from.

    Attributes:
      emb: shape (n, d), float16, unit rows; usually mapped from a file.
      uid: shape (n,), u8,u8; of equal scores the lower uid stays.
      first_moment: shape (d, d), float64: S of the first step, divided by its number of rows.
      moment: shape (d, d), float64: F'F of all rows.
    """

    emb: np.ndarray
    uid: np.ndarray
    first_moment: np.ndarray
    moment: np.ndarray


@dataclasses.dataclass(frozen=True)
class State:
    """State of a selection after a step.

    Attributes:
      step: steps done.
      alive: shape (n,), bool: the remaining rows.
      moment: shape (d, d), float64: F'F of these.
      trace: a line per step: step, rows (remaining), dropped, threshold (the lowest remaining score), and the leading
        eigenvalues of S of the remaining rows; all eigenvalues sum to 1.
    """

    step: int
    alive: np.ndarray
    moment: np.ndarray
    trace: tuple[dict[str, Any], ...]

    @classmethod
    def start(cls, rows: Rows) -> State:
        """The state before the first step."""
        line = _line(0, len(rows.uid), 0, None, rows.moment)
        return cls(0, np.ones(len(rows.uid), bool), rows.moment, (line,))

    def to_bytes(self) -> bytes:
        """The state as a .npz file."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            step=np.int64(self.step),
            rows=np.int64(len(self.alive)),
            alive=np.packbits(self.alive),
            moment=self.moment,
            trace=np.frombuffer(json.dumps(self.trace).encode(), np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> State:
        """The state in a .npz file."""
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            alive = np.unpackbits(file["alive"], count=int(file["rows"])).astype(bool)
            trace = tuple(json.loads(file["trace"].tobytes()))
            return cls(int(file["step"]), alive, file["moment"], trace)


def rows_scored(rows: int, keep: int, drop: int) -> Iterator[int]:
    """The number of rows that each step scores."""
    while rows > keep:
        yield rows
        rows = max(keep, rows - drop)


def take_step(
    rows: Rows,
    state: State,
    *,
    keep: int,
    drop: int,
    share: parallel.Share = _ALONE,
    scored: Callable[[int], object] = lambda rows: None,
    seconds: telemetry.Seconds | None = None,
) -> State:
    """Scores the remaining rows by f'Sf and drops the `drop` lowest, or fewer if `keep` rows remain.

        S = F'F / rows,   S <- S without the dropped rows

    NormSim_2-D of Wang et al. 2024, arXiv:2405.19547. Of equal scores the lower uid stays, then the earlier row.

    Args:
      rows: all rows.
      state: the state before.
      keep: rows that remain at the end.
      drop: rows that a step drops.
      share: the blocks that this process scores; all processes of a run take the step together.
      scored: called with the number of rows scored since the last call; includes those of other processes at the
        step's end.
      seconds: receives the step's times: "read", of the host reading rows from their file, "wait", for the scores
        of other processes, and "compute", the rest.

    Returns:
      The state after the step.
    """
    start, seconds = time.monotonic(), telemetry.Seconds() if seconds is None else seconds
    index = np.flatnonzero(state.alive)
    moment = state.moment / len(index) if state.step else rows.first_moment
    order = np.full(len(state.alive), np.inf, np.float32)
    order[index] = -_score(rows.emb, index, moment, share, scored, seconds)
    stays = max(keep, len(index) - drop)
    alive = ranking.first([order, rows.uid["f0"], rows.uid["f1"]], stays, state.alive)
    dropped = np.flatnonzero(state.alive & ~alive)
    left = state.moment - sum_moment(rows.emb, dropped)
    threshold = float(f"{-order[alive].max():.9g}")
    line = _line(state.step + 1, stays, len(dropped), threshold, left)
    seconds["compute"] = time.monotonic() - start - sum(seconds.values())
    return State(state.step + 1, alive, left, (*state.trace, line))


def _score(
    emb: np.ndarray,
    index: np.ndarray,
    moment: np.ndarray,
    share: parallel.Share,
    scored: Callable[[int], object],
    seconds: telemetry.Seconds,
) -> np.ndarray:
    """Computes f'Sf of some rows; each of n processes scores every n-th block, and all get all scores."""
    count = -(-len(index) // BLOCK)
    own = [index[n * BLOCK : (n + 1) * BLOCK] for n in range(share.index, count, share.count)]
    found = np.zeros((-(-count // share.count), BLOCK), np.float32)
    for slot, score in enumerate(_score_blocks(emb, own, moment, seconds)):
        found[slot] = score
        scored(len(own[slot]))
    if share.count > 1:
        from jax.experimental import multihost_utils

        with seconds.on("wait"):
            found = np.asarray(multihost_utils.process_allgather(found)).swapaxes(0, 1)
        scored(len(index) - sum(map(len, own)))
    return found.reshape(-1)[: len(index)]


def _score_blocks(
    emb: np.ndarray, blocks: Sequence[np.ndarray], moment: np.ndarray, seconds: telemetry.Seconds
) -> Iterator[np.ndarray]:
    """Computes f'Sf of each block of rows, in order, padded to one shape, on this process's devices in turn."""
    import jax

    from clipdata_jax import scores

    devices = jax.local_devices()
    placed = [jax.device_put(moment.astype(np.float32), device) for device in devices]

    def scored(number: int) -> jax.Array:
        turn = number % len(devices)
        with seconds.on("read"):
            images = parallel.pad_rows(emb[blocks[number]], BLOCK)
        return scores.vas(jax.device_put(images, devices[turn]), placed[turn])

    yield from map(np.asarray, threads.in_flight(map(scored, range(len(blocks))), 2 * len(devices)))


def sum_moment(emb: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Sums F'F of some rows block by block, float64 (d, d).

    On the host: over all steps every row is added once and subtracted once, which is little compared to the scoring,
    and in float64 the error of 500 subtractions is below the precision of a float32 score.
    """
    total = np.zeros((emb.shape[1], emb.shape[1]))
    for start in range(0, len(index), BLOCK):
        block = emb[index[start : start + BLOCK]].astype(np.float64)
        total += block.T @ block
    return total


def _line(step: int, rows: int, dropped: int, threshold: float | None, moment: np.ndarray) -> dict[str, Any]:
    leading = np.linalg.eigvalsh(moment / rows)[::-1][:_EIGENVALUES]
    shown = [float(f"{value:.6g}") for value in leading]
    return {"step": step, "rows": rows, "dropped": dropped, "threshold": threshold, "eigenvalues": shown}
