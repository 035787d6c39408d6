"""Pools that rules are applied to: columns and uids, read block by block and cached within a memory budget."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from clipdata_jax import storage
from clipdata_jax.formats.external_columns import ExternalColumns, PoolIds
from clipdata_jax.formats.score_tables import ScoreTable
from clipdata_jax.runtime import threads

T = TypeVar("T")
# Blocks that fit a core's cache are processed several times faster than whole columns.
_BLOCK_ROWS = 1 << 18


class ScoreBlock:
    """Consecutive rows of a pool, read lazily.

    Attributes:
      rows: how many.
      start: the first one's row in the pool.
    """

    def __init__(self, pool: ScoredPool, index: int, start: int, rows: int) -> None:
        self.pool, self.index, self.start, self.rows = pool, index, start, rows
        self._uid: np.ndarray | None = None
        self._held: dict[Hashable, np.ndarray] = {}

    def column(self, name: str) -> np.ndarray:
        """Scores, shape (rows,); NaN is null."""
        return self.cached(name, lambda: self.pool.read(self.index, name))

    @property
    def uid(self) -> np.ndarray:
        """u8,u8, shape (rows,); not cached between passes, being four times the size of a column."""
        if self._uid is None:
            self._uid = self.pool.read_uid(self.index)
        return self._uid

    def part_of(self, key: Hashable) -> np.ndarray:
        """The block's rows of an array in `ScoredPool.whole`."""
        return self.pool.whole[key][self.start : self.start + self.rows]

    def cached(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array of the block, made once for the block's lifetime, and once for all passes within the budget."""
        if key not in self._held:
            self._held[key] = self.pool.cached((self.index, key), make)
        return self._held[key]


class ScoredPool:
    """A pool in blocks; subclasses read them.

    Args:
      sizes: rows of each block; n together.
      rows: pairs in the whole pool, of which fractions are taken; default n, or more where some are left out.
      memory: budget for cached arrays, in bytes.

    Attributes:
      sizes, rows: as above.
      whole: what takes the whole pool to compute: a rank for every row, a count for every entry.
    """

    def __init__(self, sizes: Sequence[int], rows: int | None = None, memory: float = float("inf")) -> None:
        self.sizes = list(sizes) or [0]  # so that a pass over an empty pool has a block
        self.rows = sum(sizes) if rows is None else rows
        self.whole: dict[Hashable, np.ndarray] = {}
        self._left = memory
        self._cache: dict[Hashable, np.ndarray] = {}
        self._scratch: str | None = None
        self._at_exit = contextlib.ExitStack()

    def __enter__(self) -> ScoredPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.whole.clear()
        self._at_exit.close()
        self._scratch = None

    def read(self, index: int, name: str) -> np.ndarray:
        """Reads a column of a block."""
        raise NotImplementedError

    def read_uid(self, index: int) -> np.ndarray:
        """Reads the uids of a block."""
        raise NotImplementedError

    def read_lists(self, index: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads a column of lists of a block: all numbers, int64, and how many of them each row has, int64."""
        raise NotImplementedError

    def blocks(self) -> Iterator[ScoreBlock]:
        """Yields the blocks in order: one pass over the pool."""
        start = 0
        for index, rows in enumerate(self.sizes):
            yield ScoreBlock(self, index, start, rows)
            start += rows

    def cached(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is kept for the next pass if the budget allows, else made again."""
        if key in self._cache:
            return self._cache[key]
        made = make()
        if self._reserve(made.nbytes):
            self._cache[key] = made
        return made

    def empty(self, rows: int, dtype: np.dtype) -> np.ndarray:
        """An uninitialized array: in memory within the budget, else a mapped temporary file."""
        if not rows or self._reserve(rows * dtype.itemsize):
            return np.empty(rows, dtype)
        # The mapping outlives the file's name and handle.
        with tempfile.NamedTemporaryFile(dir=self.scratch()) as file:
            file.truncate(rows * dtype.itemsize)
            storage.reserve(file.name)
            return np.memmap(file, dtype, "w+", shape=(rows,))

    def scratch(self) -> str:
        """The pool's folder for temporary files, below TMPDIR; removed with the pool."""
        if self._scratch is None:
            self._scratch = self._at_exit.enter_context(storage.scratch("clipdata-select-"))
        return self._scratch

    def _reserve(self, size: int) -> bool:
        fits = size <= self._left
        self._left -= size if fits else 0
        return fits


class ArrayPool(ScoredPool):
    """A pool in memory: name -> scores, shape (n,), and uids, shape (n,)."""

    def __init__(self, columns: Mapping[str, np.ndarray], uid: np.ndarray, rows: int | None = None) -> None:
        starts = range(0, len(uid), _BLOCK_ROWS)
        super().__init__([min(_BLOCK_ROWS, len(uid) - start) for start in starts], rows)
        self._columns, self._all_uids = columns, uid

    def read(self, index: int, name: str) -> np.ndarray:
        return self._columns[name][index * _BLOCK_ROWS : (index + 1) * _BLOCK_ROWS]

    def read_uid(self, index: int) -> np.ndarray:
        return self._all_uids[index * _BLOCK_ROWS : (index + 1) * _BLOCK_ROWS]

    def read_lists(self, index: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        lists = [np.asarray(one, np.int64) for one in self.read(index, name)]
        return np.concatenate([np.empty(0, np.int64), *lists]), np.array([len(one) for one in lists], np.int64)


class TablePool(ScoredPool):
    """A pool on disk, with a block for each part of its score tables.

    Args:
      table: the score tables.
      names: the columns that will be read.
      external: column -> the file that holds it, for columns that the tables don't hold.
      memory: bytes of columns to keep; the rest is read again in every pass.
      ids: by which the pairs are looked up in those files; default: their uids.
    """

    def __init__(
        self,
        table: ScoreTable,
        names: Sequence[str],
        external: Mapping[str, ExternalColumns],
        memory: float,
        ids: PoolIds | None = None,
    ) -> None:
        super().__init__(table.rows, memory=memory)
        self._table, self._external, self._ids = table, external, ids
        self._ids_of = functools.lru_cache(1)(self._read_ids)  # of a block whose columns are read one after another
        own = [name for name in names if name not in external]
        self._checked: set[int] = set()
        # On an object store, each kind of read runs a few parts ahead.
        self._check = self._ahead(functools.partial(table.check_uids, names=own))
        self._uids = self._ahead(table.read_uids)
        self._columns = {name: self._ahead(functools.partial(table.read_column, name=name)) for name in own}

    def _ahead(self, read: Callable[[str], T]) -> threads.PassPrefetcher[T]:
        parts = self._table.parts
        found = threads.PassPrefetcher(lambda index: read(parts[index]), len(parts), self._table.threads)
        self._at_exit.callback(found.close)
        return found

    def read(self, index: int, name: str) -> np.ndarray:
        """Reads a column of a part; the first read also checks that the tables agree on the uids."""
        if index not in self._checked:
            self._check(index)
            self._checked.add(index)
        if name in self._external:
            return self._external[name].of(self._ids_of(index), name, index)
        return self._columns[name](index)

    def read_lists(self, index: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        part = self._table.parts[index]
        self._table.check_uids(part, [name])
        return self._table.read_lists(part, name)

    def read_uid(self, index: int) -> np.ndarray:
        return self._uids(index)

    def _read_ids(self, index: int) -> np.ndarray:
        uid = self.read_uid(index)
        return uid if self._ids is None else self._ids.read(self._table.parts[index], uid)
