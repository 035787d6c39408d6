"""The rules that look at pairs themselves: the highest and lowest scores, comparisons, given uids."""

from __future__ import annotations

import dataclasses
import keyword
import operator
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from clipdata_jax.data import uids as uid_sets
from clipdata_jax.errors import InputError
from clipdata_jax.selection import ranking
from clipdata_jax.selection.rules import Pool, Rule, Step

Number = int | float | str | Decimal
Of = Literal["pool", "kept"]
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of scores; comparing it with a number or another column gives a rule.

    `==` compares two `Column`s as objects; the rules are `column("a").equals(3)` and `.differs(3)`.
    """

    name: str

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()) or keyword.iskeyword(self.name):
            raise InputError(f"{self.name!r} is no column name: expected a plain word such as clip_score")

    def __ge__(self, other: Column | Number) -> Rule:
        return Compare(self, ">=", _operand(other))

    def __gt__(self, other: Column | Number) -> Rule:
        return Compare(self, ">", _operand(other))

    def __le__(self, other: Column | Number) -> Rule:
        return Compare(self, "<=", _operand(other))

    def __lt__(self, other: Column | Number) -> Rule:
        return Compare(self, "<", _operand(other))

    def equals(self, other: Column | Number) -> Rule:
        """The rule `(column == other)`."""
        return Compare(self, "==", _operand(other))

    def differs(self, other: Column | Number) -> Rule:
        """The rule `(column != other)`; null differs from nothing."""
        return Compare(self, "!=", _operand(other))

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Top(Rule):
    """Keeps the pairs with the highest (`top`) or lowest (`bottom`) scores; ties go to the smaller uid.

    Attributes:
      by: the column.
      fraction: in (0, 1], as the decimal it was written as: 0.29 of 100 pairs is 29.
      of: "pool": of all pairs, also those without a score; "kept": of those that `>>` leaves to this rule.
      highest: True for `top`, False for `bottom`.
    """

    by: Column
    fraction: Decimal
    of: Of = "pool"
    highest: bool = True

    def __post_init__(self) -> None:
        # 1e-999999999 is above 0 too, but as an exact fraction it would take all memory.
        if not (0 < self.fraction <= 1 and float(self.fraction) > 0):
            raise InputError(
                f"the fraction is {self.fraction}, but must be above 0 and at most 1:"
                " it is the share of the pool to keep, so 0.3 keeps 30 %, and 1 every pair that has a score"
            )
        if self.of not in ("pool", "kept"):
            raise InputError(f'of={self.of!r} is neither of="pool" (the default) nor of="kept"')

    def columns(self) -> tuple[str, ...]:
        return (self.by.name,)

    def apply(self, pool: Pool, among: np.ndarray, steps: list[Step]) -> np.ndarray:
        values = pool.columns[self.by.name]
        seen = int(among.sum())
        count = int(Fraction(self.fraction) * (pool.rows if self.of == "pool" else seen))
        key = _reversed(values) if self.highest else values
        mask = ranking.first((key, pool.uid["f0"], pool.uid["f1"]), count, among & np.isfinite(values))
        steps.append(Step(str(self), seen, int(mask.sum()), count))
        return mask

    def __str__(self) -> str:
        of = "" if self.of == "pool" else f', of="{self.of}"'
        return f"{'top' if self.highest else 'bottom'}({self.by}, {self.fraction}{of})"


@dataclasses.dataclass(frozen=True)
class Compare(Rule):
    """Keeps the pairs whose score compares so with a number or another column; null and infinite never do.

    A number is rounded to the column's dtype first, so that a score stored as 0.3 equals 0.3.
    """

    left: Column
    sign: str
    right: Column | Decimal

    def columns(self) -> tuple[str, ...]:
        return (self.left.name, *((self.right.name,) if isinstance(self.right, Column) else ()))

    def apply(self, pool: Pool, among: np.ndarray, steps: list[Step]) -> np.ndarray:
        left = pool.columns[self.left.name]
        mask = among & np.isfinite(left)
        if isinstance(self.right, Column):
            right = pool.columns[self.right.name]
            mask &= np.isfinite(right)
        else:
            kind = left.dtype if np.issubdtype(left.dtype, np.floating) else np.dtype(np.float64)
            with np.errstate(over="ignore"):
                right = np.array(float(self.right)).astype(kind)
        mask &= _COMPARE[self.sign](left, right)
        steps.append(Step(str(self), int(among.sum()), int(mask.sum())))
        return mask

    def __str__(self) -> str:
        return f"({self.left} {self.sign} {self.right})"


@dataclasses.dataclass(frozen=True)
class Uids(Rule):
    """Keeps the pairs whose uids a subset file holds, whatever their scores."""

    path: str

    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def apply(self, pool: Pool, among: np.ndarray, steps: list[Step]) -> np.ndarray:
        mask = among & (uid_sets.find(uid_sets.read_subset(self.path), pool.uid) >= 0)
        steps.append(Step(str(self), int(among.sum()), int(mask.sum())))
        return mask

    def __str__(self) -> str:
        return f"uids({self.path!r})"


def top(by: str | Column, fraction: Number, *, of: Of = "pool") -> Rule:
    """Keeps floor(fraction x N) pairs with the highest scores of a column; ties go to the smaller uid.

    Args:
      by: the column or its name.
      fraction: in (0, 1], of the whole pool; taken as the decimal it is written as, so 0.29 of 100 is 29.
      of: "kept" takes the fraction of the pairs that `>>` leaves to this rule.

    Raises:
      InputError: the fraction is outside (0, 1] or no number, or the name is no plain word.
    """
    return Top(column(by), decimal(fraction), of)


def bottom(by: str | Column, fraction: Number, *, of: Of = "pool") -> Rule:
    """Keeps floor(fraction x N) pairs with the lowest scores of a column; else as `top`."""
    return Top(column(by), decimal(fraction), of, highest=False)


def column(name: str | Column) -> Column:
    """A column of scores, to compare: `column("clip_score") >= 0.25`."""
    return name if isinstance(name, Column) else Column(name)


def uids(path: str) -> Rule:
    """Keeps the pairs whose uids a subset file holds; read when the rule is applied."""
    return Uids(path)


def decimal(value: Number) -> Decimal:
    """A number as the decimal that it is written as.

    Raises:
      InputError: not a number, or not a finite one.
    """
    try:
        # str of a float is the shortest text that gives the float back: 0.29, not 0.28999999999999998.
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise InputError(f"{value!r} is no finite number")
    return number


def _operand(value: Column | Number) -> Column | Decimal:
    return value if isinstance(value, Column) else decimal(value)


def _reversed(values: np.ndarray) -> np.ndarray:
    """Values in the opposite order; the negative of an unsigned or of the smallest integer would be wrong."""
    return np.invert(values) if np.issubdtype(values.dtype, np.integer) else np.negative(values)
