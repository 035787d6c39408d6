"""Order and labels of the score columns on a page."""

from __future__ import annotations

import re
from collections.abc import Iterable

CLIP_SCORE, NEG_CLIP_LOSS, NORM_SIM = "clip_score", "neg_clip_loss", "norm_sim"
_FAMILIES = {CLIP_SCORE: "CLIPScore", NEG_CLIP_LOSS: "negCLIPLoss", NORM_SIM: "NormSim"}
_NORMS = {"inf": "∞", "2": "₂"}
_SIDE_COLUMNS = {
    "_se": "standard error",
    "_log_sum_text": "log-sum over texts",
    "_log_sum_image": "log-sum over images",
}


def is_side_column(name: str) -> bool:
    """Returns whether a column belongs to a score (its standard error, its log-sums) instead of being one."""
    return name.endswith(tuple(_SIDE_COLUMNS))


def ordered(names: Iterable[str]) -> list[str]:
    """Sorts columns as a page shows them: CLIPScore, negCLIPLoss, NormSim (∞ first), others; by name within each."""
    return sorted(names, key=lambda name: (_family_index(name), not name.startswith(f"{NORM_SIM}_inf"), name))


def first_of(family: str, names: Iterable[str], rule: str = "") -> str | None:
    """Finds the column that represents a family of scores: one that the rule names, else the first in the page's order.

    Args:
      family: start of the columns' names, e.g. `norm_sim`.
      names: all columns.
      rule: text of the selection's rule; "" if unknown.
    """
    members = [name for name in ordered(names) if _is_of(name, family) and not is_side_column(name)]
    words = set(re.findall(r"\w+", rule))
    return next((name for name in members if name in words), members[0] if members else None)


def label(name: str) -> str:
    """Returns a column's label: `norm_sim_inf_in1k` is "NormSim∞ in1k"."""
    for suffix, meaning in _SIDE_COLUMNS.items():
        if name.endswith(suffix):
            return f"{label(name.removesuffix(suffix))}: {meaning}"
    title, rest = _title(name)
    return f"{title} {rest}".strip()


def short_labels(names: Iterable[str]) -> dict[str, str]:
    """Returns column -> its shortest unambiguous label: "NormSim∞" with one target, else "∞ in1k"."""
    names = list(names)
    titles = [_title(name)[0] for name in names]
    return {
        name: title if titles.count(title) == 1 else label(name).removeprefix(_FAMILIES[NORM_SIM])
        for name, title in zip(names, titles, strict=True)
    }


def _title(name: str) -> tuple[str, str]:
    """The score's own name, and what else the column's name says."""
    for family, title in _FAMILIES.items():
        if _is_of(name, family):
            rest = name[len(family) :].strip("_")
            if family == NORM_SIM:
                norm, _, rest = rest.partition("_")
                title += _NORMS.get(norm, f" {norm}".rstrip())
            return title, rest.replace("_", " ")
    return name.replace("_", " "), ""


def _is_of(name: str, family: str) -> bool:
    return name == family or name.startswith(f"{family}_")


def _family_index(name: str) -> int:
    return next((i for i, family in enumerate(_FAMILIES) if _is_of(name, family)), len(_FAMILIES))
