"""Steps of rules: the highest and lowest scores, samples, and listed uids."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats import hashing
from clipdata_jax.formats.uid_files import read_subset
from clipdata_jax.formats.uids import find
from clipdata_jax.selection.pools import ScoreBlock
from clipdata_jax.selection.rules import First, Predicate, Rule
from clipdata_jax.selection.search import ordered_bits
from clipdata_jax.selection.values import Constant, Number, Value, column, decimal, score_of
from clipdata_jax.selection.work import PredicateWork, Work

Of = Literal["pool", "kept"]
# Salts of the uids' hashes: samples are independent of each other and of the batches of a score.
_AT_MOST, _SAMPLE = 0x61746D6F7374, 0x73616D706C65


@dataclasses.dataclass(frozen=True)
class Top(First):
    """The rule of `top`, or of `bottom` where not `highest`."""

    by: Value
    fraction: Decimal | None
    of: Of = "pool"
    highest: bool = True
    n: int | None = None

    def __post_init__(self) -> None:
        if self.fraction is None:
            if self.n is None or self.n < 1:
                raise InputError(f"n is {self.n}, but must be a number of pairs, at least 1")
            return
        # 1e-999999999 is above 0 too, but as an exact fraction it would take all memory.
        if not (0 < self.fraction <= 1 and float(self.fraction) > 0):
            raise InputError(
                f"the fraction is {self.fraction}, but must be above 0 and at most 1:"
                " it is the share of the pool to keep, so 0.3 keeps 30 %, and 1 every pair that has a score;"
                " a number of pairs is given as n=1000"
            )
        _check_of(self.of)

    def values(self) -> tuple[Value, ...]:
        return (self.by,)

    def keys(self, block: ScoreBlock) -> tuple[np.ndarray, np.ndarray]:
        scores = self.by.of(block)
        return ordered_bits(scores, highest_first=self.highest), np.isfinite(scores)

    def count(self, rows: int, seen: int) -> int:
        if self.fraction is None:
            return self.n or 0
        return int(Fraction(self.fraction) * (rows if self.of == "pool" else seen))

    def __str__(self) -> str:
        amount = f"n={self.n}" if self.fraction is None else f"{self.fraction}{_of_text(self.of)}"
        return f"{'top' if self.highest else 'bottom'}({self.by}, {amount})"


@dataclasses.dataclass(frozen=True)
class AtMost(First):
    """The rule of `at_most`."""

    number: int
    counts_asked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.number < 1:
            raise InputError(f"the number of pairs is {self.number}, but must be at least 1")

    def keys(self, block: ScoreBlock) -> tuple[np.ndarray, np.ndarray]:
        keys = block.cached(AtMost, lambda: hashing.mix(_AT_MOST, block.uid["f0"], block.uid["f1"]))
        return keys, np.ones(block.rows, bool)

    def count(self, rows: int, seen: int) -> int:
        return self.number

    def __str__(self) -> str:
        return f"at_most({self.number})"


@dataclasses.dataclass(frozen=True)
class WeightedSample(First):
    """The rule of `sample`."""

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

    def keys(self, block: ScoreBlock) -> tuple[np.ndarray, np.ndarray]:
        keys = block.cached(self, lambda: self.gumbel_keys(block))
        return ordered_bits(keys, highest_first=True), np.isfinite(keys)

    def gumbel_keys(self, block: ScoreBlock) -> np.ndarray:
        """Returns score / temperature - log(-log u) for each row, the highest of which are kept."""
        words = hashing.mix(_SAMPLE, self.seed, block.uid["f0"], block.uid["f1"])
        # 52 bits and a half: exact, and neither 0 nor 1.
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
class ListedUids(Predicate):
    """The rule of `uids`."""

    path: str

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError('the file\'s name is empty; expected e.g. uids("subset.npy")')

    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def start(self, rows: int) -> Work:
        listed = read_subset(self.path)
        return PredicateWork(str(self), lambda block: block.cached(self, lambda: find(listed, block.uid) >= 0))

    def __str__(self) -> str:
        return f"uids({self.path!r})"


def top(by: str | Value, fraction: Number | None = None, *, of: Of = "pool", n: int | None = None) -> Rule:
    """Keeps the floor(fraction x N) pairs with the highest scores, or the n highest; ties go to the smaller uid.

    Args:
      by: a column, its name, or an expression such as `rank("a") + rank("b")`.
      fraction: in (0, 1], of the N pairs of the pool; taken as the decimal it is written as, so 0.29 of 100 is 29.
      of: "kept" takes the fraction of the pairs that the left of `>>` keeps.
      n: the number of pairs, instead of a fraction; fewer are kept where fewer have a score.

    Raises:
      InputError: the fraction is not a number in (0, 1], n is below 1, both or neither are given, or the name is not a
        plain word.

    >>> uid = np.array([(0, row) for row in range(4)], "u8,u8")
    >>> top("a", 0.5).keep({"a": np.array([0.3, 0.1, 0.2, 0.2])}, uid).tolist()
    [True, False, True, False]
    >>> top("a", n=1).keep({"a": np.array([0.3, 0.1, 0.2, 0.2])}, uid).tolist()
    [True, False, False, False]
    """
    return _top(by, fraction, of, n, highest=True)


def bottom(by: str | Value, fraction: Number | None = None, *, of: Of = "pool", n: int | None = None) -> Rule:
    """Keeps the floor(fraction x N) pairs with the lowest scores, or the n lowest; ties go to the smaller uid.

    Args and Raises as for `top`.

    >>> uid = np.array([(0, row) for row in range(4)], "u8,u8")
    >>> bottom("a", 0.5).keep({"a": np.array([0.3, 0.1, 0.2, 0.2])}, uid).tolist()
    [False, True, True, False]
    """
    return _top(by, fraction, of, n, highest=False)


def at_most(number: int) -> Rule:
    """Keeps a uniform sample of at most `number` pairs, chosen by hashes of their uids.

    The sample depends on neither files nor order, and a smaller one is a subset of a larger one.

    Args:
      number: at least 1.

    Raises:
      InputError: the number is below 1.

    >>> print(top("a", 0.3) >> at_most(100_000))
    top(a, 0.3) >> at_most(100000)
    """
    return AtMost(number)


def sample(
    by: str | Value | Number, amount: Number, *, temperature: Number = 1, seed: int = 0, of: Of = "pool"
) -> Rule:
    """Draws pairs without replacement with weights exp(score / temperature).

    By the Gumbel-top-k trick (Kool et al. 2019, arXiv:1903.06059): keeps the highest
    score / temperature - log(-log u), with u in (0, 1) a hash of seed and uid, so that the draw depends on neither
    files, order nor processes.

    Args:
      by: a column, its name, or an expression; a number draws uniformly.
      amount: a fraction in (0, 1], or a whole number of pairs, at least 2.
      temperature: above 0, in the score's units; low comes close to `top`, high to a uniform draw.
      seed: of the draw, which also depends on the uids.
      of: "kept" takes the fraction of the pairs that the left of `>>` keeps.

    Raises:
      InputError: the amount is neither, or the temperature isn't above 0.

    >>> uid = np.array([(0, row) for row in range(1000)], "u8,u8")
    >>> int(sample("a", 100, temperature=0.1).keep({"a": np.linspace(0, 1, 1000)}, uid).sum())
    100
    """
    score = column(by) if isinstance(by, str | Value) else Constant(decimal(by))
    return WeightedSample(score, decimal(amount), decimal(temperature), seed, of)


def uids(path: str) -> Rule:
    """Keeps the pairs whose uids a subset file holds, whatever their scores; it is read when the rule is applied.

    >>> print(top("a", 0.3) - uids("seen.npy"))
    top(a, 0.3) - uids('seen.npy')
    """
    return ListedUids(path)


def _top(by: str | Value, fraction: Number | None, of: Of, n: int | None, *, highest: bool) -> Rule:
    if (fraction is None) == (n is None) or (n is not None and of != "pool"):
        raise InputError(f"fraction is {fraction}, n {n}, of {of!r}; expected a fraction, or else n alone")
    return Top(score_of(by), None if fraction is None else decimal(fraction), of, highest, n)


def _check_of(of: str) -> None:
    if of not in ("pool", "kept"):
        raise InputError(f'of={of!r}, expected of="pool" (the default) or of="kept"')


def _of_text(of: Of) -> str:
    return "" if of == "pool" else f', of="{of}"'
