"""Rules from text: a Python expression, read by `ast`, of which only what a rule needs is allowed."""

from __future__ import annotations

import ast
import difflib
import io
import tokenize
import warnings
from collections.abc import Collection
from decimal import Decimal
from typing import NoReturn

from clipdata_jax.errors import InputError
from clipdata_jax.selection import conditions, rules
from clipdata_jax.selection.conditions import Column
from clipdata_jax.selection.rules import Rule

_PAIRS: dict[type[ast.operator], type[rules.And | rules.Or | rules.Minus | rules.Then]] = {
    ast.RShift: rules.Then,
    ast.BitAnd: rules.And,
    ast.BitOr: rules.Or,
    ast.Sub: rules.Minus,
}
_SIGNS = {ast.GtE: ">=", ast.Gt: ">", ast.LtE: "<=", ast.Lt: "<", ast.Eq: "==", ast.NotEq: "!="}
_MIRROR = {">=": "<=", ">": "<", "<=": ">=", "<": ">", "==": "==", "!=": "!="}
_FUNCTIONS = ("top", "bottom", "uids")
_EXAMPLE = "top(neg_clip_loss, 0.3), or a comparison such as (clip_score >= 0.25)"


def parse(text: str, columns: Collection[str] | None = None) -> Rule:
    """Reads a rule.

        rule   :=  top(column, fraction) | bottom(column, fraction) | (value < value) | uids("file.npy")
                |  rule >> rule | rule & rule | rule | rule | rule - rule | (rule)
        value  :=  column | number

    Comparisons are <, <=, >, >=, == and !=, one side being a column. A fraction is a number in (0, 1], of
    the whole pool; followed by of="kept" it is of what `>>` leaves. Operators bind as in Python: `-`, then
    `>>`, then `&`, then `|`.

    Args:
      text: the rule; line breaks count as spaces.
      columns: the columns there are, so that a name that isn't one is pointed at; default: don't check.

    Raises:
      InputError: not a rule; the message shows the text with the place marked underneath.
    """
    flat = " ".join(text.split("\n")).replace("\t", " ").replace("\r", " ").strip()
    try:
        return _Parser(flat, columns).read()
    except (RecursionError, MemoryError) as error:
        raise InputError(
            "the rule is nested too deeply; split it, and join the parts by uids(...)"
        ) from error


class _Parser:
    """Turns a syntax tree into rules; every complaint points at its place in the text."""

    def __init__(self, text: str, columns: Collection[str] | None) -> None:
        self.text = text
        self.columns = columns

    def read(self) -> Rule:
        if not self.text:
            raise InputError(f"the rule is empty; expected e.g. {_EXAMPLE}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Python warns of "0.3and" and "\d": here they are mistakes
                tree = ast.parse(self.text, mode="eval")
        except SyntaxError as error:
            start = (error.offset or 1) - 1
            self.point(start, (error.end_offset or 0) - 1, f"the rule can't be read: {error.msg}", error)
        except ValueError as error:
            raise InputError(f"the rule can't be read: {error}") from error
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:  # it would quietly take the rest of the rule away
                self.point(token.start[1], token.end[1], "a rule has no comments")
        return self.rule(tree.body)

    def rule(self, node: ast.expr) -> Rule:
        match node:
            case ast.BinOp(left, op, right) if type(op) in _PAIRS:
                return _PAIRS[type(op)](self.rule(left), self.rule(right))
            case ast.Compare():
                return self.comparison(node)
            case ast.Call():
                return self.call(node)
            case ast.BoolOp() | ast.UnaryOp(ast.Not()):
                self.fault(node, "rules are joined by &, | and - (without), not by and, or and not")
            case ast.Name(name) if self.columns is not None and name not in self.columns:
                self.fault(node, rules.unknown_column(name, self.columns))
            case ast.Name(name):
                self.fault(node, f"a column alone is no rule: expected top({name}, 0.3), or ({name} >= 0.25)")
        self.fault(node, f"this is no rule: expected {_EXAMPLE}")

    def call(self, node: ast.Call) -> Rule:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in _FUNCTIONS:
            near = difflib.get_close_matches(name, _FUNCTIONS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.fault(node.func, f"unknown function {name!r}; there are {', '.join(_FUNCTIONS)}{hint}")
        if name == "uids":
            return self.given(node)
        if len(node.args) != 2:
            self.fault(node, f"{name} takes a column and a fraction, as in {name}(neg_clip_loss, 0.3)")
        by, fraction, of = self.column(node.args[0]), self.number(node.args[1]), self.meaning(node)
        try:
            return conditions.Top(by, fraction, of, name == "top")
        except InputError as error:
            self.fault(node.args[1], str(error))

    def meaning(self, node: ast.Call) -> conditions.Of:
        match node.keywords:
            case []:
                return "pool"
            case [ast.keyword("of", ast.Constant("pool" | "kept" as of))]:
                return of
        self.fault(node.keywords[0].value, 'after the fraction only of="kept" or of="pool" may stand')

    def given(self, node: ast.Call) -> Rule:
        match node.args, node.keywords:
            case [ast.Constant(str(path))], []:
                return conditions.Uids(path)
        self.fault(node, 'uids takes one subset file, in quotes: uids("subset.npy")')

    def comparison(self, node: ast.Compare) -> Rule:
        sides = [node.left, *node.comparators]
        if any(isinstance(side, ast.BinOp | ast.Call | ast.Compare) for side in sides):
            self.fault(node, "comparisons stand in parentheses: (clip_score >= 0.25) & top(norm_sim_2, 0.3)")
        if len(sides) > 2:
            self.fault(node, "one comparison at a time: (0.2 <= clip_score) & (clip_score <= 0.3)")
        sign = _SIGNS.get(type(node.ops[0]))
        if sign is None:
            self.fault(node, f"scores are compared by {', '.join(_MIRROR)}")
        left, right = map(self.operand, sides)
        if isinstance(left, Column):
            return conditions.Compare(left, sign, right)
        if isinstance(right, Column):
            return conditions.Compare(right, _MIRROR[sign], left)
        self.fault(node, "one side of a comparison must be a column")

    def operand(self, node: ast.expr) -> Column | Decimal:
        return self.column(node) if isinstance(node, ast.Name) else self.number(node)

    def column(self, node: ast.expr) -> Column:
        match node:
            case ast.Name(name) if self.columns is None or name in self.columns:
                return Column(name)
            case ast.Name(name):
                self.fault(node, rules.unknown_column(name, self.columns or ()))
            case ast.Constant(str()):
                self.fault(node, "a column is written without quotes")
        self.fault(node, "expected a column")

    def number(self, node: ast.expr) -> Decimal:
        match node:
            case ast.UnaryOp(ast.USub(), ast.Constant() as literal):
                return -self.number(literal)
            case ast.Constant(bool()):
                pass
            case ast.Constant(int() | float()):
                try:
                    return conditions.decimal(self.source(node))
                except InputError:
                    self.fault(node, "write the number in plain decimals")
        self.fault(node, "expected a number")

    def source(self, node: ast.expr) -> str:
        # The tree counts bytes of UTF-8, not characters.
        return self.text.encode()[node.col_offset : node.end_col_offset].decode()

    def fault(self, node: ast.expr, message: str) -> NoReturn:
        start = len(self.text.encode()[: node.col_offset].decode())
        self.point(start, start + len(self.source(node)), message)

    def point(self, start: int, end: int, message: str, cause: Exception | None = None) -> NoReturn:
        marks = "^" * max(1, min(end, len(self.text)) - start)
        raise InputError(f"{message}\n  {self.text}\n  {' ' * start}{marks}") from cause
