"""The text of a rule as a syntax tree, and complaints that point at their place in the text."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import tokenize
import warnings
from decimal import Decimal
from typing import NoReturn

from clipdata_jax.errors import InputError

# What other languages, and keyboards, write for a sign.
_SIGNS = {
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
        places = [(plain.index(sign), sign) for sign in _SIGNS if sign in plain]
        if places:
            start, sign = min(places)
            self.point(start, start + len(sign), f"write {_SIGNS[sign]} for {sign}")

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
