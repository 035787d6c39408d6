"""Formatting numbers for readers, and untrusted text with invisible characters made visible."""

from __future__ import annotations

import math
import re
import unicodedata

# A narrow no-break space keeps "30 %" together.
_PERCENT, _MINUS, _LONG_CAPTION = "\u202f%", "\u2212", 2_000
# Joiners shape Persian and Indic words and emoji, and hide nothing.
_HARMLESS = "\u200c\u200d"
_SUSPECT = re.compile(r"[^\x20-\x7e]")


def visible(text: str) -> str:
    """Makes every character visible: control, direction and invisible characters become "[U+202E]".

    White space of any kind becomes a space. HTML escaping is left to the templates.
    """
    return _SUSPECT.sub(_show, text)


def _show(match: re.Match[str]) -> str:
    char = match[0]
    if char.isspace() and char not in "\x1c\x1d\x1e\x1f":
        return char if char in "\u00a0\u202f" else " "
    kind = unicodedata.category(char)
    return f"[U+{ord(char):04X}]" if kind in ("Cc", "Cf", "Cs", "Co", "Cn") and char not in _HARMLESS else char


def shorten(text: str, limit: int = _LONG_CAPTION) -> str:
    """Cuts text to `limit` characters, in visible form; a cut is marked by an ellipsis."""
    # Visible form is up to ten times longer: cut first, so that a caption of megabytes costs nothing.
    shown = " ".join(visible(text[: limit + 1]).split())
    return shown if len(text) <= limit and len(shown) <= limit else shown[: limit - 1].rstrip() + "…"


def count(number: int) -> str:
    """Formats a count: 12,345."""
    return f"{number:,}"


def compact(number: float) -> str:
    """Formats a count for an axis: 950, 1.2k, 3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def pairs(number: int) -> str:
    """Formats a number of pairs: 1 pair, 12,345 pairs."""
    return f"{number:,} pair{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Formats a time in a suitable unit: 0 s, <0.1 ms, 12 ms, 1.4 s, 2 min 5 s, 3 h 20 min; "–" if not finite."""
    if not math.isfinite(seconds):
        return "–"
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        shown = f"{seconds * 1000:.1f}" if seconds < 0.00995 else f"{seconds * 1000:.0f}"
        return "<0.1 ms" if shown == "0.0" else f"{shown} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def percent(share: float) -> str:
    """Formats a share: 30.0 %, 0.4 %, <0.1 %; "–" for NaN."""
    if math.isnan(share):
        return "–"
    if 0 < share < 0.0005:
        return f"<0.1{_PERCENT}"
    # 99.97 % must not read as all of them.
    return f"{min(share, 0.999) if share < 1 else share:.1%}".replace("%", _PERCENT)


def top(share: float) -> str:
    """Formats a rank as "top 12 %": the share of pairs that score at least as high, rounded up where it is small."""
    if math.isnan(share):
        return "no score"
    hundredths = share * 100
    tenths = max(math.ceil(hundredths * 10 - 1e-9), 1)
    return f"top {f'{tenths / 10:.1f}' if tenths < 10 else round(hundredths)}{_PERCENT}"


def decimals(spread: float) -> int:
    """Returns the number of decimals that resolve a range of values to about three digits."""
    if not math.isfinite(spread) or spread <= 0:
        return 3
    return min(8, max(0, 2 - math.floor(math.log10(spread))))


def value(number: float, places: int) -> str:
    """Formats a score with a real minus sign, as 6.5e−7 if it needs more than six decimals; "–" if not finite."""
    if not math.isfinite(number):
        return "–"
    if places > 6:
        mantissa, _, exponent = f"{number:.1e}".partition("e")
        shown = f"{mantissa}e{int(exponent)}" if number else "0"
    else:
        shown = f"{number:,.{places}f}"
        shown = shown if shown.strip("-0.,") else shown.lstrip("-")  # no minus zero
    return shown.replace("-", _MINUS)


def file_size(size: int) -> str:
    """Formats a size: 1.4 MB, 12 kB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{math.ceil(size / 1e3)} kB"
