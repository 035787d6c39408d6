"""Rules from text: a Python expression, read by `ast`, of which only what rules need is allowed."""

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
from clipdata_jax.selection import balancing, grouped, repetition, rules, steps, values
from clipdata_jax.selection.rules import Rule
from clipdata_jax.selection.values import Column, Constant, Value

_RULE_OPERATORS: dict[type[ast.operator], type[rules.And | rules.Or | rules.Minus | rules.Then]] = {
    ast.RShift: rules.Then,
    ast.BitAnd: rules.And,
    ast.BitOr: rules.Or,
    ast.Sub: rules.Minus,
}
_ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_SIGNS = {ast.GtE: ">=", ast.Gt: ">", ast.LtE: "<=", ast.Lt: "<", ast.Eq: "==", ast.NotEq: "!="}
_MIRRORED = {">=": "<=", ">": "<", "<=": ">=", "<": ">", "==": "==", "!=": "!="}
_FUNCTIONS = ("top", "bottom", "sample", "soft_cap", "hard_cap", "balanced", "at_most", "best_of", "uids", "rank")
# Hints for what people write by habit.
_WORDS = {
    "then": "write >> for then",
    "and": "write & for and",
    "or": "write | for or",
    "not": "write - for and not: top(a, 0.3) - top(b, 0.2)",
}
_FOREIGN_SIGNS = {
    "&&": "&", "||": "|", "=>": ">=", "=<": "<=", "<>": "!=", "≥": ">=", "≤": "<=", "≠": "!=", "“": '"', "”": '"',
}  # fmt: skip
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")


def parse(text: str, columns: Collection[str] | None = None) -> Rule:
    """Reads a rule.

        rule   :=  top(value, fraction) | bottom(value, fraction) | top(value, n=count) | bottom(value, n=count)
                |  balanced(column, t=20_000, seed=0) | (value < value) | uids("file.npy")
                |  sample(value, amount, temperature=1, seed=0) | at_most(count) | best_of(column, by=value)
                |  soft_cap(value, count, penalty=0.15, batch=100_000, seed=0) | hard_cap(value, count, cap=15, seed=0)
                |  rule >> rule | rule & rule | rule | rule | rule - rule | (rule)
        value  :=  column | number | rank(value) | value + value | value - value | value * value
                |  value / value | -value | (value)

    Comparisons are <, <=, >, >=, == and !=. A fraction is a number in (0, 1], of the whole pool; with of="kept",
    of the pairs that are left of `>>`. An amount is a fraction or a number of pairs, at least 2. Operators bind
    as in Python: `*` and `/`, then `+` and `-`, then `>>`, then `&`, then `|`.

    Args:
      text: the rule; line breaks count as spaces.
      columns: the known columns, so that an unknown name is an error; default: don't check.

    Raises:
      InputError: not a rule; the message shows the text with the place marked underneath.

    >>> from clipdata_jax.selection import parse, top
    >>> parse("top(clip_score, 0.3) >> top(norm_sim_2, 0.2)") == top("clip_score", 0.3) >> top("norm_sim_2", 0.2)
    True
    >>> parse("top(clip_scor, 0.3)", columns=["clip_score"])
    Traceback (most recent call last):
        ...
    clipdata_jax.errors.InputError: unknown column 'clip_scor'; the columns are clip_score; did you mean clip_score?
      top(clip_scor, 0.3)
          ^^^^^^^^^
    """
    source = _Text(text)
    try:
        return _Parser(source, columns).rule(source.tree())
    except (RecursionError, MemoryError) as error:
        raise InputError("the rule is nested too deeply; split it and join the parts by uids(...)") from error


class _Text:
    """The text of a rule in one line, which errors point into.

    Raises:
      InputError: the text is empty.
    """

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split("\n")).replace("\t", " ").replace("\r", " ").strip()
        if not self.text:
            raise InputError("the rule is empty; expected e.g. top(neg_clip_loss, 0.3)")

    def tree(self) -> ast.expr:
        """Parses the text.

        Raises:
          InputError: it is not an expression.
        """
        tokens = self._tokens()
        for token in tokens:
            if token.type == tokenize.COMMENT:  # it would silently drop the rest of the rule
                self.fail(token.start[1], token.end[1], "comments are not allowed in a rule")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Python only warns of "0.3and" and "\d"
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            self._check_habits(tokens)
            self._check_foreign_signs()
            if error.offset == 0:  # all is well up to the end
                self.fail(len(self.text), 0, "the rule breaks off: something is missing at its end", error)
            start = (error.offset or 1) - 1
            self.fail(start, (error.end_offset or 0) - 1, f"the rule can't be read: {error.msg}", error)
        except ValueError as error:
            raise InputError(f"the rule can't be read: {error}") from error

    def source(self, node: ast.expr) -> str:
        """The text that a node was parsed from."""
        # Offsets in the tree count bytes of UTF-8, not characters.
        return self.text.encode()[node.col_offset : node.end_col_offset].decode()

    def fail_at(self, node: ast.expr, message: str) -> NoReturn:
        """Raises an error that points at a node."""
        start = len(self.text.encode()[: node.col_offset].decode())
        self.fail(start, start + len(self.source(node)), message)

    def fail_at_word(self, name: str) -> None:
        """Raises an error that points at the first use of a word such as `and` for an operator."""
        self._check_habits([token for token in self._tokens() if token.string.lower() == name])

    def fail(self, start: int, end: int, message: str, cause: Exception | None = None) -> NoReturn:
        """Raises an error that points at characters of the text."""
        marks = "^" * max(1, min(end, len(self.text)) - start)
        raise InputError(f"{message}\n  {self.text}\n  {' ' * start}{marks}") from cause

    def _tokens(self) -> list[tokenize.TokenInfo]:
        found: list[tokenize.TokenInfo] = []
        with contextlib.suppress(tokenize.TokenError, SyntaxError):  # ast.parse gives the better message
            found.extend(tokenize.generate_tokens(io.StringIO(self.text).readline))
        return found

    def _check_habits(self, tokens: list[tokenize.TokenInfo]) -> None:
        """Raises an error at the first percentage, or word for an operator."""
        for token, after in zip(tokens, [*tokens[1:], *tokens[-1:]]):
            if token.type == tokenize.NUMBER and after.string == "%":
                with contextlib.suppress(ArithmeticError):
                    share = Decimal(token.string) / 100
                    message = f"a fraction is written as a decimal: {share} for {token.string}%"
                    self.fail(token.start[1], after.end[1], message)
            if token.type == tokenize.NAME and token.string.lower() in _WORDS:
                self.fail(token.start[1], token.end[1], _WORDS[token.string.lower()])

    def _check_foreign_signs(self) -> None:
        plain = _QUOTED.sub(lambda quoted: " " * len(quoted[0]), self.text)
        places = [(plain.index(sign), sign) for sign in _FOREIGN_SIGNS if sign in plain]
        if places:
            start, sign = min(places)
            self.fail(start, start + len(sign), f"write {_FOREIGN_SIGNS[sign]} for {sign}")


class _Parser:
    """Converts a syntax tree to a rule; every error points at its place in the text."""

    def __init__(self, text: _Text, columns: Collection[str] | None) -> None:
        self.text, self.fail_at, self.columns = text, text.fail_at, columns

    def rule(self, node: ast.expr) -> Rule:
        match node:
            case ast.Name(name) if self.columns is None or name in self.columns:
                self.fail_at(node, f"a column alone is not a rule: expected top({name}, 0.3), or ({name} >= 0.25)")
            case _ if _is_value(node) and not isinstance(node, ast.Constant):
                self.value(node)
                scores = self.text.source(node)
                self.fail_at(node, f"scores alone are not a rule: expected top({scores}, 0.3), or a comparison")
            case ast.BinOp(left, op, right) if type(op) in _RULE_OPERATORS:
                join = functools.partial(_RULE_OPERATORS[type(op)], self.rule(left), self.rule(right))
                return self.checked(node, join)
            case ast.Compare():
                return self.comparison(node)
            case ast.Call():
                return self.call(node)
            case ast.BinOp(_, ast.Add(), _):
                self.fail_at(node, "rules are joined by | (what either keeps), &, - and >>")
            case ast.BoolOp(op):
                self.text.fail_at_word(type(op).__name__.lower())
            case ast.UnaryOp(ast.Not()):
                self.text.fail_at_word("not")
            case ast.UnaryOp(ast.Invert()):
                self.fail_at(node, "write - for and not: top(a, 0.3) - top(b, 0.2)")
        example = "top(neg_clip_loss, 0.3), or a comparison such as (clip_score >= 0.25)"
        self.fail_at(node, f"not a rule: expected {example}")

    def call(self, node: ast.Call) -> Rule:
        name = self.function(node)
        match name:
            case "top" | "bottom":
                return self.top(node, name)
            case "soft_cap":
                return self.draws(node, repetition.SoftCap, name, "penalty", "batch", "seed")
            case "hard_cap":
                return self.draws(node, repetition.HardCap, name, "cap", "seed")
            case "balanced":
                return self.balanced(node)
            case "sample":
                return self.sample(node)
            case "at_most":
                return self.at_most(node)
            case "best_of":
                return self.best_of(node)
        return self.uids(node)

    def function(self, node: ast.Call) -> str:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in _FUNCTIONS:
            near = difflib.get_close_matches(name.lower(), _FUNCTIONS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.fail_at(node.func, f"unknown function {name!r}; choose from {', '.join(_FUNCTIONS)}{hint}")
        return name

    def top(self, node: ast.Call, name: str) -> Rule:
        match node.args, node.keywords:
            case [scored], [ast.keyword("n", place)]:
                score, number = self.score(scored), self.integer(place)
                return self.checked(place, lambda: steps.Top(score, None, "pool", name == "top", number))
        if len(node.args) != 2:
            example = f"{name}(neg_clip_loss, 0.3) or {name}(neg_clip_loss, n=100_000)"
            self.fail_at(node, f"{name} takes a column and a fraction or a number of pairs, as in {example}")
        by, fraction = self.score(node.args[0]), self.number(node.args[1])
        match node.keywords:
            case []:
                of: steps.Of = "pool"
            case [ast.keyword("of", ast.Constant("pool" | "kept" as of))]:
                pass
            case [keyword, *_]:
                self.fail_at(keyword.value, 'the only option after the fraction is of="kept" or of="pool"')
        return self.checked(node.args[1], lambda: steps.Top(by, fraction, of, name == "top"))

    def sample(self, node: ast.Call) -> Rule:
        if len(node.args) != 2:
            example = "sample(neg_clip_loss, 0.2, temperature=0.1)"
            message = f"sample takes a column and an amount, a fraction or a number of pairs: {example}"
            self.fail_at(node, message)
        by, amount = self.value(node.args[0]), self.number(node.args[1])
        temperature, seed = Decimal(1), 0
        of: steps.Of = "pool"
        given: set[str | None] = set()
        for keyword in node.keywords:
            if keyword.arg in given:
                self.fail_at(keyword.value, f"{keyword.arg}= is given twice")
            given.add(keyword.arg)
            match keyword:
                case ast.keyword("temperature", place):
                    temperature = self.number(place)
                    self.checked(place, functools.partial(steps.WeightedSample, by, Decimal(1), temperature))
                case ast.keyword("seed", place):
                    seed = self.integer(place)
                case ast.keyword("of", ast.Constant("pool" | "kept" as of)):
                    pass
                case _:
                    options = 'the only options after the amount are temperature=, seed= and of="kept"'
                    self.fail_at(keyword.value, options)
        return self.checked(node.args[1], lambda: steps.WeightedSample(by, amount, temperature, seed, of))

    def draws(self, node: ast.Call, make: Callable[..., Rule], name: str, *options: str) -> Rule:
        if len(node.args) != 2:
            self.fail_at(node, f"{name} takes a column and a number of draws, as in {name}(neg_clip_loss, 128_000_000)")
        by, number = self.score(node.args[0]), self.integer(node.args[1])
        given: dict[str, int | Decimal] = {}
        for keyword in node.keywords:
            if keyword.arg not in options or keyword.arg in given:
                listed = ", ".join(f"{option}=" for option in options)
                self.fail_at(keyword.value, f"the options of {name} are {listed}, each at most once")
            read = self.number if keyword.arg == "penalty" else self.integer
            given[keyword.arg] = read(keyword.value)
        return self.checked(node, lambda: make(by, number, **given))

    def balanced(self, node: ast.Call) -> Rule:
        given = {keyword.arg: self.integer(keyword.value) for keyword in node.keywords if keyword.arg in ("t", "seed")}
        if len(node.args) != 1 or not isinstance(node.args[0], ast.Name) or len(given) < len(node.keywords):
            self.fail_at(node, "balanced takes a column of entries, t= and seed=, as in balanced(entries, t=20_000)")
        name = self.score(node.args[0]).leaves()[0].name
        return self.checked(node, lambda: balancing.Balanced(balancing.EntryLists(name), **given))

    def at_most(self, node: ast.Call) -> Rule:
        if len(node.args) != 1 or node.keywords:
            example = "top(clip_score, 0.3) >> at_most(100000)"
            self.fail_at(node, f"at_most takes a number of pairs, as in {example}")
        number = self.integer(node.args[0])
        return self.checked(node.args[0], lambda: steps.AtMost(number))

    def best_of(self, node: ast.Call) -> Rule:
        match node.args, node.keywords:
            case [ast.Name() as group], [ast.keyword("by", by)]:
                column = self.value(group)
                if isinstance(column, Column):
                    return grouped.BestOf(column, self.score(by))
        self.fail_at(node, "best_of takes a column of groups and a score: best_of(group, by=neg_clip_loss)")

    def uids(self, node: ast.Call) -> Rule:
        match node.args, node.keywords:
            case [ast.Constant(str(path)) as place], []:
                return self.checked(place, lambda: steps.ListedUids(path))
        self.fail_at(node, 'uids takes one subset file, in quotes: uids("subset.npy")')

    def checked(self, place: ast.expr, make: Callable[[], Rule]) -> Rule:
        """Makes a rule; errors of its arguments point at the place."""
        try:
            return make()
        except InputError as error:
            self.fail_at(place, str(error))

    def comparison(self, node: ast.Compare) -> Rule:
        sides = [node.left, *node.comparators]
        if any(isinstance(side, ast.Call) and not _is_value(side) for side in sides):
            self.fail_at(node, "a rule can't be compared; did you mean >>?")
        if any(isinstance(side, ast.BinOp | ast.Compare) and not _is_value(side) for side in sides):
            example = "(clip_score >= 0.25) & top(norm_sim_2, 0.3)"
            self.fail_at(node, f"comparisons stand in parentheses: {example}")
        if len(sides) > 2:
            self.fail_at(node, "one comparison at a time: (0.2 <= clip_score) & (clip_score <= 0.3)")
        sign = _SIGNS.get(type(node.ops[0]))
        if sign is None:
            self.fail_at(node, f"scores are compared by {', '.join(_MIRRORED)}")
        left, right = map(self.value, sides)
        if not (left.leaves() or right.leaves()):
            self.fail_at(node, "one side of a comparison must be a column")
        if isinstance(left, Constant):
            return values.Compare(right, _MIRRORED[sign], left)
        return values.Compare(left, sign, right)

    def score(self, node: ast.expr) -> Value:
        """A value that differs from pair to pair."""
        found = self.value(node)
        if not found.leaves():
            self.fail_at(node, "expected a column, or an expression with one")
        return found

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Name(name) if self.columns is None or name in self.columns:
                return Column(name)
            case ast.Name(name):
                self.fail_at(node, rules.unknown_column(name, self.columns or ()))
            case ast.Constant(str()):
                self.fail_at(node, "a column is written without quotes")
            case ast.Constant():
                return Constant(self.number(node))
            case ast.UnaryOp(ast.USub(), inner):
                return -self.value(inner)
            case ast.UnaryOp(ast.UAdd(), inner):
                return self.value(inner)
            case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
                return values.Arithmetic(self.value(left), _ARITHMETIC[type(op)], self.value(right))
            case ast.BinOp(ast.Constant(), ast.Mod(), _):
                self.fail_at(node, "a fraction is written as a decimal: 0.1 for 10%")
            case ast.BinOp(_, ast.Pow() | ast.Mod() | ast.FloorDiv()):
                self.fail_at(node, "the arithmetic operators are +, -, * and /")
            case ast.Call() if self.function(node) == "rank":
                if len(node.args) != 1 or node.keywords:
                    self.fail_at(node, "rank takes one column or expression, as in rank(neg_clip_loss)")
                return values.Rank(self.score(node.args[0]))
        self.fail_at(node, "expected a column, a number, rank(column), or arithmetic on them")

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
                    self.fail_at(node, "write the number in plain decimals")
            case ast.Constant(str(text)) if text.strip().endswith("%"):
                self.fail_at(node, "a fraction is written as a decimal: 0.1 for 10%")
            case ast.BinOp(ast.Constant(), ast.Mod(), _):
                self.fail_at(node, "a fraction is written as a decimal: 0.1 for 10%")
            case ast.BinOp(ast.Constant(), ast.Div(), ast.Constant()):
                self.fail_at(node, "a fraction is written as a decimal: 0.25 for 1/4")
        self.fail_at(node, "expected a number")

    def integer(self, node: ast.expr) -> int:
        match node:
            case ast.Constant(int(number)) if not isinstance(number, bool):
                return number
        self.fail_at(node, "expected a whole number")


def _is_value(node: ast.expr) -> bool:
    """Whether a node can only be scores: `-` joins scores as well as rules."""
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
