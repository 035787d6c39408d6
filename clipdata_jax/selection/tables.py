"""Score tables, and columns that join them by uid, as a pool that is read as it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from clipdata_jax.formats.external_columns import Joined
from clipdata_jax.formats.score_tables import ScoreTable
from clipdata_jax.runtime import threads
from clipdata_jax.selection.pools import Pool

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
        self, table: ScoreTable, names: Sequence[str], joined: Mapping[str, Joined], memory: float
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
