"""Rules: which pairs of a pool to keep, as trees of frozen dataclasses joined by operators.

    top("neg_clip_loss", 0.3) >> top("norm_sim_inf_in1k", 0.2)
    (column("clip_score") >= 0.25) & top("neg_clip_loss", 0.3) - uids("seen.npy")

`parsing.parse` reads the same from text, and `str(rule)` gives the text back. Operators bind as in Python:
`-` before `>>` before `&` before `|`, and comparisons stand in parentheses. The operands are in `steps` and
`values`; this module has their base classes and the operators.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import ClassVar, Protocol

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats import uids
from clipdata_jax.selection.pools import ArrayPool, ScoreBlock, ScoredPool
from clipdata_jax.selection.search import Search
from clipdata_jax.selection.work import (
    Application,
    FirstWork,
    PairWork,
    PredicateWork,
    Scores,
    StepCounts,
    ThenWork,
    Work,
)


class Rule:
    """A rule that says which pairs of a pool to keep.

    `a >> b` applies b to the survivors of a, with fractions in b still taken of the whole pool; `a & b` keeps
    what both keep, `a | b` what either keeps, `a - b` what a keeps and b doesn't. In the last three, both
    rules choose from the same pairs.

    >>> from clipdata_jax.selection import top
    >>> uid = np.array([(0, row) for row in range(5)], "u8,u8")
    >>> columns = {"a": np.array([5.0, 1, 4, 2, 3]), "b": np.array([1.0, 2, 3, 4, 5])}
    >>> rule = top("a", 0.6) >> top("b", 0.4)
    >>> rule.keep(columns, uid).tolist()
    [False, False, True, False, True]
    >>> print(rule - top("a", 0.2))
    (top(a, 0.6) >> top(b, 0.4)) - top(a, 0.2)
    """

    binding: ClassVar[int] = 5
    """Precedence of the outermost operator in the rule's text; operands of a lower one get parentheses."""

    @property
    def repeats(self) -> bool:
        """Whether the rule may keep a pair several times."""
        return False

    def __rshift__(self, other: Rule) -> Rule:
        return Then(self, other) if isinstance(other, Rule) else NotImplemented

    def __and__(self, other: Rule) -> Rule:
        return And(self, other) if isinstance(other, Rule) else NotImplemented

    def __or__(self, other: Rule) -> Rule:
        return Or(self, other) if isinstance(other, Rule) else NotImplemented

    def __sub__(self, other: Rule) -> Rule:
        return Minus(self, other) if isinstance(other, Rule) else NotImplemented

    def __bool__(self) -> bool:
        # `a and b` would silently mean b, and `0.2 <= x <= 0.3` its second half.
        raise TypeError("a rule is neither true nor false; use & for and, | for or, - for and not")

    def keep(self, columns: Mapping[str, np.ndarray], uid: np.ndarray, rows: int | None = None) -> np.ndarray:
        """Marks the rows that the rule keeps.

        Args:
          columns: name -> scores, shape (n,), any float or integer dtype; NaN is null. Null and infinite
            scores are never selected.
          uid: shape (n,), u8,u8; ties go to the smaller uid.
          rows: pairs in the whole pool, of which fractions are taken; default n.

        Returns:
          shape (n,), bool; of a rule that `repeats` uint32, how often each row is drawn. The subset is
          `np.repeat(uid, kept)` either way.

        Raises:
          InputError: the rule names an unknown column, or a file of uids that can't be read, or draws more than
            there is.
          ValueError: an array's shape or dtype is wrong, or rows is below n.
        """
        return self.trace(columns, uid, rows)[0]

    def trace(
        self, columns: Mapping[str, np.ndarray], uid: np.ndarray, rows: int | None = None
    ) -> tuple[np.ndarray, list[StepCounts]]:
        """Returns the mask of `keep`, and the counts of every step in the order of evaluation.

        >>> from clipdata_jax.selection import top
        >>> uid = np.array([(0, row) for row in range(4)], "u8,u8")
        >>> top("a", 0.5).trace({"a": np.array([1.0, np.nan, 2, 3])}, uid)[1]
        [StepCounts(rule='top(a, 0.5)', seen=4, kept=2, asked=2, drawn=None, tied=0, tied_kept=0)]
        """
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
        with ArrayPool(columns, uid, rows) as pool:
            application = self.apply(pool)
            masks = [mask for _, mask in application]
        return np.concatenate(masks), application.steps

    def apply(self, pool: ScoredPool) -> Application:
        """Applies the rule to a pool that is read block by block."""
        return Application(self.start(pool.rows), self.values(), pool)

    def columns(self) -> tuple[str, ...]:
        """The names of the rule's columns, each once, in order of appearance."""
        leaves = (leaf for value in self.values() for leaf in value.leaves())
        return tuple(dict.fromkeys(map(str, (*leaves, *self.groups()))))

    def files(self) -> tuple[str, ...]:
        """The files of uids that the rule reads, each once."""
        return tuple(dict.fromkeys(path for part in self.parts() for path in part.files()))

    def values(self) -> tuple[Scores, ...]:
        """The scores that the rule compares, each once, in order of appearance."""
        return tuple(dict.fromkeys(value for part in self.parts() for value in part.values()))

    def groups(self) -> tuple[Scores, ...]:
        """The columns that name groups of pairs, each once."""
        return tuple(dict.fromkeys(group for part in self.parts() for group in part.groups()))

    def parts(self) -> tuple[Rule, ...]:
        """The operands of the rule."""
        return ()

    def start(self, rows: int) -> Work:
        """Returns the rule's state before the first pass over a pool of that many rows."""
        raise NotImplementedError


class Predicate(Rule):
    """A rule that looks at each pair alone."""

    def mask(self, block: ScoreBlock) -> np.ndarray:
        """Marks the rows of a block that the rule keeps, shape (rows,), bool."""
        raise NotImplementedError

    def start(self, rows: int) -> Work:
        return PredicateWork(str(self), self.mask)


class First(Rule):
    """A rule that keeps the first pairs of an order; ties go to the smaller uid."""

    counts_asked: ClassVar[bool] = True
    """Whether keeping fewer than the rule asks for is reported."""

    def keys(self, block: ScoreBlock) -> tuple[np.ndarray, np.ndarray]:
        """Returns keys that order a block's rows, uint32 or uint64, smaller first, and which rows have one."""
        raise NotImplementedError

    def count(self, rows: int, seen: int) -> int:
        """The number of pairs to keep, of a pool of `rows` pairs of which the rule chooses from `seen`."""
        raise NotImplementedError

    def start(self, rows: int) -> Work:
        search = Search(rows, lambda seen: self.count(rows, seen))
        return FirstWork(str(self), self.keys, search, self.counts_asked)


class _Operand(Protocol):
    @property
    def binding(self) -> int: ...


def infix(left: _Operand, sign: str, right: _Operand, binding: int) -> str:
    """Writes two operands with a sign between them, in parentheses where precedence requires it."""
    first = f"({left})" if left.binding < binding else f"{left}"
    second = f"({right})" if right.binding <= binding else f"{right}"
    return f"{first} {sign} {second}"


@dataclasses.dataclass(frozen=True)
class _Pair(Rule):
    """Two rules joined by an operator."""

    left: Rule
    right: Rule
    sign: ClassVar[str]
    combine: ClassVar[np.ufunc]  # of the masks of what either rule keeps

    def __post_init__(self) -> None:
        for part in self.parts():
            if part.repeats:
                raise InputError(f"{part} draws pairs several times, so a rule ends with it: write it last, after >>")

    def parts(self) -> tuple[Rule, ...]:
        return (self.left, self.right)

    def start(self, rows: int) -> Work:
        return PairWork(self.left.start(rows), self.right.start(rows), str(self), self.combine)

    def __str__(self) -> str:
        return infix(self.left, self.sign, self.right, self.binding)


@dataclasses.dataclass(frozen=True)
class Then(_Pair):
    """Applies the right rule to the survivors of the left."""

    sign, binding = ">>", 3

    def __post_init__(self) -> None:
        if self.left.repeats:
            super().__post_init__()

    @property
    def repeats(self) -> bool:
        return self.right.repeats

    def start(self, rows: int) -> Work:
        return ThenWork(self.left.start(rows), self.right.start(rows))


@dataclasses.dataclass(frozen=True)
class And(_Pair):
    """Keeps what both rules keep."""

    sign, binding, combine = "&", 2, np.logical_and


@dataclasses.dataclass(frozen=True)
class Or(_Pair):
    """Keeps what either rule keeps."""

    sign, binding, combine = "|", 1, np.logical_or


@dataclasses.dataclass(frozen=True)
class Minus(_Pair):
    """Keeps what the left rule keeps and the right one doesn't."""

    sign, binding, combine = "-", 4, np.greater  # of booleans: left and not right


def unknown_column(name: str, columns: Collection[str]) -> str:
    """The error message for a name that isn't a column."""
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown column {name!r}; the columns are {', '.join(sorted(columns)) or 'none'}{hint}"
