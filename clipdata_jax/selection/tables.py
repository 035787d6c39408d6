"""Score tables, and columns that join them by uid, as a pool that is read as it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clipdata_jax.data.joined import Joined
from clipdata_jax.data.tables import ScoreTable
from clipdata_jax.selection.pools import Pool


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

    def read(self, index: int, name: str) -> np.ndarray:
        """A column of a part, from the first time on known to belong to the uids."""
        part = self._table.parts[index]
        if index not in self._checked:
            self._table.check_uids(part, self._own)
            self._checked.add(index)
        if name in self._joined:
            return self._joined[name].of(self.read_uid(index), name)
        return self._table.read_column(part, name)

    def read_uid(self, index: int) -> np.ndarray:
        """The uids of a part."""
        return self._table.read_uids(self._table.parts[index])
