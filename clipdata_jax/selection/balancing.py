"""The rule that balances captions over the entries that they hold."""

from __future__ import annotations

import dataclasses

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats import hashing
from clipdata_jax.selection.pools import ScoreBlock, ScoredPool
from clipdata_jax.selection.rules import Predicate
from clipdata_jax.selection.values import Column

_BALANCED = 0x62616C616E6365


@dataclasses.dataclass(frozen=True)
class EntryLists(Column):
    """A column of lists, the entries that each caption holds; as a score, how many."""

    def prepare(self, pool: ScoredPool) -> None:
        """Counts the pairs of each entry, in the whole pool."""
        if self in pool.whole:
            return
        counts = np.zeros(0, np.int64)
        for block in pool.blocks():
            found = np.bincount(pool.read_lists(block.index, self.name)[0], minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
        pool.whole[self] = counts

    def of(self, block: ScoreBlock) -> np.ndarray:
        return block.cached(self, lambda: block.pool.read_lists(block.index, self.name)[1].astype(np.float64))


@dataclasses.dataclass(frozen=True)
class Balanced(Predicate):
    """The rule of `balanced`."""

    by: EntryLists
    t: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.t < 1:
            raise InputError(f"t is {self.t}, but must be a number of pairs, at least 1")

    def values(self) -> tuple[EntryLists, ...]:
        return (self.by,)

    def mask(self, block: ScoreBlock) -> np.ndarray:
        return block.cached(self, lambda: self._mask(block))

    def _mask(self, block: ScoreBlock) -> np.ndarray:
        numbers, lengths = block.pool.read_lists(block.index, self.by.name)
        shares = self.t / np.maximum(block.pool.whole[self.by][numbers], self.t)
        kept: np.ndarray = _uniform(self.seed, block.uid) < chances(shares, lengths)
        return kept

    def __str__(self) -> str:
        return f"balanced({self.by}, t={self.t}{f', seed={self.seed}' if self.seed else ''})"


def chances(shares: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The chance that at least one of a caption's entries keeps it: 1 - prod(1 - share).

    Args:
      shares: of all captions' entries, one caption after another, in (0, 1].
      lengths: how many entries each caption has.

    >>> chances(np.array([0.5, 0.5, 1.0]), np.array([2, 0, 1])).tolist()
    [0.75, 0.0, 1.0]
    """
    missed = np.ones(len(lengths))
    some = np.flatnonzero(lengths)
    if len(some):
        starts = (np.cumsum(lengths) - lengths)[some]
        missed[some] = np.multiply.reduceat(1 - shares, starts)
    return np.asarray(1 - missed)


def balanced(entries: str, *, t: int = 20_000, seed: int = 0) -> Balanced:
    """Keeps pairs so that no entry of a list of concepts has many more than t of them: MetaCLIP's text balancing.

        P(keep i) = 1 - prod over the entries e of caption i of (1 - min(1, t / count_e))

    with count_e the pairs of the whole pool whose caption holds e. Pairs without an entry are never kept. From
    MetaCLIP (Xu et al. 2023, arXiv:2309.16671), whose t is 20,000 for 400 million pairs. Each pair is kept by a hash of
    seed and uid, independently of the others.

    Args:
      entries: a column of lists of entries, made by `clipdata entries`; in memory, an array of arrays of integers.
      t: pairs per entry, at least 1.
      seed: of the draw, which also depends on the uids.

    Raises:
      InputError: t is below 1.

    >>> uid = np.array([(0, row) for row in range(4)], "u8,u8")
    >>> lists = np.empty(4, object)
    >>> lists[:] = [[0], [0, 1], [], [1]]
    >>> balanced("entries", t=2).keep({"entries": lists}, uid).tolist()
    [True, True, False, True]
    """
    return Balanced(EntryLists(entries), t, seed)


def _uniform(seed: int, uid: np.ndarray) -> np.ndarray:
    words = hashing.mix(_BALANCED, seed, uid["f0"], uid["f1"])
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
