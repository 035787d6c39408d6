"""Rules that say which pairs to keep: small trees of frozen dataclasses, put together with operators.

    top("neg_clip_loss", 0.3) >> top("norm_sim_inf_in1k", 0.2)
    (column("clip_score") >= 0.25) & top("neg_clip_loss", 0.3) - uids("seen.npy")

`parsing.parse` reads the same from text, and `str(rule)` gives the text back. Operators bind as Python's do:
`-` before `>>` before `&` before `|`, and comparisons stand in parentheses. The rules that look at pairs
themselves are in `conditions`; here is what they have in common, and the operators.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np

from clipdata_jax.data import uids as uid_sets
from clipdata_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Step:
    """What one part of a rule did.

    Attributes:
      rule: its text.
      seen: pairs it looked at: the whole pool, or the survivors of what stands left of `>>`.
      kept: pairs it kept of them.
      asked: pairs it was to keep, for `top` and `bottom`; more than `kept` where too few have a score.
    """

    rule: str
    seen: int
    kept: int
    asked: int | None = None


@dataclasses.dataclass(frozen=True)
class Pool:
    """What rules are applied to.

    Attributes:
      columns: name -> scores, shape (n,), any float or integer dtype; NaN is null.
      uid: shape (n,), u8,u8.
      rows: pairs in the whole pool, of which fractions are taken; n, or more where some were left out.
    """

    columns: Mapping[str, np.ndarray]
    uid: np.ndarray
    rows: int


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
        if uid.dtype != uid_sets.DTYPE or uid.ndim != 1:
            raise ValueError(f"uid is {uid.dtype} of shape {uid.shape}, expected u8,u8 in one dimension")
        if rows < len(uid):
            raise ValueError(f"rows is {rows}, but {len(uid)} uids are given")
        for name in self.columns():
            if name not in columns:
                raise InputError(unknown_column(name, columns))
            if columns[name].shape != uid.shape:
                raise ValueError(f"column {name!r} has shape {columns[name].shape}, the uids {uid.shape}")
        steps: list[Step] = []
        mask = self.apply(Pool(columns, uid, rows), np.ones(len(uid), bool), steps)
        return mask, steps

    def columns(self) -> tuple[str, ...]:
        """The names of the columns that the rule looks at, each once, in order of appearance."""
        return tuple(dict.fromkeys(name for part in self.parts() for name in part.columns()))

    def files(self) -> tuple[str, ...]:
        """The files of uids that the rule reads, each once."""
        return tuple(dict.fromkeys(path for part in self.parts() for path in part.files()))

    def parts(self) -> tuple[Rule, ...]:
        """The rules that this rule is put together from."""
        return ()

    def apply(self, pool: Pool, among: np.ndarray, steps: list[Step]) -> np.ndarray:
        """Which of the rows in `among` the rule keeps, shape (n,), bool; appends to `steps`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Pair(Rule):
    """Two rules and the sign between them."""

    left: Rule
    right: Rule
    sign: ClassVar[str]

    def parts(self) -> tuple[Rule, ...]:
        return (self.left, self.right)

    def apply(self, pool: Pool, among: np.ndarray, steps: list[Step]) -> np.ndarray:
        mask = self.combine(self.left.apply(pool, among, steps), self.right.apply(pool, among, steps))
        steps.append(Step(str(self), int(among.sum()), int(mask.sum())))
        return mask

    def combine(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """What is kept, from what either rule keeps of the same pairs."""
        raise NotImplementedError

    def __str__(self) -> str:
        left, right = str(self.left), str(self.right)
        if self.left.binding < self.binding:
            left = f"({left})"
        if self.right.binding <= self.binding:
            right = f"({right})"
        return f"{left} {self.sign} {right}"


@dataclasses.dataclass(frozen=True)
class Then(_Pair):
    """Applies the right rule to the survivors of the left."""

    sign, binding = ">>", 3

    def apply(self, pool: Pool, among: np.ndarray, steps: list[Step]) -> np.ndarray:
        return self.right.apply(pool, self.left.apply(pool, among, steps), steps)


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
