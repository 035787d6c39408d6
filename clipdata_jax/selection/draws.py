"""Draws with repetition from the softmax of scores, as counts per pair: pure functions of arrays.

Both drawings are races of exponential clocks. A pair of weight w = exp(score) rings after a waiting time X / w, with X
exponential of mean 1; the first to ring of a set is a draw from its softmax, and the first k to ring are k draws
without replacement, one after another (Efraimidis and Spirakis 2006). Exponential times have no memory: what a clock
that hasn't rung still has to wait is distributed as if it were set anew. So no clock is set again before it rings, and
n draws from N pairs take N + n random numbers instead of N for every batch. The j-th waiting time of a pair is a hash
of its word and j, which depends on neither the other pairs, their order nor the number of batches.

Times are kept as logarithms: scores may span any range.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clipdata_jax.formats import hashing
from clipdata_jax.selection.ranking import chunks

Empty = Callable[[int, np.dtype], np.ndarray]
_LEAST_NEAR = 1 << 17
_NEAR_SHARE = 32
_SAMPLE = 1 << 16


def soft_cap_times(
    scores: np.ndarray, words: np.ndarray, draws: int, penalty: float, batch: int, empty: Empty = np.empty
) -> np.ndarray:
    """Draws batches without replacement from the softmax of the scores, lowering those drawn after each batch.

    In a batch a pair occurs at most once. After it, the scores of its pairs fall by the penalty, so that a pair that
    was drawn c times has weight exp(score - c penalty). The last batch holds what is left to draw.

    With T_i the logarithm of the time at which the clock of pair i rings, L the latest of a batch's, and c the draws
    of i up to then:

        T_i <- log(exp(L) + X_ic exp(c penalty - score_i))

    for each pair i of the batch, which holds those with the smallest T.

    Args:
      scores: shape (n,), floats, none of them NaN or inf; -inf is never drawn.
      words: shape (n,), uint64: a hash of the seed and each pair's uid. Ties go to the smaller word.
      draws: the sum of the counts.
      penalty: at least 0.
      batch: pairs of a batch; min(batch, draws) is at most the number of finite scores.
      empty: allocates the two working arrays, of 8 and 4 bytes a pair.

    Returns:
      How often each pair was drawn: shape (n,), uint32.

    >>> words = np.arange(5, dtype=np.uint64)
    >>> soft_cap_times(np.zeros(5), words, 10, penalty=0.5, batch=5).tolist()
    [2, 2, 2, 2, 2]
    """
    times, clocks = _start(scores, words, empty)
    queue = _Queue(clocks, words)
    for done in range(0, draws, batch):
        rows = queue.pop(min(batch, draws - done))
        now = clocks[rows].max()
        times[rows] += np.uint32(1)
        waits = _log_waits(words[rows], times[rows]) + (penalty * times[rows] - scores[rows])
        queue.push(rows, np.logaddexp(now, waits))
    return times


def hard_cap_times(scores: np.ndarray, words: np.ndarray, draws: int, cap: int, empty: Empty = np.empty) -> np.ndarray:
    """Draws with replacement from the softmax of the scores, passing over pairs that were drawn `cap` times already.

    Each pair's clock is set anew when it rings, `cap` times at most; the first `draws` rings of all count.

    Args:
      scores: shape (n,), floats, none of them NaN or inf; -inf is never drawn.
      words: shape (n,), uint64: a hash of the seed and each pair's uid. Ties go to the smaller word.
      draws: the sum of the counts, at most cap times the number of finite scores.
      cap: the most draws of a pair, at least 1.
      empty: allocates the two working arrays, of 8 and 4 bytes a pair.

    Returns:
      How often each pair was drawn: shape (n,), uint32.

    >>> words = np.arange(5, dtype=np.uint64)
    >>> hard_cap_times(np.arange(5.0), words, 10, cap=2).tolist()
    [2, 2, 2, 2, 2]
    """
    times, clocks = _start(scores, words, empty)
    queue = _Queue(clocks, words)
    done, waiting = 0, sum(int(np.count_nonzero(np.isfinite(clocks[rows]))) for rows in chunks(len(clocks)))
    while done < draws:
        rows = queue.pop(min(max(_LEAST_NEAR, len(scores) // _NEAR_SHARE), waiting))
        now = clocks[rows].max()
        # All rings up to now are those of these rows, some of which ring several times.
        rings, rang, following, count = [], [], clocks[rows], times[rows]
        left = np.arange(len(rows))
        while len(left):
            rings.append(following[left])
            rang.append(rows[left])
            count[left] += np.uint32(1)
            waits = _log_waits(words[rows[left]], count[left]) - scores[rows[left]]
            following[left] = np.where(count[left] < cap, np.logaddexp(following[left], waits), np.inf)
            left = left[following[left] <= now]
        drawn = np.concatenate(rang)
        if done + len(drawn) > draws:
            drawn = drawn[_smallest(np.concatenate(rings), words[drawn], draws - done)]
        np.add.at(times, drawn, np.uint32(1))
        done += len(drawn)
        waiting -= int(np.count_nonzero(np.isinf(following)))
        queue.push(rows, following)
    return times


def _start(scores: np.ndarray, words: np.ndarray, empty: Empty) -> tuple[np.ndarray, np.ndarray]:
    """The counts, all 0, and the logarithms of the first times."""
    times, clocks = empty(len(scores), np.dtype(np.uint32)), empty(len(scores), np.dtype(np.float64))
    for rows in chunks(len(scores)):
        times[rows] = 0
        clocks[rows] = _log_waits(words[rows], times[rows]) - scores[rows]
    return times, clocks


def _log_waits(words: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Logarithms of exponential waiting times of mean 1, given how often each pair has rung."""
    bits = hashing.scatter(words ^ times.astype(np.uint64))
    # 52 bits and a half: exact, and neither 0 nor 1.
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return np.asarray(np.log(-np.log(uniform)))


class _Queue:
    """Rows by their clocks, the earliest first, of which the next few are held apart.

    Args:
      clocks: shape (n,), float64; changed by `push`.
      words: decide among equal clocks.
    """

    def __init__(self, clocks: np.ndarray, words: np.ndarray) -> None:
        self._clocks, self._words = clocks, words
        self._limit = -np.inf  # rows up to it, but for those popped, are near
        self._near = np.empty(0, np.int64)

    def pop(self, count: int) -> np.ndarray:
        """Takes out the first rows, in no order; those equal to the last are the ones with the smaller words."""
        if len(self._near) < count:
            self._gather(count)
        clocks = self._clocks[self._near]
        first = _smallest(clocks, self._words[self._near], count)
        rows: np.ndarray = self._near[first]
        rest = np.ones(len(self._near), bool)
        rest[first] = False
        self._near = self._near[rest]
        return rows

    def push(self, rows: np.ndarray, clocks: np.ndarray) -> None:
        """Puts rows back with new clocks."""
        self._clocks[rows] = clocks
        self._near = np.concatenate([self._near, rows[clocks <= self._limit]])

    def _gather(self, count: int) -> None:
        """Raises the limit so far that at least `count` rows are near."""
        rows = len(self._clocks)
        wanted = max(_LEAST_NEAR, 2 * count, rows // _NEAR_SHARE)
        while len(self._near) < count:
            # A sample is enough: the limit changes the speed alone.
            sample = np.sort(self._clocks[:: max(1, rows // _SAMPLE)])
            at = wanted * len(sample) // rows + 1
            self._limit = sample[at] if at < len(sample) else np.inf
            self._near = np.concatenate(
                [np.flatnonzero(self._clocks[one] <= self._limit) + one.start for one in chunks(rows)]
            )
            wanted *= 2


def _smallest(keys: np.ndarray, words: np.ndarray, count: int) -> np.ndarray:
    """Finds the positions of the `count` smallest keys; of equal ones, those with the smaller words."""
    if count >= len(keys):
        return np.arange(len(keys))
    last = np.partition(keys, count - 1)[count - 1]
    first = np.flatnonzero(keys < last)
    tied = np.flatnonzero(keys == last)
    tied = tied[np.argsort(words[tied], kind="stable")][: count - len(first)]
    return np.concatenate([first, tied])
