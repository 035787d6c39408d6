"""Scores that rules look at: columns, ranks, and arithmetic on them, which is done in float64."""

from __future__ import annotations

import dataclasses
import keyword
import operator
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.selection.pools import Block
from clipdata_jax.selection.rules import Filter, Rule, infix

Number = int | float | str | Decimal
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class Value:
    """A score of every pair. Arithmetic with numbers and other values gives a value, comparing gives a rule.

    Where a part is null, so is the whole. `==` compares two values as objects; the rules are
    `column("a").equals(3)` and `.differs(3)`.
    """

    binding: ClassVar[int] = 4
    """How tightly the text holds together: above what stands around it, it needs no parentheses."""
    __array_ufunc__ = None  # so that numpy's numbers leave arithmetic with values to the values

    def __add__(self, other: Value | Number) -> Value:
        return Arithmetic(self, "+", value(other))

    def __radd__(self, other: Number) -> Value:
        return Arithmetic(value(other), "+", self)

    def __sub__(self, other: Value | Number) -> Value:
        return Arithmetic(self, "-", value(other))

    def __rsub__(self, other: Number) -> Value:
        return Arithmetic(value(other), "-", self)

    def __mul__(self, other: Value | Number) -> Value:
        return Arithmetic(self, "*", value(other))

    def __rmul__(self, other: Number) -> Value:
        return Arithmetic(value(other), "*", self)

    def __truediv__(self, other: Value | Number) -> Value:
        return Arithmetic(self, "/", value(other))

    def __rtruediv__(self, other: Number) -> Value:
        return Arithmetic(value(other), "/", self)

    def __neg__(self) -> Value:
        return Negative(self)

    def __ge__(self, other: Value | Number) -> Rule:
        return Compare(self, ">=", value(other))

    def __gt__(self, other: Value | Number) -> Rule:
        return Compare(self, ">", value(other))

    def __le__(self, other: Value | Number) -> Rule:
        return Compare(self, "<=", value(other))

    def __lt__(self, other: Value | Number) -> Rule:
        return Compare(self, "<", value(other))

    def equals(self, other: Value | Number) -> Rule:
        """The rule `(value == other)`."""
        return Compare(self, "==", value(other))

    def differs(self, other: Value | Number) -> Rule:
        """The rule `(value != other)`; null differs from nothing."""
        return Compare(self, "!=", value(other))

    def columns(self) -> tuple[str, ...]:
        """The names of the columns in it, in order of appearance."""
        return tuple(leaf.name for leaf in self.leaves())

    def leaves(self) -> tuple[Column, ...]:
        """The columns in it, in order of appearance."""
        return tuple(leaf for part in self.parts() for leaf in part.leaves())

    def ranks(self) -> tuple[Rank, ...]:
        """The ranks in it, inner ones first."""
        return tuple(rank for part in self.parts() for rank in part.ranks())

    def parts(self) -> tuple[Value, ...]:
        """The values that this one is made of."""
        return ()

    def of(self, block: Block) -> np.ndarray:
        """The scores of a block's rows, shape (rows,), of numbers (); a column's dtype, else float64."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Column(Value):
    """A column of scores."""

    name: str

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()) or keyword.iskeyword(self.name):
            raise InputError(f"{self.name!r} is no column name: expected a plain word such as clip_score")

    def leaves(self) -> tuple[Column, ...]:
        return (self,)

    def of(self, block: Block) -> np.ndarray:
        return block.column(self.name)

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Constant(Value):
    """A number."""

    number: Decimal

    def __neg__(self) -> Value:
        return Constant(self.number.copy_negate())  # a minus sign would round it to 28 digits

    def of(self, block: Block) -> np.ndarray:
        return np.array(float(self.number))

    def __str__(self) -> str:
        return str(self.number)

    @property
    def binding(self) -> int:  # type: ignore[override]
        """A sign in front binds as a sign does."""
        return 3 if self.number.is_signed() else 4


@dataclasses.dataclass(frozen=True)
class Rank(Value):
    """The share of the pool's pairs with a score whose score is no better, in (0, 1]: 1 is the best.

        rank(x)_i = (|{j : x_j < x_i}| + (|{j : x_j = x_i}| + 1) / 2) / |{j : x_j finite}|

    Equal scores share the mean of their ranks; null and infinite ones have none. Always over the whole pool,
    also behind `>>`.
    """

    by: Value

    def parts(self) -> tuple[Value, ...]:
        return (self.by,)

    def ranks(self) -> tuple[Rank, ...]:
        return (*super().ranks(), self)

    def of(self, block: Block) -> np.ndarray:
        return block.rank(self)

    def __str__(self) -> str:
        return f"rank({self.by})"


@dataclasses.dataclass(frozen=True)
class Arithmetic(Value):
    """Two values and the sign between them; what is divided by zero is not finite."""

    left: Value
    sign: str
    right: Value

    def parts(self) -> tuple[Value, ...]:
        return (self.left, self.right)

    def of(self, block: Block) -> np.ndarray:
        left, right = (np.asarray(part.of(block), np.float64) for part in self.parts())
        if self.sign == "/":  # what is divided by something infinite isn't 0, but has no score
            right = np.where(np.isinf(right), np.nan, right)
        with np.errstate(all="ignore"):
            return np.asarray(_ARITHMETIC[self.sign](left, right))

    @property
    def binding(self) -> int:  # type: ignore[override]
        """`*` and `/` before `+` and `-`."""
        return 2 if self.sign in "*/" else 1

    def __str__(self) -> str:
        return infix(self)


@dataclasses.dataclass(frozen=True)
class Negative(Value):
    """A value with the opposite sign."""

    binding = 3
    by: Value

    def parts(self) -> tuple[Value, ...]:
        return (self.by,)

    def of(self, block: Block) -> np.ndarray:
        return -np.asarray(self.by.of(block), np.float64)

    def __str__(self) -> str:
        return f"-({self.by})" if self.by.binding < 3 or isinstance(self.by, Constant) else f"-{self.by}"


@dataclasses.dataclass(frozen=True)
class Compare(Filter):
    """Keeps the pairs whose score compares so with a number or another score; null and infinite never do.

    A number that a column is compared with is rounded to the column's dtype first, so that a score stored as
    0.3 equals 0.3.
    """

    left: Value
    sign: str
    right: Value

    def values(self) -> tuple[Value, ...]:
        return (self.left, self.right)

    def mask(self, block: Block) -> np.ndarray:
        left, right = self.left.of(block), self.right.of(block)
        if isinstance(self.right, Constant) and np.issubdtype(left.dtype, np.floating):
            with np.errstate(over="ignore"):
                right = right.astype(left.dtype)
        # A number may be too large for the dtype; every finite score is then below it.
        finite = (
            np.isfinite(left) if isinstance(self.right, Constant) else np.isfinite(left) & np.isfinite(right)
        )
        return finite & _COMPARE[self.sign](left, right)

    def __str__(self) -> str:
        return f"({self.left} {self.sign} {self.right})"


def column(name: str | Value) -> Value:
    """A column of scores, for comparisons and arithmetic.

    `column("clip_score") >= 0.25`, `2 * column("a") - column("b")`.
    """
    return name if isinstance(name, Value) else Column(name)


def rank(by: str | Value) -> Value:
    """The rank of a score in the pool, in (0, 1], 1 being the best, for comparisons and arithmetic."""
    return Rank(column(by))


def value(operand: Value | Number) -> Value:
    """A number or a value as a value."""
    return operand if isinstance(operand, Value) else Constant(decimal(operand))


def decimal(number: Number) -> Decimal:
    """A number as the decimal that it is written as.

    Raises:
      InputError: not a number, or not a finite one.
    """
    try:
        # str of a float is the shortest text that gives the float back: 0.29, not 0.28999999999999998.
        found = Decimal(str(number))
    except InvalidOperation:
        found = Decimal("nan")
    if not found.is_finite():
        raise InputError(f"{number!r} is no finite number")
    return found
