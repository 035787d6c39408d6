"""What rules are applied to: a pool's columns and uids, block by block, kept in memory as far as a budget goes."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from clipdata_jax import storage
from clipdata_jax.formats.external_columns import ExternalColumns
from clipdata_jax.formats.score_tables import ScoreTable
from clipdata_jax.runtime import stopping, threads

_BLOCK_ROWS = 1 << 18


class Block:
    """Some rows of a pool that follow one another; what is asked of it is read when it is asked for.

    Attributes:
      rows: how many.
      start: the first one's row in the pool.
    """

    def __init__(self, pool: Pool, index: int, start: int, rows: int) -> None:
        self.pool, self.index, self.start, self.rows = pool, index, start, rows
        self._uid: np.ndarray | None = None
        self._held: dict[Hashable, np.ndarray] = {}

    def column(self, name: str) -> np.ndarray:
        """Scores, shape (rows,); NaN is null."""
        return self.remember(name, lambda: self.pool.read(self.index, name))

    @property
    def uid(self) -> np.ndarray:
        """u8,u8, shape (rows,); not kept between passes, being four times the size of a column."""
        if self._uid is None:
            self._uid = self.pool.read_uid(self.index)
        return self._uid

    def rank(self, key: Hashable) -> np.ndarray:
        """The rows' part of an array that holds a number for every row of the pool."""
        return self.pool.whole[key][self.start : self.start + self.rows]

    def remember(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array of the block, made once while the block is at hand, and once for all within the budget."""
        if key not in self._held:
            self._held[key] = self.pool.remember((self.index, key), make)
        return self._held[key]


class Pool:
    """A pool: the sizes of its blocks, and how to read one.

    Attributes:
      rows: pairs in the whole pool, of which fractions are taken; n, or more where some were left out.
      sizes: rows of each block; n together.
      whole: arrays with one number for every row, such as ranks.
    """

    def __init__(self, sizes: Sequence[int], rows: int | None = None, memory: float = float("inf")) -> None:
        self.sizes = list(sizes) or [0]  # a pass over nothing is a pass too
        self.rows = sum(sizes) if rows is None else rows
        self.whole: dict[Hashable, np.ndarray] = {}
        self._left = memory
        self._kept: dict[Hashable, np.ndarray] = {}
        self._scratch: str | None = None
        self._at_end = contextlib.ExitStack()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.whole.clear()
        self._at_end.close()
        self._scratch = None

    def read(self, index: int, name: str) -> np.ndarray:
        """A column of a block."""
        raise NotImplementedError

    def read_uid(self, index: int) -> np.ndarray:
        """The uids of a block."""
        raise NotImplementedError

    def blocks(self) -> Iterator[Block]:
        """One pass over the pool."""
        start = 0
        for index, rows in enumerate(self.sizes):
            yield Block(self, index, start, rows)
            start += rows

    def remember(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is kept for the next pass if the budget has room for it, else made again."""
        if key in self._kept:
            return self._kept[key]
        made = make()
        if self._takes(made.nbytes):
            self._kept[key] = made
        return made

    def empty(self, rows: int, dtype: np.dtype) -> np.ndarray:
        """An array to fill: in memory within the budget, else in a file that goes with the pool."""
        if not rows or self._takes(rows * dtype.itemsize):
            return np.empty(rows, dtype)
        with tempfile.NamedTemporaryFile(
            dir=self.scratch()
        ) as file:  # the mapping outlives the name and the file
            file.truncate(rows * dtype.itemsize)
            storage.reserve(file.name)
            return np.memmap(file, dtype, "w+", shape=(rows,))

    def scratch(self) -> str:
        """A folder for what doesn't fit in memory; where, the environment's TMPDIR says."""
        if self._scratch is None:
            self._scratch = self._at_end.enter_context(stopping.scratch("clipdata-select-"))
        return self._scratch

    def _takes(self, size: int) -> bool:
        fits = size <= self._left
        self._left -= size if fits else 0
        return fits


class Arrays(Pool):
    """A pool that is in memory already."""

    def __init__(self, columns: Mapping[str, np.ndarray], uid: np.ndarray, rows: int | None = None) -> None:
        # Blocks that fit a core's cache are worked through several times faster than whole columns.
        starts = range(0, len(uid), _BLOCK_ROWS)
        super().__init__([min(_BLOCK_ROWS, len(uid) - start) for start in starts], rows)
        self._columns, self._all_uids = columns, uid

    def read(self, index: int, name: str) -> np.ndarray:
        """A view of the column."""
        return self._columns[name][index * _BLOCK_ROWS : (index + 1) * _BLOCK_ROWS]

    def read_uid(self, index: int) -> np.ndarray:
        """A view of the uids."""
        return self._all_uids[index * _BLOCK_ROWS : (index + 1) * _BLOCK_ROWS]


T = TypeVar("T")


class Tables(Pool):
    """A pool on disk, a block for each part.

    Args:
      table: the score tables.
      names: the columns of them that will be asked for.
      joined: column -> the file that it is in, for those that the tables don't hold.
      memory: bytes of columns to keep; what is beyond is read again in every pass.
    """

    def __init__(
        self, table: ScoreTable, names: Sequence[str], joined: Mapping[str, ExternalColumns], memory: float
    ) -> None:
        super().__init__(table.rows, memory=memory)
        self._table, self._joined = table, joined
        self._own = [name for name in names if name not in joined]
        self._checked: set[int] = set()
        # Of an object store's tables each kind of read is begun some parts ahead, of all others when it is asked for.
        self._check = self._ahead(functools.partial(table.check_uids, names=self._own))
        self._uids = self._ahead(table.read_uids)
        self._columns = {
            name: self._ahead(functools.partial(table.read_column, name=name)) for name in self._own
        }

    def _ahead(self, read: Callable[[str], T]) -> threads.Ahead[T]:
        parts = self._table.parts
        found = threads.Ahead(lambda index: read(parts[index]), len(parts), self._table.threads)
        self._at_end.callback(found.close)
        return found

    def read(self, index: int, name: str) -> np.ndarray:
        """A column of a part, from the first time on known to belong to the uids."""
        if index not in self._checked:
            self._check(index)
            self._checked.add(index)
        if name in self._joined:
            return self._joined[name].of(self.read_uid(index), name)
        return self._columns[name](index)

    def read_uid(self, index: int) -> np.ndarray:
        """The uids of a part."""
        return self._uids(index)
