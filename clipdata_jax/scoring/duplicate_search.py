"""The search for near-duplicates in rows on disk, on this process's devices; the same groups on any number of them.

Devices propose pairs in float32, with a margin that covers all rounding; the host decides on each by its cosine in
float64, where the sums of products of float16 are exact. So what is a duplicate depends on neither tiles, devices nor
hardware. Pairs are joined to groups as they come and are never stored: of rows that all are the same, n - 1 pairs are
looked at, not n^2.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipdata_jax.runtime import parallel, threads

if TYPE_CHECKING:
    from clipdata_jax.scores.near_duplicates import FoundPairs, NearPairs

BLOCK = 8192  # rows of a step of a device, on both sides: 8 MiB of float16 at d = 512
_MOST_UNITS = 64  # of clusters
_SIDE = 2048  # rows of a tile
_SMALL, _SMALL_SIDE = 2048, 512  # up to so many rows in all, smaller tiles save more than they cost
_SIZE = 1 << 16  # pairs of a step
_DECIDED = 4096  # pairs at a time


def search_units(pairs: int, clusters: int | None, *, is_clustered: bool) -> list[str]:
    """The names of the units that search a pool: a block of rows each, or some clusters, however many a file has."""
    count = min(clusters or _MOST_UNITS, _MOST_UNITS) if is_clustered else -(-pairs // BLOCK)
    return [f"search-{number:05d}" for number in range(count)]


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The criterion for near-duplicates: every cosine is at least the threshold.

    Attributes:
      emb: shape (n, kinds, d), float16; usually mapped from a file.
      kinds: the embeddings that are compared.
      good: shape (n,), bool: the rows that may be duplicates.
      threshold: the least cosine.
      squared_norms: the smallest and largest squared norm of the good rows' embeddings.
    """

    emb: np.ndarray
    kinds: tuple[int, ...]
    good: np.ndarray
    threshold: float
    squared_norms: tuple[float, float]

    @property
    def bound(self) -> float:
        """The least cosine in float32 that a pair of the criterion may have."""
        return self.threshold - rounding(self.emb.shape[2])

    def cosines(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The smallest cosine of each pair of rows, float64: shape (m,)."""
        found = [np.empty(0)]
        for start in range(0, len(rows), _DECIDED):
            some = slice(start, start + _DECIDED)
            f, g = self.emb[rows[some]], self.emb[others[some]]
            found.append(np.min([exact_cosines(f[:, kind], g[:, kind]) for kind in self.kinds], axis=0))
        return np.concatenate(found)

    def are_near(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whether each pair of rows meets the criterion: shape (m,), bool."""
        near: np.ndarray = self.cosines(rows, others) >= self.threshold
        return near


def rounding(dim: int) -> float:
    """A bound on the rounding errors of a float32 cosine of about unit rows: of the product, and of two norms."""
    return (3 * dim + 64) * 2.0**-24


def exact_cosines(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The cosine of each row with its counterpart, float64: shape (n,).

    Products of float16 are multiples of 2^-48, so their sum, of at most about 1, is exact in any order; of equal rows
    the cosine is exactly 1.
    """
    f, g = f.astype(np.float64), g.astype(np.float64)
    products, f_squares, g_squares = (np.einsum("nd,nd->n", one, other) for one, other in ((f, g), (f, f), (g, g)))
    norms = np.sqrt(f_squares * g_squares)
    # Zeros are no direction, and near nothing.
    cosines: np.ndarray = np.where(norms > 0, products, -np.inf) / np.where(norms > 0, norms, 1)
    return cosines


class Components:
    """Disjoint sets of the numbers 0 ... n - 1, each named by its smallest number."""

    def __init__(self, count: int) -> None:
        self.parent = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """The names of the sets of some numbers."""
        found: np.ndarray = self.parent[numbers]
        while not np.array_equal(above := self.parent[found], found):
            found = above
        self.parent[numbers] = found
        return found

    def join(self, ones: np.ndarray, others: np.ndarray) -> None:
        """Joins the sets of each pair of numbers."""
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            low, high = sorted((self._root(one), self._root(other)))
            self.parent[high] = low

    def _root(self, number: int) -> int:
        while (above := int(self.parent[number])) != number:
            self.parent[number] = self.parent[above]
            number = above
        return number

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers that aren't the names of their sets, ascending, and these names."""
        numbers = np.flatnonzero(self.parent != np.arange(len(self.parent)))
        return numbers, self.roots(numbers)


@dataclasses.dataclass(frozen=True)
class Among:
    """Rows to find the near-duplicates among.

    Attributes:
      index: shape (m,): the rows, by their numbers in `Criterion.emb`, ascending.
      rows: the positions in it, from a multiple of `BLOCK` on, whose rows are compared with all later ones.
      components: of the m positions; the pairs that are found are joined.
      nearest: shape (m,), float32: the cosine of each with the nearest row that it was compared with, of several
        kinds the smallest; -inf without any. Raised as they are found; right to `rounding`.
    """

    index: np.ndarray
    rows: range
    components: Components
    nearest: np.ndarray

    @classmethod
    def some_of(cls, index: np.ndarray, rows: range) -> Among:
        """The pairs of some rows with all later ones."""
        return cls(index, rows, Components(len(index)), np.full(len(index), -np.inf, np.float32))

    @classmethod
    def all_of(cls, index: np.ndarray) -> Among:
        """All pairs of some rows."""
        return cls.some_of(index, range(len(index)))

    @property
    def side(self) -> int:
        """Rows of a tile."""
        return _SMALL_SIDE if len(self.index) <= _SMALL else _SIDE

    @property
    def most(self) -> int:
        """Rows of a step, on both sides."""
        return _SMALL if len(self.index) <= _SMALL else BLOCK

    def steps(self) -> Iterator[tuple[range, range]]:
        """The positions of the rows and of the other rows of each step."""
        last = len(self.index)
        for row in range(self.rows.start, self.rows.stop, self.most):
            for other in range(row, last, self.most):
                yield range(row, min(row + self.most, self.rows.stop)), range(other, min(other + self.most, last))

    def tiles(self, rows: range, others: range) -> Iterator[tuple[range, range]]:
        """The tiles of a step, on and above the diagonal; none of them has more pairs than there is room for."""
        for row in range(rows.start, rows.stop, self.side):
            for other in range(max(row, others.start), others.stop, self.side):
                yield range(row, min(row + self.side, rows.stop)), range(other, min(other + self.side, others.stop))


def join_near(
    criterion: Criterion, searches: Iterable[Among], done: Callable[[int], object] = lambda pairs: None
) -> None:
    """Joins the sets of near-duplicates in each of several searches, and notes how near the nearest row of each is.

    The steps are dealt to the devices in turn.

    Args:
      criterion: of near-duplicates.
      searches: where to find them.
      done: called with the number of pairs of rows compared since the last call.
    """
    import jax

    devices = jax.local_devices()
    steps = ((among, *step) for among in searches for step in among.steps())

    def begin(numbered: tuple[int, tuple[Among, range, range]]) -> tuple[Among, range, range, FoundPairs]:
        number, (among, rows, others) = numbered
        device = devices[number % len(devices)]
        return among, rows, others, _search(criterion, among, rows, others, among.most, _SIZE, device)

    for among, rows, others, found in threads.in_flight(map(begin, enumerate(steps)), len(devices)):
        _note_nearest(among, rows, found.row)
        _note_nearest(among, others, found.other)
        if int(found.pairs.total) <= _SIZE:
            _settle(criterion, among, rows, others, found.pairs)
        else:
            for tile in among.tiles(rows, others):
                whole = _search(criterion, among, *tile, among.side, among.side**2, devices[0])
                _settle(criterion, among, *tile, whole.pairs)
        both = len(rows) if others.start == rows.start else 0
        done(len(rows) * (len(others) - both) + both * (both - 1) // 2)


def _search(
    criterion: Criterion, among: Among, rows: range, others: range, most: int, size: int, device: object
) -> FoundPairs:
    """Begins the search of a step for pairs of different sets, in arrays of one shape."""
    row_emb, row_groups = _place(criterion, among, rows, most, device)
    other_emb, other_groups = row_emb, row_groups
    if others != rows:
        other_emb, other_groups = _place(criterion, among, others, most, device)
    side = among.side
    counts = -(-len(rows) // side), -(-len(others) // side), others.start - rows.start
    tiling = tuple(np.int32(number) for number in counts)
    bound = np.float32(criterion.bound)
    return _jitted()(row_emb, other_emb, (row_groups, other_groups), bound, tiling, sides=(side, side), size=size)


def _note_nearest(among: Among, positions: range, cosines: Any) -> None:
    some = slice(positions.start, positions.stop)
    np.maximum(among.nearest[some], np.asarray(cosines)[: len(positions)], out=among.nearest[some])


@functools.cache
def _jitted() -> Callable[..., FoundPairs]:
    import jax
    import jax.numpy as jnp

    from clipdata_jax.scores.near_duplicates import Tiling, find_pairs

    def inverse_norms(emb: Any) -> Any:
        squares = jnp.square(emb.astype(jnp.float32)).sum(axis=1)
        return 1 / jnp.sqrt(jnp.where(squares > 0, squares, 1))

    def find(rows: Any, others: Any, groups: tuple[Any, Any], bound: Any, tiling: Any, **static: Any) -> FoundPairs:
        scales = list(map(inverse_norms, rows)), list(map(inverse_norms, others))
        return find_pairs(rows, others, *groups, bound, Tiling(*tiling), scales=scales, **static)

    return jax.jit(find, static_argnames=("sides", "size"))


def _place(
    criterion: Criterion, among: Among, positions: range, most: int, device: object
) -> tuple[list[object], object]:
    """The embeddings of some positions on a device, padded, and the names of their sets; -1 for no row or a bad one."""
    import jax

    numbers = among.index[positions.start : positions.stop]
    block = criterion.emb[numbers]
    emb = [parallel.pad_rows(block[:, kind], most) for kind in criterion.kinds]
    groups = np.full(most, -1, np.int32)
    roots = among.components.roots(np.arange(positions.start, positions.stop))
    groups[: len(positions)] = np.where(criterion.good[numbers], roots, -1)
    return jax.device_put(emb, device), jax.device_put(groups, device)


def _settle(criterion: Criterion, among: Among, rows: range, others: range, found: NearPairs) -> None:
    """Joins those of a step's pairs that meet the criterion."""
    count, index, sets = int(found.total), among.index, among.components
    if not count:
        return
    left = rows.start + np.asarray(found.row)[:count].astype(np.int64)
    right = others.start + np.asarray(found.other)[:count].astype(np.int64)
    one_each = True
    while len(left):
        apart = sets.roots(left) != sets.roots(right)
        left, right = left[apart], right[apart]
        now = np.arange(len(left))
        if one_each:  # in a large group, most pairs are of one set once each row has been joined
            first = np.full(len(others), -1)
            first[(right - others.start)[::-1]] = now[::-1]
            now = first[first >= 0]
        near = criterion.are_near(index[left[now]], index[right[now]])
        sets.join(left[now[near]], right[now[near]])
        one_each = bool(near.any())
        left, right = np.delete(left, now), np.delete(right, now)


class TargetMatch(NamedTuple):
    """Rows that are too near a row of a target set.

    Attributes:
      row: shape (m,), int64, ascending.
      target_row: shape (m,), int64: the nearest row of the set.
      cosine: shape (m,), float64: their cosine.
    """

    row: np.ndarray
    target_row: np.ndarray
    cosine: np.ndarray


def near_targets_of(criterion: Criterion, numbers: np.ndarray, targets: Sequence[np.ndarray]) -> list[TargetMatch]:
    """Finds the rows whose image is too near an image of a target set.

    Args:
      criterion: of near-duplicates, whose one kind is the images'.
      numbers: shape (m,): the rows.
      targets: sets of embeddings, shape (t, d), float16.

    Returns:
      For each set the rows that are at least the threshold near, with the target nearest in float32.
    """
    import jax

    from clipdata_jax import scores

    (kind,) = criterion.kinds  # a criterion of images alone
    devices = jax.local_devices()
    bounds = [_TargetBounds.of(criterion, target) for target in targets]
    placed = [[jax.device_put(target, device) for device in devices] for target in targets]
    starts = range(0, len(numbers), BLOCK)

    def begin(step: int) -> tuple[np.ndarray, list[Any]]:
        some, turn = numbers[starts[step] : starts[step] + BLOCK], step % len(devices)
        images = jax.device_put(parallel.pad_rows(criterion.emb[some][:, kind], BLOCK), devices[turn])
        return some, [scores.nearest_target(images, target[turn], signed=True) for target in placed]

    found: list[list[TargetMatch]] = [[] for _ in targets]
    for some, nearest in threads.in_flight(map(begin, range(len(starts))), len(devices)):
        for matches, target, bound, one in zip(found, targets, bounds, nearest, strict=True):
            score, row = (np.asarray(part)[: len(some)] for part in one)
            near = np.flatnonzero(criterion.good[some] & (score >= bound.least))
            matches.append(_decide(criterion, some[near], row[near].astype(np.int64), target, bound.margin))
    return [TargetMatch(*map(np.concatenate, zip(*one, strict=True))) if one else _NO_MATCH for one in found]


_NO_MATCH = TargetMatch(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


class _TargetBounds(NamedTuple):
    """The least inner product of a pair of the criterion, and how far below it the nearest one's cosine may be."""

    least: float
    margin: float

    @classmethod
    def of(cls, criterion: Criterion, target: np.ndarray) -> _TargetBounds:
        wide = target.astype(np.float32)
        squares = np.einsum("td,td->t", wide, wide)
        low, high = float(squares.min()), float(squares.max())
        norms = [np.sqrt(one * other) for one, other in zip(criterion.squared_norms, (low, high), strict=True)]
        least = criterion.threshold * norms[0 if criterion.threshold > 0 else 1]
        # The nearest by inner product may have a larger norm than another that is nearer by cosine.
        margin = abs(criterion.threshold) * (np.sqrt(high / low) - 1) + rounding(target.shape[1])
        return cls(float(least) - rounding(target.shape[1]), float(margin))


def _decide(
    criterion: Criterion, rows: np.ndarray, nearest: np.ndarray, target: np.ndarray, margin: float
) -> TargetMatch:
    (kind,) = criterion.kinds
    emb = criterion.emb[rows][:, kind]
    cosine = exact_cosines(emb, target[nearest])
    for at in np.flatnonzero((cosine < criterion.threshold) & (cosine >= criterion.threshold - margin)):
        whole = exact_cosines(np.broadcast_to(emb[at], target.shape), target)
        nearest[at], cosine[at] = int(whole.argmax()), whole.max()
    near = cosine >= criterion.threshold
    return TargetMatch(rows[near], nearest[near], cosine[near])
