import math

import pytest

from clipdata_jax.report import text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain <b>&\"'", "plain <b>&\"'"),  # the template escapes; this only makes visible
        ("abc\u202egpj.exe", "abc[U+202E]gpj.exe"),
        ("a\u2066b\u2069", "a[U+2066]b[U+2069]"),
        ("bell\x07 esc\x1b[31m nul\x00", "bell[U+0007] esc[U+001B][31m nul[U+0000]"),
        ("zero\u200bwidth \ufeffmark", "zero[U+200B]width [U+FEFF]mark"),
        ("tag\U000e0041", "tag[U+E0041]"),
        ("half \ud800 pair", "half [U+D800] pair"),
        ("line\nfeed\ttab\u2028sep", "line feed tab sep"),
        ("30\u202f%", "30\u202f%"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d💻 naïve 写真", "👩\u200d💻 naïve 写真"),
    ],
)
def test_strangers_text_hides_nothing(raw, shown):
    assert text.visible(raw) == shown
    text.visible(raw).encode()


def test_a_long_caption_is_cut_and_says_so():
    assert text.shorten("a" * 2_000) == "a" * 2_000
    assert text.shorten("a" * 2_001) == "a" * 1_999 + "…"
    assert len(text.shorten("\u202e" * 10_000_000)) == 2_000
    assert text.shorten("  two \n\n lines ") == "two lines"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.00004, "<0.1 ms"),
        (0.0022, "2.2 ms"),
        (0.2252, "225 ms"),
        (0.9996, "1.0 s"),
        (59.96, "1 min 0 s"),
        (125.4, "2 min 5 s"),
        (12_000, "3 h 20 min"),
        (math.nan, "–"),
    ],
)
def test_a_time_is_told_in_the_unit_that_suits_it(seconds, shown):
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0.0"), (0.0001, "<0.1"), (0.3, "30.0"), (0.9999, "99.9"), (1.0, "100.0"), (0.12345, "12.3")],
)
def test_percent(share, shown):
    assert text.percent(share) == f"{shown}\u202f%"


@pytest.mark.parametrize(
    ("share", "shown"),
    [(1e-8, "0.1"), (0.004, "0.4"), (0.0041, "0.5"), (0.0099, "1"), (0.12, "12"), (0.995, "100"), (1.0, "100")],
)
def test_top(share, shown):
    assert text.top(share) == f"top {shown}\u202f%"


def test_numbers_without_a_value_are_dashes():
    assert (text.percent(math.nan), text.value(math.nan, 3), text.top(math.nan)) == ("–", "–", "no score")


@pytest.mark.parametrize(
    ("number", "places", "shown"),
    [
        (-0.03124, 3, "\u22120.031"),
        (0.5, 2, "0.50"),
        (-0.0004, 3, "0.000"),
        (12.0, 0, "12"),
        (-12345.6, 0, "\u221212,346"),
        (6.54e-7, 8, "6.5e\u22127"),
        (0.0, 8, "0"),
    ],
)
def test_value(number, places, shown):
    assert text.value(number, places) == shown


@pytest.mark.parametrize(("spread", "places"), [(0.3, 3), (0.02, 4), (5, 2), (2000, 0), (0, 3), (math.nan, 3)])
def test_decimals_tell_values_apart(spread, places):
    assert text.decimals(spread) == places


def test_sizes_and_counts():
    assert [text.file_size(1_400_000), text.file_size(11_100)] == ["1.4 MB", "12 kB"]
    assert [text.compact(n) for n in (950, 1200, 200_000, 3e6, 1.28e10)] == ["950", "1.2k", "200k", "3M", "12.8G"]
    assert text.count(1234567) == "1,234,567"
