"""Rules that can't be read: one message that shows the place."""

from __future__ import annotations

import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.selection import parse, top

COLUMNS = {"clip_score", "neg_clip_loss", "a", "b"}
CASES = [
    ("top(neg_clip_los, 0.3)", "neg_clip_los", "did you mean neg_clip_loss?"),
    ("(zzz >= 0.3)", "zzz", "the columns are a, b, clip_score, neg_clip_loss"),
    ("zzz", "zzz", "unknown column"),
    ("a", "a", "a column alone is not a rule"),
    ("0.3", "0.3", "not a rule"),
    ("top(a, 0)", "0", "above 0 and at most 1"),
    ("top(a, 1.5)", "1.5", "above 0 and at most 1"),
    ("top(a, -0.5)", "-0.5", "above 0 and at most 1"),
    ("top(a, 5000)", "5000", "a number of pairs is given as n=1000"),
    ("top(a, n=0)", "0", "n is 0, but must be a number of pairs, at least 1"),
    ("top(a, n=0.5)", "0.5", "a whole number"),
    ("top(0.5, n=3)", "0.5", "expected a column, or an expression"),
    ("top(a, 0.5, n=3)", "3", 'of="kept"'),
    ("bottom(a, n=3, of='kept')", "bottom(a, n=3, of='kept')", "takes a column and a fraction or a number of pairs"),
    ("top(a, 1e-999999999)", "1e-999999999", "above 0 and at most 1"),
    ("top(a, 1.00000000000000000001)", "1.00000000000000000001", "above 0 and at most 1"),
    ("top(a, True)", "True", "expected a number"),
    ("top(a, 1j)", "1j", "expected a number"),
    ("top(a, 0x1)", "0x1", "plain decimals"),
    ("top(a, b)", "b", "expected a number"),
    ("top(0.3, a)", "0.3", "expected a column"),
    ("top('a', 0.3)", "'a'", "without quotes"),
    ("top(a)", "top(a)", "takes a column and a fraction"),
    ("top(a, 0.1, 0.2)", "top(a, 0.1, 0.2)", "takes a column and a fraction"),
    ("top(a, 0.1, of='all')", "'all'", 'of="kept"'),
    ("top(a, 0.1, to='pool')", "'pool'", 'of="kept"'),
    ("top(a, 0.1, **a)", "a", 'of="kept"'),
    ("tpo(a, 0.3)", "tpo", "did you mean top?"),
    ("a.top(a, 0.3)", "a.top", "unknown function"),
    ("top(a, 0.3) @ top(b, 0.2)", "top(a, 0.3) @ top(b, 0.2)", "not a rule"),
    ("top(a, 0.3) and top(b, 0.2)", "and", "write & for and"),
    ("top(a, 0.3) or top(b, 0.2)", "or", "write | for or"),
    ("top(a, 0.3) AND top(b, 0.2)", "AND", "write & for and"),
    ("top(a, 0.3) then top(b, 0.2)", "then", "write >> for then"),
    ("not top(a, 0.3)", "not", "write - for and not"),
    ("top(a, 10%)", "10%", "0.1 for 10%"),
    ("top(a, 2.5 % ) >> top(b, 0.1)", "2.5 %", "0.025 for 2.5%"),
    ("top(a, '10%')", "'10%'", "0.1 for 10%"),
    ("top(a, 10%3)", "10%3", "0.1 for 10%"),
    ("a + b", "a + b", "scores alone are not a rule: expected top(a + b, 0.3)"),
    ("rank(a) + 0.5 * rank(zz)", "zz", "unknown column"),
    ("rank(a)", "rank(a)", "scores alone are not a rule"),
    ("top(a, 0.3) - b", "b", "a column alone is not a rule"),
    ("top(a, 0.3) + top(b, 0.2)", "top(a, 0.3) + top(b, 0.2)", "joined by |"),
    ("top(a, 1/3)", "1/3", "0.25 for 1/4"),
    ("top(top(a, 0.3), 0.2)", "top(a, 0.3)", "rank(column), or arithmetic"),
    ("top(a ** 2, 0.3)", "a ** 2", "the arithmetic operators are +, -, * and /"),
    ("top(rank(a, b), 0.3)", "rank(a, b)", "rank takes one"),
    ("top(rank(0.5), 0.3)", "0.5", "expected a column, or an expression"),
    ("top(rnak(a), 0.3)", "rnak", "did you mean rank?"),
    ("at_most(0.5)", "0.5", "a whole number"),
    ("at_most(0)", "0", "at least 1"),
    ("at_most(a, 5)", "at_most(a, 5)", "takes a number of pairs"),
    ("sample(a)", "sample(a)", "takes a column and an amount"),
    ("sample(a, 1.5)", "1.5", "a whole number of pairs"),
    ("sample(a, 0)", "0", "above 0 and at most 1"),
    ("sample(a, 0.2, temperature=0)", "0", "must be above 0"),
    ("sample(a, 0.2, temperature=b)", "b", "expected a number"),
    ("sample(a, 0.2, seed=0.5)", "0.5", "a whole number"),
    ("sample(a, 0.2, sed=1)", "1", "temperature=, seed="),
    ("a >= 0.2 & top(b, 0.2)", "a >= 0.2 & top(b, 0.2)", "comparisons stand in parentheses"),
    ("0.2 <= a <= 0.3", "0.2 <= a <= 0.3", "one comparison at a time"),
    ("top(a, 0.3) > top(b, 0.2)", "top(a, 0.3) > top(b, 0.2)", "did you mean >>?"),
    ("(1 < 2)", "1 < 2", "one side of a comparison must be a column"),
    ("(a in b)", "a in b", "compared by"),
    ("uids(a)", "uids(a)", "in quotes"),
    ("uids('')", "''", "name is empty"),
    ("uids('a', 'b')", "uids('a', 'b')", "in quotes"),
    ("top(a, 0.3) # and more", "# and more", "comments are not allowed"),
    ("top(a 0.3)", "a 0.3", "invalid syntax"),
    ("~top(a, 0.3)", "~top(a, 0.3)", "write - for and not"),
    ("(a ≥ 0.3)", "≥", "write >= for ≥"),
    ("(a => 0.3)", "=>", "write >= for =>"),
    ("top(a, 0.3) && top(b, 0.2)", "&&", "write & for &&"),
    ("uids('a&&b') || top(b, 0.2)", "||", "write | for ||"),
    ("sample(a, 0.2, seed=1, seed=2)", "2", "seed= is given twice"),
    ("top(a, 0.3", "(", "never closed"),
    ("top(a, 0.3))", ")", "unmatched"),
    ("top(a, 0.3) top(b, 0.2)", "top", "invalid syntax"),
    ("uids('é') & top(zz, 0.3)", "zz", "unknown column"),
    ("lambda: a", "lambda: a", "not a rule"),
    ("__import__('os').system('ls')", "__import__('os').system", "unknown function"),
]


@pytest.mark.parametrize(("text", "marked", "words"), CASES, ids=[case[0] for case in CASES])
def test_errors_point_at_the_place(text, marked, words):
    with pytest.raises(InputError) as error:
        parse(text, COLUMNS)
    message, shown, marks = str(error.value).split("\n")
    assert words in message
    assert shown == f"  {text}"
    start = marks.index("^")
    assert shown[start : start + len(marks.strip())] == marked


@pytest.mark.parametrize("text", ["", "  \n ", "top(a\0, 0.3)"])
def test_texts_without_a_place(text):
    with pytest.raises(InputError, match=r"rule is empty|can't be read"):
        parse(text)


def test_warnings_of_python_are_mistakes_here():
    with pytest.raises(InputError, match="invalid"):
        parse(r"uids('a\d.npy')")
    with pytest.raises(InputError, match="invalid decimal literal"):
        parse("top(a, 0.3if a else b)")


def test_depth_is_bounded():
    with pytest.raises(InputError, match=r"nested too deeply|can't be read"):
        parse("(" * 5000 + "top(a, 0.3)" + ")" * 5000)
    with pytest.raises(InputError, match="nested too deeply"):
        parse("top(" + " + ".join(["a"] * 5000) + ", 0.3)")
    with pytest.raises(InputError, match="nested too deeply"):
        parse(" & ".join(["top(a, 0.3)"] * 5000))


def test_a_rule_that_breaks_off_is_pointed_at_its_end():
    with pytest.raises(InputError, match="breaks off") as error:
        parse("top(a, 0.3) >>")
    assert str(error.value).split("\n")[2] == "  " + " " * 14 + "^"


def test_a_plus_in_front_changes_nothing():
    assert parse("top(+a, +0.3) & (a >= +0.2)") == parse("top(a, 0.3) & (a >= 0.2)")


def test_line_breaks_are_spaces():
    assert parse("\n  top(a, 0.3)\n    >> top(b, 0.2)\n") == top("a", 0.3) >> top("b", 0.2)


def test_without_columns_any_name_will_do():
    assert parse("top(anything, 0.3)").columns() == ("anything",)
