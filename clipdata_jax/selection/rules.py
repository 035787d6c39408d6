"""Rules that say which pairs to keep: small trees of frozen dataclasses, put together with operators.

    top("neg_clip_loss", 0.3) >> top("norm_sim_inf_in1k", 0.2)
    (column("clip_score") >= 0.25) & top("neg_clip_loss", 0.3) - uids("seen.npy")

`parsing.parse` reads the same from text, and `str(rule)` gives the text back. Operators bind as Python's do:
`-` before `>>` before `&` before `|`, and comparisons stand in parentheses. The rules that look at pairs
themselves are in `conditions`, the scores they look at in `values`; here is what rules have in common, and the
operators. How a rule is applied to more than fits in memory: `evaluation`, `work` and `search`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats import uids
from clipdata_jax.selection.pools import Arrays, Block
from clipdata_jax.selection.search import Search
from clipdata_jax.selection.work import Application, FilterWork, FirstWork, PairWork, Step, ThenWork, Work

if TYPE_CHECKING:
    from clipdata_jax.selection.values import Value


class Rule:
    """A rule: which pairs of a pool to keep.

    `a >> b` applies b to the survivors of a, fractions in b still being of the whole pool; `a & b` keeps
    what both keep, `a | b` what either keeps, `a - b` what a keeps and b doesn't. In the last three, both
    rules look at the same pairs.
    """

    binding: ClassVar[int] = 5
    """How tightly the rule's text holds together: above what stands around it, it needs no parentheses."""

    def __rshift__(self, other: Rule) -> Rule:
        return Then(self, other) if isinstance(other, Rule) else NotImplemented

    def __and__(self, other: Rule) -> Rule:
        return And(self, other) if isinstance(other, Rule) else NotImplemented

    def __or__(self, other: Rule) -> Rule:
        return Or(self, other) if isinstance(other, Rule) else NotImplemented

    def __sub__(self, other: Rule) -> Rule:
        return Minus(self, other) if isinstance(other, Rule) else NotImplemented

    def __bool__(self) -> bool:
        # `a and b` would quietly mean b, and `0.2 <= x <= 0.3` its second half.
        raise TypeError("a rule is neither true nor false; use & for and, | for or, - for and not")

    def keep(self, columns: Mapping[str, np.ndarray], uid: np.ndarray, rows: int | None = None) -> np.ndarray:
        """Which rows the rule keeps.

        Args:
          columns: name -> scores, shape (n,), any float or integer dtype; NaN is null. Null and infinite
            scores are never selected.
          uid: shape (n,), u8,u8; ties go to the smaller uid.
          rows: pairs in the whole pool, of which fractions are taken; default n.

        Returns:
          shape (n,), bool.

        Raises:
          InputError: the rule names a column that isn't there, or a file of uids that can't be read.
          ValueError: an array's shape or dtype is wrong, or rows is below n.
        """
        return self.trace(columns, uid, rows)[0]

    def trace(
        self, columns: Mapping[str, np.ndarray], uid: np.ndarray, rows: int | None = None
    ) -> tuple[np.ndarray, list[Step]]:
        """`keep`, and what every step of the rule kept, in the order of evaluation."""
        rows = len(uid) if rows is None else rows
        if uid.dtype != uids.DTYPE or uid.ndim != 1:
            raise ValueError(f"uid is {uid.dtype} of shape {uid.shape}, expected u8,u8 in one dimension")
        if rows < len(uid):
            raise ValueError(f"rows is {rows}, but {len(uid)} uids are given")
        for name in self.columns():
            if name not in columns:
                raise InputError(unknown_column(name, columns))
            if columns[name].shape != uid.shape:
                raise ValueError(f"column {name!r} has shape {columns[name].shape}, the uids {uid.shape}")
        with Arrays(columns, uid, rows) as pool:
            work = Application(self, pool)
            masks = [mask for _, mask in work]
        return np.concatenate(masks), work.steps

    def columns(self) -> tuple[str, ...]:
        """The names of the columns that the rule looks at, each once, in order of appearance."""
        return tuple(dict.fromkeys(name for value in self.values() for name in value.columns()))

    def files(self) -> tuple[str, ...]:
        """The files of uids that the rule reads, each once."""
        return tuple(dict.fromkeys(path for part in self.parts() for path in part.files()))

    def values(self) -> tuple[Value, ...]:
        """The scores that the rule looks at, each once, in order of appearance."""
        return tuple(dict.fromkeys(value for part in self.parts() for value in part.values()))

    def parts(self) -> tuple[Rule, ...]:
        """The rules that this rule is put together from."""
        return ()

    def start(self, rows: int) -> Work:
        """The rule at work on a pool of so many rows."""
        raise NotImplementedError


class Filter(Rule):
    """A rule that looks at each pair alone."""

    def mask(self, block: Block) -> np.ndarray:
        """Which of a block's rows it keeps, shape (rows,), bool."""
        raise NotImplementedError

    def start(self, rows: int) -> Work:
        return FilterWork(str(self), self.mask)


class First(Rule):
    """A rule that keeps the first pairs of an order; ties go to the smaller uid."""

    asks: ClassVar[bool] = True
    """Whether keeping fewer than the rule says is worth a word."""

    def keys(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """What a block's rows are ordered by, uint32 or uint64, smaller first, and the rows that have such a key."""
        raise NotImplementedError

    def count(self, rows: int, seen: int) -> int:
        """How many to keep: of a pool of so many rows, of which the rule looks at so many."""
        raise NotImplementedError

    def start(self, rows: int) -> Work:
        search = Search(rows, lambda seen: self.count(rows, seen))
        return FirstWork(str(self), self.keys, search, self.asks)


def infix(pair: Any) -> str:
    """The text of something with left, right and a sign between, with no more brackets than its binding asks for."""
    left, right = str(pair.left), str(pair.right)
    if pair.left.binding < pair.binding:
        left = f"({left})"
    if pair.right.binding <= pair.binding:
        right = f"({right})"
    return f"{left} {pair.sign} {right}"


@dataclasses.dataclass(frozen=True)
class _Pair(Rule):
    """Two rules and the sign between them."""

    left: Rule
    right: Rule
    sign: ClassVar[str]

    def parts(self) -> tuple[Rule, ...]:
        return (self.left, self.right)

    def start(self, rows: int) -> Work:
        return PairWork(str(self), self.combine, self.left.start(rows), self.right.start(rows))

    def combine(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """What is kept, from what either rule keeps of the same pairs."""
        raise NotImplementedError

    def __str__(self) -> str:
        return infix(self)


@dataclasses.dataclass(frozen=True)
class Then(_Pair):
    """Applies the right rule to the survivors of the left."""

    sign, binding = ">>", 3

    def start(self, rows: int) -> Work:
        return ThenWork(self.left.start(rows), self.right.start(rows))


@dataclasses.dataclass(frozen=True)
class And(_Pair):
    """Keeps what both rules keep."""

    sign, binding = "&", 2

    def combine(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left & right


@dataclasses.dataclass(frozen=True)
class Or(_Pair):
    """Keeps what either rule keeps."""

    sign, binding = "|", 1

    def combine(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left | right


@dataclasses.dataclass(frozen=True)
class Minus(_Pair):
    """Keeps what the left rule keeps and the right one doesn't."""

    sign, binding = "-", 4

    def combine(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left & ~right


def unknown_column(name: str, columns: Collection[str]) -> str:
    """The sentence that says that a column isn't there, and which there are."""
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown column {name!r}; the columns are {', '.join(sorted(columns)) or 'none'}{hint}"
