"""The rules that look at pairs themselves: the highest and lowest scores, samples, given uids."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats import hashing
from clipdata_jax.formats.uids import find, read_subset
from clipdata_jax.selection.pools import Block
from clipdata_jax.selection.rules import Filter, First, Rule
from clipdata_jax.selection.search import ordered_bits
from clipdata_jax.selection.values import Constant, Number, Value, column, decimal
from clipdata_jax.selection.work import FilterWork, Work

Of = Literal["pool", "kept"]
# What a uid is hashed with, so that samples have nothing to do with each other or with a score's batches.
_AT_MOST, _SAMPLE = 0x61746D6F7374, 0x73616D706C65


@dataclasses.dataclass(frozen=True)
class Top(First):
    """Keeps the pairs with the highest (`top`) or lowest (`bottom`) scores; ties go to the smaller uid.

    Attributes:
      by: the score.
      fraction: in (0, 1], as the decimal it was written as: 0.29 of 100 pairs is 29.
      of: "pool": of all pairs, also those without a score; "kept": of those that `>>` leaves to this rule.
      highest: True for `top`, False for `bottom`.
    """

    by: Value
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
        _check_of(self.of)

    def values(self) -> tuple[Value, ...]:
        return (self.by,)

    def keys(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        scores = self.by.of(block)
        return ordered_bits(scores, highest_first=self.highest), np.isfinite(scores)

    def count(self, rows: int, seen: int) -> int:
        return int(Fraction(self.fraction) * (rows if self.of == "pool" else seen))

    def __str__(self) -> str:
        return f"{'top' if self.highest else 'bottom'}({self.by}, {self.fraction}{_of_text(self.of)})"


@dataclasses.dataclass(frozen=True)
class AtMost(First):
    """Keeps all pairs if they are at most so many, else that many drawn evenly by their uids' hashes.

    The same pairs in whatever files and order, and those of a smaller number are among those of a larger.
    """

    number: int
    asks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.number < 1:
            raise InputError(f"the number of pairs is {self.number}, but must be at least 1")

    def keys(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        keys = block.remember(AtMost, lambda: hashing.mix(_AT_MOST, block.uid["f0"], block.uid["f1"]))
        return keys, np.ones(block.rows, bool)

    def count(self, rows: int, seen: int) -> int:
        return self.number

    def __str__(self) -> str:
        return f"at_most({self.number})"


@dataclasses.dataclass(frozen=True)
class Sample(First):
    """Draws pairs without replacement, each next one with a chance in proportion to exp(score / temperature).

    By Gumbel keys: the pairs with the highest score / temperature - log(-log u) are those of such draws, u in
    (0, 1) being a hash of seed and uid. So the draw depends on neither files, order nor processes.

    Attributes:
      by: the score; a number draws evenly from all pairs.
      amount: a fraction in (0, 1] as in `Top`, or a number of pairs from 2 on.
      temperature: above 0; small ones come close to `top`, large ones to an even draw.
      seed: another draw for another seed.
      of: what the fraction is of, as in `Top`.
    """

    by: Value
    amount: Decimal
    temperature: Decimal = Decimal(1)
    seed: int = 0
    of: Of = "pool"

    def __post_init__(self) -> None:
        whole = self.amount == self.amount.to_integral_value() if abs(self.amount.adjusted()) < 30 else False
        if not (0 < self.amount <= 1 and float(self.amount) > 0) and not (self.amount > 1 and whole):
            raise InputError(
                f"the amount is {self.amount}, but must be a fraction above 0 and at most 1, or a whole number of pairs"
            )
        if not float(self.temperature) > 0:
            raise InputError(f"the temperature is {self.temperature}, but must be above 0")
        _check_of(self.of)

    def values(self) -> tuple[Value, ...]:
        return (self.by,)

    def keys(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        keys = block.remember(self, lambda: self._gumbel_keys(block))
        return ordered_bits(keys, highest_first=True), np.isfinite(keys)

    def _gumbel_keys(self, block: Block) -> np.ndarray:
        words = hashing.mix(_SAMPLE, self.seed, block.uid["f0"], block.uid["f1"])
        # 52 bits and a half: neither 0 nor 1, and exact.
        uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        with np.errstate(all="ignore"):
            return self.by.of(block) / np.float64(self.temperature) - np.log(-np.log(uniform))

    def count(self, rows: int, seen: int) -> int:
        if self.amount > 1:
            return int(self.amount)
        return int(Fraction(self.amount) * (rows if self.of == "pool" else seen))

    def __str__(self) -> str:
        temperature = "" if self.temperature == 1 else f", temperature={self.temperature}"
        seed = f", seed={self.seed}" if self.seed else ""
        return f"sample({self.by}, {self.amount}{temperature}{seed}{_of_text(self.of)})"


@dataclasses.dataclass(frozen=True)
class Uids(Filter):
    """Keeps the pairs whose uids a subset file holds, whatever their scores."""

    path: str

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError('the file\'s name is empty; expected e.g. uids("subset.npy")')

    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def start(self, rows: int) -> Work:
        given = read_subset(self.path)
        return FilterWork(str(self), lambda block: block.remember(self, lambda: find(given, block.uid) >= 0))

    def __str__(self) -> str:
        return f"uids({self.path!r})"


def top(by: str | Value, fraction: Number, *, of: Of = "pool") -> Rule:
    """Keeps floor(fraction x N) pairs with the highest scores; ties go to the smaller uid.

    Args:
      by: a column, its name, or an expression such as `rank("a") + rank("b")`.
      fraction: in (0, 1], of the whole pool; taken as the decimal it is written as, so 0.29 of 100 is 29.
      of: "kept" takes the fraction of the pairs that `>>` leaves to this rule.

    Raises:
      InputError: the fraction is outside (0, 1] or no number, or the name is no plain word.
    """
    return Top(_score(by), decimal(fraction), of)


def bottom(by: str | Value, fraction: Number, *, of: Of = "pool") -> Rule:
    """Keeps floor(fraction x N) pairs with the lowest scores; else as `top`."""
    return Top(_score(by), decimal(fraction), of, highest=False)


def at_most(number: int) -> Rule:
    """Keeps at most so many pairs, drawn evenly by their uids' hashes.

    It stands behind what may keep more: `top("a", 0.3) >> at_most(100_000)`.

    Raises:
      InputError: the number is below 1.
    """
    return AtMost(number)


def sample(
    by: str | Value | Number, amount: Number, *, temperature: Number = 1, seed: int = 0, of: Of = "pool"
) -> Rule:
    """Draws pairs without replacement with weights exp(score / temperature).

    Args:
      by: a column, its name, or an expression; a number draws evenly.
      amount: a fraction in (0, 1], or a whole number of pairs from 2 on.
      temperature: above 0, in the score's units.
      seed: another draw for another seed.
      of: "kept" takes the fraction of the pairs that `>>` leaves to this rule.

    Raises:
      InputError: the amount is neither, or the temperature isn't above 0.
    """
    score = column(by) if isinstance(by, str | Value) else Constant(decimal(by))
    return Sample(score, decimal(amount), decimal(temperature), seed, of)


def uids(path: str) -> Rule:
    """Keeps the pairs whose uids a subset file holds; read when the rule is applied."""
    return Uids(path)


def _score(by: str | Value) -> Value:
    score = column(by)
    if not score.columns():
        raise InputError(f"{score} is the same for every pair; expected a column or an expression with one")
    return score


def _check_of(of: str) -> None:
    if of not in ("pool", "kept"):
        raise InputError(f'of={of!r} is neither of="pool" (the default) nor of="kept"')


def _of_text(of: Of) -> str:
    return "" if of == "pool" else f', of="{of}"'
