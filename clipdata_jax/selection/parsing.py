"""Rules from text: a Python expression, read by `ast`, of which only what a rule needs is allowed."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import io
import re
import tokenize
import warnings
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import NoReturn

from clipdata_jax.errors import InputError
from clipdata_jax.selection import conditions, rules, values
from clipdata_jax.selection.rules import Rule
from clipdata_jax.selection.values import Column, Constant, Value

_PAIRS: dict[type[ast.operator], type[rules.And | rules.Or | rules.Minus | rules.Then]] = {
    ast.RShift: rules.Then,
    ast.BitAnd: rules.And,
    ast.BitOr: rules.Or,
    ast.Sub: rules.Minus,
}
_ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_SIGNS = {ast.GtE: ">=", ast.Gt: ">", ast.LtE: "<=", ast.Lt: "<", ast.Eq: "==", ast.NotEq: "!="}
_MIRROR = {">=": "<=", ">": "<", "<=": ">=", "<": ">", "==": "==", "!=": "!="}
_FUNCTIONS = ("top", "bottom", "sample", "at_most", "uids", "rank")
_EXAMPLE = "top(neg_clip_loss, 0.3), or a comparison such as (clip_score >= 0.25)"


def parse(text: str, columns: Collection[str] | None = None) -> Rule:
    """Reads a rule.

        rule   :=  top(value, fraction) | bottom(value, fraction) | (value < value) | uids("file.npy")
                |  sample(value, amount, temperature=1, seed=0) | at_most(count)
                |  rule >> rule | rule & rule | rule | rule | rule - rule | (rule)
        value  :=  column | number | rank(value) | value + value | value - value | value * value
                |  value / value | -value | (value)

    Comparisons are <, <=, >, >=, == and !=. A fraction is a number in (0, 1], of the whole pool; followed by
    of="kept" it is of what `>>` leaves. An amount is a fraction or a number of pairs from 2 on. Operators bind
    as in Python: `*` and `/`, then `+` and `-`, then `>>`, then `&`, then `|`.

    Args:
      text: the rule; line breaks count as spaces.
      columns: the columns there are, so that a name that isn't one is pointed at; default: don't check.

    Raises:
      InputError: not a rule; the message shows the text with the place marked underneath.
    """
    source = Text(text)
    try:
        return _Parser(source, columns).rule(source.tree())
    except (RecursionError, MemoryError) as error:
        raise InputError(
            "the rule is nested too deeply; split it, and join the parts by uids(...)"
        ) from error


class _Parser:
    """Turns a syntax tree into rules; every complaint points at its place in the text."""

    def __init__(self, text: Text, columns: Collection[str] | None) -> None:
        self.text, self.fault = text, text.fault
        self.columns = columns

    def rule(self, node: ast.expr) -> Rule:
        match node:
            case ast.Name(name) if self.columns is None or name in self.columns:
                self.fault(node, f"a column alone is no rule: expected top({name}, 0.3), or ({name} >= 0.25)")
            case _ if _is_value(node) and not isinstance(node, ast.Constant):
                self.value(node)
                what = self.text.source(node)
                self.fault(node, f"scores alone are no rule: expected top({what}, 0.3), or a comparison")
            case ast.BinOp(left, op, right) if type(op) in _PAIRS:
                return _PAIRS[type(op)](self.rule(left), self.rule(right))
            case ast.Compare():
                return self.comparison(node)
            case ast.Call():
                return self.call(node)
            case ast.BinOp(_, ast.Add(), _):
                self.fault(node, "rules are put together by | (what either keeps), &, - and >>")
            case ast.BoolOp(op):
                self.text.word(type(op).__name__.lower())
            case ast.UnaryOp(ast.Not()):
                self.text.word("not")
            case ast.UnaryOp(ast.Invert()):
                self.fault(node, "write - for and not: top(a, 0.3) - top(b, 0.2)")
        self.fault(node, f"this is no rule: expected {_EXAMPLE}")

    def call(self, node: ast.Call) -> Rule:
        match self.function(node):
            case "uids":
                return self.given(node)
            case "at_most":
                return self.at_most(node)
            case "sample":
                return self.sample(node)
            case name:
                return self.top(node, name)

    def function(self, node: ast.Call) -> str:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in _FUNCTIONS:
            near = difflib.get_close_matches(name.lower(), _FUNCTIONS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.fault(node.func, f"unknown function {name!r}; there are {', '.join(_FUNCTIONS)}{hint}")
        return name

    def top(self, node: ast.Call, name: str) -> Rule:
        if len(node.args) != 2:
            self.fault(node, f"{name} takes a column and a fraction, as in {name}(neg_clip_loss, 0.3)")
        by, fraction = self.score(node.args[0]), self.number(node.args[1])
        match node.keywords:
            case []:
                of: conditions.Of = "pool"
            case [ast.keyword("of", ast.Constant("pool" | "kept" as of))]:
                pass
            case _:
                self.fault(node.keywords[0].value, 'after the fraction only of="kept" or of="pool" may stand')
        return self.made(node.args[1], lambda: conditions.Top(by, fraction, of, name == "top"))

    def sample(self, node: ast.Call) -> Rule:
        if len(node.args) != 2:
            example = "sample(neg_clip_loss, 0.2, temperature=0.1)"
            self.fault(
                node, f"sample takes a column and an amount, a fraction or a number of pairs: {example}"
            )
        by, amount = self.value(node.args[0]), self.number(node.args[1])
        temperature, seed = Decimal(1), 0
        of: conditions.Of = "pool"
        for i, keyword in enumerate(node.keywords):
            if keyword.arg in [before.arg for before in node.keywords[:i]]:
                self.fault(keyword.value, f"{keyword.arg}= is given twice")
            match keyword:
                case ast.keyword("temperature", place):
                    temperature = self.number(place)
                    self.made(place, functools.partial(conditions.Sample, by, Decimal(1), temperature))
                case ast.keyword("seed", place):
                    seed = self.whole(place)
                case ast.keyword("of", ast.Constant("pool" | "kept" as of)):
                    pass
                case _:
                    self.fault(
                        keyword.value, 'after the amount only temperature=, seed= and of="kept" may stand'
                    )
        return self.made(node.args[1], lambda: conditions.Sample(by, amount, temperature, seed, of))

    def at_most(self, node: ast.Call) -> Rule:
        if len(node.args) != 1 or node.keywords:
            self.fault(node, "at_most takes a number of pairs, as in top(clip_score, 0.3) >> at_most(100000)")
        number = self.whole(node.args[0])
        return self.made(node.args[0], lambda: conditions.AtMost(number))

    def given(self, node: ast.Call) -> Rule:
        match node.args, node.keywords:
            case [ast.Constant(str(path))], []:
                return self.made(node.args[0], lambda: conditions.Uids(path))
        self.fault(node, 'uids takes one subset file, in quotes: uids("subset.npy")')

    def made(self, place: ast.expr, make: Callable[[], Rule]) -> Rule:
        """A rule; if it refuses what it is made of, that is at the place."""
        try:
            return make()
        except InputError as error:
            self.fault(place, str(error))

    def comparison(self, node: ast.Compare) -> Rule:
        sides = [node.left, *node.comparators]
        if any(isinstance(side, ast.Call) and not _is_value(side) for side in sides):
            self.fault(node, "a rule can't be compared; did you mean >>?")
        if any(isinstance(side, ast.BinOp | ast.Compare) and not _is_value(side) for side in sides):
            self.fault(node, "comparisons stand in parentheses: (clip_score >= 0.25) & top(norm_sim_2, 0.3)")
        if len(sides) > 2:
            self.fault(node, "one comparison at a time: (0.2 <= clip_score) & (clip_score <= 0.3)")
        sign = _SIGNS.get(type(node.ops[0]))
        if sign is None:
            self.fault(node, f"scores are compared by {', '.join(_MIRROR)}")
        left, right = map(self.value, sides)
        if not (left.columns() or right.columns()):
            self.fault(node, "one side of a comparison must be a column")
        if isinstance(left, Constant):
            return values.Compare(right, _MIRROR[sign], left)
        return values.Compare(left, sign, right)

    def score(self, node: ast.expr) -> Value:
        """A value that differs from pair to pair."""
        found = self.value(node)
        if not found.columns():
            self.fault(node, "expected a column, or an expression with one")
        return found

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Name(name) if self.columns is None or name in self.columns:
                return Column(name)
            case ast.Name(name):
                self.fault(node, rules.unknown_column(name, self.columns or ()))
            case ast.Constant(str()):
                self.fault(node, "a column is written without quotes")
            case ast.Constant():
                return Constant(self.number(node))
            case ast.UnaryOp(ast.USub(), inner):
                return -self.value(inner)
            case ast.UnaryOp(ast.UAdd(), inner):
                return self.value(inner)
            case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
                return values.Arithmetic(self.value(left), _ARITHMETIC[type(op)], self.value(right))
            case ast.BinOp(ast.Constant(), ast.Mod(), _):
                self.fault(node, "a fraction is written as a decimal: 0.1 for 10%")
            case ast.BinOp(_, ast.Pow() | ast.Mod() | ast.FloorDiv()):
                self.fault(node, "the arithmetic is +, -, * and /")
            case ast.Call() if self.function(node) == "rank":
                if len(node.args) != 1 or node.keywords:
                    self.fault(node, "rank takes one column or expression, as in rank(neg_clip_loss)")
                return values.Rank(self.score(node.args[0]))
        self.fault(node, "expected a column, a number, rank(column), or arithmetic on them")

    def number(self, node: ast.expr) -> Decimal:
        match node:
            case ast.UnaryOp(ast.USub(), ast.Constant() as literal):
                return self.number(literal).copy_negate()
            case ast.UnaryOp(ast.UAdd(), ast.Constant() as literal):
                return self.number(literal)
            case ast.Constant(bool()):
                pass
            case ast.Constant(int() | float()):
                try:
                    return values.decimal(self.text.source(node))
                except InputError:
                    self.fault(node, "write the number in plain decimals")
            case ast.Constant(str(text)) if text.strip().endswith("%"):
                self.fault(node, "a fraction is written as a decimal: 0.1 for 10%")
            case ast.BinOp(ast.Constant(), ast.Mod(), _):
                self.fault(node, "a fraction is written as a decimal: 0.1 for 10%")
            case ast.BinOp(ast.Constant(), ast.Div(), ast.Constant()):
                self.fault(node, "a fraction is written as a decimal: 0.25 for 1/4")
        self.fault(node, "expected a number")

    def whole(self, node: ast.expr) -> int:
        match node:
            case ast.Constant(int(number)) if not isinstance(number, bool):
                return number
        self.fault(node, "expected a whole number")


def _is_value(node: ast.expr) -> bool:
    """Whether a node can be nothing but scores: `-` is between scores as well as between rules."""
    match node:
        case ast.Name() | ast.Constant():
            return True
        case ast.UnaryOp(ast.USub() | ast.UAdd(), inner):
            return _is_value(inner)
        case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
            return _is_value(left) and _is_value(right)
        case ast.BinOp(_, ast.Pow() | ast.Mod() | ast.FloorDiv()):
            return True
        case ast.Call(ast.Name("rank")):
            return True
    return False


# What other languages, and keyboards, write for a sign.
_MISSPELT_SIGNS = {
    "&&": "&", "||": "|", "=>": ">=", "=<": "<=", "<>": "!=", "≥": ">=", "≤": "<=", "≠": "!=", "“": '"', "”": '"',
}  # fmt: skip
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_WORDS = {
    "then": "write >> for then",
    "and": "write & for and",
    "or": "write | for or",
    "not": "write - for and not: top(a, 0.3) - top(b, 0.2)",
}


class Text:
    """A rule's text in one line.

    Raises:
      InputError: it is empty or no expression.
    """

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split("\n")).replace("\t", " ").replace("\r", " ").strip()
        if not self.text:
            raise InputError("the rule is empty; expected e.g. top(neg_clip_loss, 0.3)")

    def tree(self) -> ast.expr:
        """The syntax tree of the whole text."""
        tokens = self._tokens()
        for token in tokens:
            if token.type == tokenize.COMMENT:  # it would quietly take the rest of the rule away
                self.point(token.start[1], token.end[1], "a rule has no comments")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Python warns of "0.3and" and "\d": here they are mistakes
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            self._hint(tokens)
            self._hint_at_signs()
            if error.offset == 0:  # nothing is wrong but that it ends here
                self.point(len(self.text), 0, "the rule breaks off: something is missing at its end", error)
            start = (error.offset or 1) - 1
            self.point(start, (error.end_offset or 0) - 1, f"the rule can't be read: {error.msg}", error)
        except ValueError as error:
            raise InputError(f"the rule can't be read: {error}") from error

    def source(self, node: ast.expr) -> str:
        """What a node of the tree was read from."""
        # The tree counts bytes of UTF-8, not characters.
        return self.text.encode()[node.col_offset : node.end_col_offset].decode()

    def fault(self, node: ast.expr, message: str) -> NoReturn:
        """Complains of a node."""
        start = len(self.text.encode()[: node.col_offset].decode())
        self.point(start, start + len(self.source(node)), message)

    def point(self, start: int, end: int, message: str, cause: Exception | None = None) -> NoReturn:
        """Complains of a stretch of the text."""
        marks = "^" * max(1, min(end, len(self.text)) - start)
        raise InputError(f"{message}\n  {self.text}\n  {' ' * start}{marks}") from cause

    def word(self, name: str) -> None:
        """Complains of the first place where a word such as `and` stands for a sign."""
        self._hint([token for token in self._tokens() if token.string.lower() == name])

    def _hint_at_signs(self) -> None:
        """Complains of the first sign of another language."""
        plain = _QUOTED.sub(lambda quoted: " " * len(quoted[0]), self.text)
        places = [(plain.index(sign), sign) for sign in _MISSPELT_SIGNS if sign in plain]
        if places:
            start, sign = min(places)
            self.point(start, start + len(sign), f"write {_MISSPELT_SIGNS[sign]} for {sign}")

    def _tokens(self) -> list[tokenize.TokenInfo]:
        found: list[tokenize.TokenInfo] = []
        with contextlib.suppress(tokenize.TokenError, SyntaxError):  # the parser says it better
            found.extend(tokenize.generate_tokens(io.StringIO(self.text).readline))
        return found

    def _hint(self, tokens: list[tokenize.TokenInfo]) -> None:
        """Complains of what people write in other languages, if that is there."""
        for token, after in zip(tokens, [*tokens[1:], *tokens[-1:]]):
            if token.type == tokenize.NUMBER and after.string == "%":
                with contextlib.suppress(ArithmeticError):
                    share = Decimal(token.string) / 100
                    message = f"a fraction is written as a decimal: {share} for {token.string}%"
                    self.point(token.start[1], after.end[1], message)
            if token.type == tokenize.NAME and token.string.lower() in _WORDS:
                self.point(token.start[1], token.end[1], _WORDS[token.string.lower()])
