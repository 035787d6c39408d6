"""Scores that rules compare: columns, ranks, and arithmetic on them in float64."""

from __future__ import annotations

import dataclasses
import keyword
import operator
from collections.abc import Callable
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any, ClassVar

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.selection import ranking
from clipdata_jax.selection.pools import ScoreBlock, ScoredPool
from clipdata_jax.selection.rules import Predicate, Rule, infix

Number = int | float | str | Decimal
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_BEYOND_INTEGERS = Decimal(2) ** 65  # larger than any of 64 bits
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def _arithmetic(sign: str) -> tuple[Callable[[Value, Value | Number], Value], Callable[[Value, Number], Value]]:
    """The methods for `self sign other` and `other sign self`."""
    return (
        lambda self, other: Arithmetic(self, sign, value(other)),
        lambda self, other: Arithmetic(value(other), sign, self),
    )


def _comparison(sign: str) -> Callable[[Value, Value | Number], Rule]:
    return lambda self, other: Compare(self, sign, value(other))


class Value:
    """A score of every pair. Arithmetic with numbers and other values gives a value, a comparison gives a rule.

    Null where one of its parts is null. `==` compares two values as objects; the rules are
    `column("a").equals(3)` and `column("a").differs(3)`.

    >>> from clipdata_jax.selection import column, rank
    >>> value = rank("a") + 0.5 * column("b")
    >>> print(value >= 1)
    (rank(a) + 0.5 * b >= 1)
    >>> uid = np.array([(0, row) for row in range(3)], "u8,u8")
    >>> (value >= 1).keep({"a": np.array([0.1, 0.3, 0.2]), "b": np.array([2.0, -1, np.nan])}, uid).tolist()
    [True, False, False]
    """

    binding: ClassVar[int] = 4
    """Precedence of the outermost operator in the text; operands of a lower one get parentheses."""
    __array_ufunc__ = None  # so that arithmetic with NumPy's numbers calls this class's operators

    __add__, __radd__ = _arithmetic("+")
    __sub__, __rsub__ = _arithmetic("-")
    __mul__, __rmul__ = _arithmetic("*")
    __truediv__, __rtruediv__ = _arithmetic("/")
    __ge__, __gt__, __le__, __lt__ = map(_comparison, (">=", ">", "<=", "<"))

    def __neg__(self) -> Value:
        return Negative(self)

    def equals(self, other: Value | Number) -> Rule:
        """Returns the rule `(value == other)`."""
        return Compare(self, "==", value(other))

    def differs(self, other: Value | Number) -> Rule:
        """Returns the rule `(value != other)`, which never keeps null."""
        return Compare(self, "!=", value(other))

    def leaves(self) -> tuple[Column, ...]:
        """The columns it is computed from, in order of appearance."""
        return tuple(leaf for part in self.parts() for leaf in part.leaves())

    def parts(self) -> tuple[Value, ...]:
        """The operands."""
        return ()

    def prepare(self, pool: ScoredPool) -> None:
        """Computes what needs the whole pool, operands first."""
        for part in self.parts():
            part.prepare(pool)

    def of(self, block: ScoreBlock) -> np.ndarray:
        """The scores of a block's rows, shape (rows,), or () for a constant; a column's dtype, else float64."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Column(Value):
    """A column of scores."""

    name: str

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()) or keyword.iskeyword(self.name):
            raise InputError(f"{self.name!r} is not a column name: expected a plain word such as clip_score")

    def leaves(self) -> tuple[Column, ...]:
        return (self,)

    def of(self, block: ScoreBlock) -> np.ndarray:
        return block.column(self.name)

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Constant(Value):
    """A number."""

    number: Decimal

    def __neg__(self) -> Value:
        return Constant(self.number.copy_negate())  # a minus sign would round it to 28 digits

    def of(self, block: ScoreBlock) -> np.ndarray:
        return np.array(float(self.number))

    def __str__(self) -> str:
        return str(self.number)

    @property
    def binding(self) -> int:  # type: ignore[override]
        """A negative number binds as `Negative` does."""
        return 3 if self.number.is_signed() else 4


@dataclasses.dataclass(frozen=True)
class Rank(Value):
    """The share of the scored pairs of the pool whose score is no higher, in (0, 1]: 1 is the highest score.

        rank(x)_i = (|{j : x_j < x_i}| + (|{j : x_j = x_i}| + 1) / 2) / |{j : x_j finite}|

    Equal scores share the mean of their ranks; null and infinite ones have none. Always over the whole pool,
    also on the right of `>>`.
    """

    by: Value

    def parts(self) -> tuple[Value, ...]:
        return (self.by,)

    def prepare(self, pool: ScoredPool) -> None:
        super().prepare(pool)
        if self not in pool.whole:
            pool.whole[self] = ranking.of_pool(pool, self.by.of)

    def of(self, block: ScoreBlock) -> np.ndarray:
        return block.part_of(self)

    def __str__(self) -> str:
        return f"rank({self.by})"


@dataclasses.dataclass(frozen=True)
class Arithmetic(Value):
    """Two values joined by +, -, * or /; a quotient by zero is not finite."""

    left: Value
    sign: str
    right: Value

    def parts(self) -> tuple[Value, ...]:
        return (self.left, self.right)

    def of(self, block: ScoreBlock) -> np.ndarray:
        left, right = (np.asarray(part.of(block), np.float64) for part in self.parts())
        if self.sign == "/":  # a quotient by an infinite score is null, not 0
            right = np.where(np.isinf(right), np.nan, right)
        with np.errstate(all="ignore"):
            return np.asarray(_ARITHMETIC[self.sign](left, right))

    @property
    def binding(self) -> int:  # type: ignore[override]
        """`*` and `/` before `+` and `-`."""
        return 2 if self.sign in "*/" else 1

    def __str__(self) -> str:
        return infix(self.left, self.sign, self.right, self.binding)


@dataclasses.dataclass(frozen=True)
class Negative(Value):
    """A value with the opposite sign."""

    binding = 3
    by: Value

    def parts(self) -> tuple[Value, ...]:
        return (self.by,)

    def of(self, block: ScoreBlock) -> np.ndarray:
        return -np.asarray(self.by.of(block), np.float64)

    def __str__(self) -> str:
        return f"-({self.by})" if self.by.binding < 3 or isinstance(self.by, Constant) else f"-{self.by}"


@dataclasses.dataclass(frozen=True)
class Compare(Predicate):
    """Keeps the pairs for which a comparison of two scores holds; it never holds for null or infinite ones.

    A number that a column is compared with is first rounded to the column's dtype, so that a score stored as
    0.3 equals 0.3.
    """

    left: Value
    sign: str
    right: Value

    def values(self) -> tuple[Value, ...]:
        return (self.left, self.right)

    def mask(self, block: ScoreBlock) -> np.ndarray:
        left, right = self.left.of(block), self.right.of(block)
        # A number may be too large for the dtype; every finite score is then below it.
        finite: np.ndarray = np.isfinite(left)
        if not isinstance(self.right, Constant):
            finite &= np.isfinite(right)
        elif np.issubdtype(left.dtype, np.floating):
            with np.errstate(over="ignore"):
                right = right.astype(left.dtype)
        else:
            finite &= self._of_integers(left, self.right.number)
            return finite
        finite &= _COMPARISONS[self.sign](left, right)
        return finite

    def _of_integers(self, left: np.ndarray, number: Decimal) -> np.ndarray:
        """Compares integers with a number, exactly: as float64, those above 2^53 would equal their neighbours."""
        number = max(min(number, _BEYOND_INTEGERS), -_BEYOND_INTEGERS)
        below = int(number.to_integral_value(ROUND_FLOOR))
        if number == below:
            return np.asarray(_COMPARISONS[self.sign](left, below))
        if self.sign in ("==", "!="):
            return np.full(left.shape, self.sign == "!=")
        return left > below if self.sign in (">", ">=") else left <= below

    def __str__(self) -> str:
        return f"({self.left} {self.sign} {self.right})"


def column(name: str | Value) -> Value:
    """Names a column of scores, for comparisons and arithmetic.

    Args:
      name: the column's name, a plain word; a value is returned as it is.

    Raises:
      InputError: the name is not a plain word.

    >>> print(2 * column("a") - column("b") < 0.25)
    (2 * a - b < 0.25)
    """
    return name if isinstance(name, Value) else Column(name)


def rank(by: str | Value) -> Value:
    """Ranks a score among the scored pairs of the pool, in (0, 1], 1 being the highest; equal scores share a rank.

    Args:
      by: a column, its name, or an expression.

    >>> uid = np.array([(0, row) for row in range(4)], "u8,u8")
    >>> (rank("a") > 0.5).keep({"a": np.array([10.0, 30, np.nan, 20])}, uid).tolist()
    [False, True, False, True]
    """
    return Rank(column(by))


def score_of(by: str | Value) -> Value:
    """Returns a column or an expression with one.

    Raises:
      InputError: it is the same for every pair.
    """
    score = column(by)
    if not score.leaves():
        raise InputError(f"{score} is the same for every pair; expected a column or an expression with one")
    return score


def value(operand: Value | Number) -> Value:
    """Wraps a number as a value."""
    return operand if isinstance(operand, Value) else Constant(decimal(operand))


def decimal(number: Number) -> Decimal:
    """Converts a number to the decimal that it is written as.

    Raises:
      InputError: not a number, or not a finite one.
    """
    try:
        # str of a float is the shortest text that gives the float back: 0.29, not 0.28999999999999998.
        found = Decimal(str(number))
    except InvalidOperation:
        found = Decimal("nan")
    if not found.is_finite():
        raise InputError(f"{number!r} is not a finite number")
    return found
